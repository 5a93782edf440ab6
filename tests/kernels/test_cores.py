"""One thread at a time has the cores, and may ask for them again."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numba
import pytest

from tda_demo.kernels.cpu import Alone, cores, most_threads, turn


def test_a_thread_that_has_the_cores_may_ask_again() -> None:
    with cores(2):
        with cores(1):
            assert numba.get_num_threads() == 1
        assert numba.get_num_threads() == min(2, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def test_a_turn_can_be_entered_again_and_again() -> None:
    for threads in {1, most_threads()}:
        ours = turn(threads)
        for _ in range(2):
            with ours:
                assert numba.get_num_threads() == threads
        assert numba.get_num_threads() == most_threads()


@pytest.mark.parametrize("theirs", [cores, turn])
def test_another_thread_waits(theirs: Callable[[int], Alone]) -> None:
    entered = threading.Event()

    def ask() -> None:
        with theirs(1):
            entered.set()

    other = threading.Thread(target=ask)
    with cores(1):
        other.start()
        assert not entered.wait(0.2)
    other.join()
    assert entered.is_set()
