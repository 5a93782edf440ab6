"""On a first start a second process compiles what reads prompts; it needs room, and never outlives the first."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tda_demo.decode.cpu import compile_ahead as ahead
from tda_demo.kernels import cpu as kernels
from tda_demo.support.interruption import GivenUp, looking
from tda_demo.support.progress import Progress, silent

ROOT = Path(__file__).resolve().parents[2]
_PARENT = """
import time
from tda_demo.decode.cpu import compile_ahead
print(compile_ahead._start("bfloat16").pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def first_start(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """A first start on a machine with room; the precisions that a second process was started for."""
    started: list[str | None] = []

    def start(precision: str | None) -> Any:
        started.append(precision)
        return SimpleNamespace(wait=lambda _seconds: 0)

    monkeypatch.setattr(ahead, "_started", None)
    monkeypatch.setattr(ahead, "_start", start)
    for name, answer in {"is_first_start": True, "available_cores": 2, "available_memory": 16e9}.items():
        monkeypatch.setattr(ahead, name, lambda answer=answer: answer)
    return started


def test_one_is_started_once(first_start: list[str | None]) -> None:
    for _ in range(2):
        ahead.compile_ahead("int8", "cpu")
    assert first_start == ["int8"]


@pytest.mark.parametrize(
    ("fact", "answer"), [("is_first_start", False), ("available_cores", 1), ("available_memory", 2e9)]
)
def test_none_is_started_without_room_or_need(
    first_start: list[str | None], fact: str, answer: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, fact, lambda: answer)
    ahead.compile_ahead(None, "cpu")
    assert not first_start


def test_none_is_started_for_a_gpu(first_start: list[str | None]) -> None:
    ahead.compile_ahead(None, "cuda")
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

    monkeypatch.setattr(ahead, "_started", SimpleNamespace(wait=never))
    with looking(give_up), pytest.raises(GivenUp):
        ahead.wait_for_compiling(told.append)
    assert len(told) == 3


def test_one_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_MOST_SECONDS", 0.4)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(ahead, "_started", process)
    ahead.wait_for_compiling(silent)
    assert process.wait(10) != 0


def test_it_ends_with_the_process_that_started_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert within(30, lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_what_it_compiles_lies_where_the_first_finds_it() -> None:
    command = [sys.executable, "-m", "tda_demo.decode.cpu.compile_reading", "int8"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.wait(180) == 0, process.stderr and process.stderr.read()
    assert list(kernels._FOLDER.rglob("prompt.take_layer-*.nbc"))


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.1)
    return False
