"""Memory and the collector of Python's cycles."""

from __future__ import annotations

import gc
import threading

from tda_demo.support.memory import nothing_collected


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
