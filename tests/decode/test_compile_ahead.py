"""On a first start a second process compiles what reads prompts; it needs room, and never outlives the first."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parity import stored
from tiny import tiny

from tda_demo.decode.cpu import compile_ahead as ahead
from tda_demo.decode.cpu import compiled_step
from tda_demo.decode.cpu.compile_reading import ORPHANED
from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.kernels import cpu as kernels
from tda_demo.support.interruption import GivenUp, looking
from tda_demo.support.progress import Progress, silent

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def first_start(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A first start on a machine with room; the precisions that a second process was started for."""
    started: list[str | None] = []

    def start(precision: str | None) -> Any:
        started.append(precision)
        return SimpleNamespace(wait=lambda _seconds: 0, returncode=None)

    monkeypatch.setattr(ahead, "_started", None)
    monkeypatch.setattr(ahead, "_start", start)
    for name, answer in {"is_first_start": True, "available_cores": 2, "available_memory": 16e9}.items():
        monkeypatch.setattr(ahead, name, lambda answer=answer: answer)
    return started


def test_one_is_started_once(first_start: list[str | None]) -> None:
    for _ in range(2):
        ahead.compile_ahead(None, "int8", "cpu")
    assert first_start == ["int8"]


@pytest.mark.parametrize(
    ("fact", "answer"), [("is_first_start", False), ("available_cores", 1), ("available_memory", 2e9)]
)
def test_none_is_started_without_room_or_need(
    first_start: list[str | None], fact: str, answer: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, fact, lambda: answer)
    ahead.compile_ahead(None, None, "cpu")
    assert not first_start


@pytest.mark.parametrize(
    "model", [(None, None, "cuda"), ("some.gguf", None, "cpu"), (None, "bfloat16", "cpu"), (None, "no such", "cpu")]
)
def test_none_is_started_for_a_model_it_is_not_for(model: tuple[Any, ...], first_start: list[str | None]) -> None:
    ahead.compile_ahead(*model)
    assert not first_start


def test_what_cannot_be_started_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert ahead._start(None) is None


def test_waiting_for_it_is_told_and_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_seconds: float) -> None:
        raise subprocess.TimeoutExpired("python", 0)

    told: list[Progress] = []

    def give_up() -> None:
        if len(told) == 3:
            raise GivenUp

    monkeypatch.setattr(ahead, "_started", SimpleNamespace(wait=never, returncode=None))
    with looking(give_up), pytest.raises(GivenUp):
        ahead.wait_for_compiling(told.append)
    assert len(told) == 3


def test_one_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST_SECONDS", 0.4)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(ahead, "_started", process)
    ahead.wait_for_compiling(silent)
    assert process.wait(10) != 0


@pytest.fixture
def second() -> Iterator[subprocess.Popen[bytes]]:
    process = ahead._start("int8")
    assert process is not None
    with process:
        yield process
        process.kill()


def test_it_ends_with_the_process_that_started_it(second: subprocess.Popen[bytes]) -> None:
    """Whose end of the pipe the system then closes, in the middle of whatever is done; left alone it ends with 0."""
    assert second.stdin is not None
    second.stdin.close()
    assert second.wait(60) == ORPHANED


def test_what_it_compiles_lies_where_the_first_finds_it(second: subprocess.Popen[bytes]) -> None:
    begin = time.time()
    assert second.wait(180) == 0
    kept = list(kernels._FOLDER.rglob("prompt.take_layer-*.nbc"))
    assert max(file.stat().st_mtime for file in kept) > begin - 1  # written, or read and touched


def test_the_reading_layers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    engine = CpuStepEngine(stored(tiny(), "int8"))
    monkeypatch.setattr(compiled_step, "wait_for_compiling", lambda _report: done.append("waited"))
    monkeypatch.setattr(engine, "warm_up_reading", lambda _report: done.append("read"))
    engine.warm_up()
    assert done == ["waited", "read"]
