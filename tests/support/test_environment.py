"""Threads follow the cores that are really there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tda_demo.support import environment
from tda_demo.support.environment import available_cores, describe, use_threads


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("content", "expected"), [("max 100000", None), ("150000 100000", 2), ("50000 100000", 1), ("", None)]
)
def test_cgroup_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr(environment, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    cores = len(os.sched_getaffinity(0))
    assert available_cores() == min(cores, expected or cores)


def test_threads_are_lowered_to_the_cores_and_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_cores", lambda: 3)
    torch.set_num_threads(5)
    use_threads(None)
    assert torch.get_num_threads() == 3
    use_threads(1)
    assert torch.get_num_threads() == 1
    use_threads(None)
    assert torch.get_num_threads() == 1


def test_description_names_the_machine() -> None:
    told = describe(torch.device("cpu"), "int8")
    assert told["cpu"] and told["ram_gb"] > 0 and told["threads"] == torch.get_num_threads()
    assert told["precision"] == "int8" and told["torch"] == torch.__version__
