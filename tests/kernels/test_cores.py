"""One thread at a time has the cores, and may ask for them again."""

from __future__ import annotations

import threading

import numba

from tda_demo.kernels.cpu import cores


def test_a_thread_that_has_the_cores_may_ask_again() -> None:
    with cores(2):
        with cores(1):
            assert numba.get_num_threads() == 1
        assert numba.get_num_threads() == min(2, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]


def test_another_thread_waits() -> None:
    entered = threading.Event()

    def ask() -> None:
        with cores(1):
            entered.set()

    other = threading.Thread(target=ask)
    with cores(1):
        other.start()
        assert not entered.wait(0.2)
    other.join()
    assert entered.is_set()
