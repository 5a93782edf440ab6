"""Memory and the collector of Python's cycles."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import psutil
import pytest

from tda_demo.support.memory import available_memory, nothing_collected


def test_the_collector_is_back_once_the_last_of_several_threads_is_done() -> None:
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))

    def first() -> None:
        with nothing_collected:
            first_is_in.set()
            second_is_in.wait(5)
        first_is_out.set()

    other = threading.Thread(target=first)
    other.start()
    first_is_in.wait(5)
    with nothing_collected:
        second_is_in.set()
        first_is_out.wait(5)
        assert not gc.isenabled()  # whoever came first has gone
    other.join()
    assert gc.isenabled()


def test_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    machine = psutil.virtual_memory().available
    assert available_memory(tmp_path) == pytest.approx(machine, rel=0.2)
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\nactive_file 100000\nfile 300000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) > 1e6
    (tmp_path / "memory.max").write_text("1000000\n")
    assert available_memory(tmp_path) == 600000
    (tmp_path / "memory.max").write_text("300000\n")
    assert available_memory(tmp_path) == 0
