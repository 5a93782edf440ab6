"""Threads of a region that stand on one processor move apart, and may be moved anywhere afterwards."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tda_demo.kernels.cpu import most_threads, turn
from tda_demo.kernels.cpu.apart import OWN, destination, move_apart, new_places, processor
from tda_demo.kernels.cpu.launch import ParallelCall, argument

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or most_threads() < 2, reason="needs two processors of a system that says who is where"
)


class Stood(NamedTuple):
    at: np.ndarray  # int64 [threads]
    nothing: None


@numba.njit(nogil=True)
def _stand(t: Any, threads: Any, counters: Any, address: Any, kind: Any) -> None:
    at = argument(address, kind, "at")
    at[t] = processor()


@pytest.fixture
def allowed() -> Iterator[set[int]]:
    """The processors there are, which all threads may use again afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    allow(before)


def allow(processors: set[int]) -> None:
    for each in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(each.name), processors)


def test_threads_crowded_on_one_processor_are_apart_when_their_work_begins(allowed: set[int]) -> None:
    stood = Stood(np.zeros(2, np.int64), None)
    call = ParallelCall(_stand, stood, 2)
    apart = 0
    for repeat in range(20):
        one = sorted(allowed)[repeat % 2]
        allow({one})
        allow(allowed)  # where they are allowed to be, not where they are
        with turn(2):
            assert call()
        apart += stood.at[0] != stood.at[1]
    assert apart >= 18  # the system may have moved one in between


def test_who_moved_may_be_anywhere_afterwards(allowed: set[int]) -> None:
    here = processor_of_this_thread()
    move_apart(places_of(here, here), 1)
    assert processor_of_this_thread() != here
    assert os.sched_getaffinity(0) == allowed


def test_a_thread_that_may_be_nowhere_else_stays(allowed: set[int]) -> None:
    here = processor_of_this_thread()
    os.sched_setaffinity(0, {here})
    move_apart(places_of(here, here), 1)
    assert os.sched_getaffinity(0) == {here}


@given(data=st.data(), threads=st.integers(2, 12), processors=st.sets(st.integers(0, 200), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_everyone_finds_a_place_where_there_are_enough(data: Any, threads: int, processors: set[int]) -> None:
    """Each chooses by itself, and knows only where all stood before."""
    stood = data.draw(st.lists(st.sampled_from(sorted(processors)), min_size=threads, max_size=threads))
    places = places_of(*stood)
    for number in processors:
        places[:, OWN + number // 64] |= np.int64(1) << np.int64(number % 64)
    moving = [t for t in range(threads) if stood[t] in stood[:t]]
    went = [number for number in (destination(places, t) for t in moving) if number >= 0]
    free = processors - set(stood)
    assert set(went) <= free
    assert len(went) == len(set(went)) == min(len(moving), len(free))


def places_of(*processors: int) -> np.ndarray:
    places = new_places(len(processors))
    places[:, 0] = processors
    return places


@numba.njit
def processor_of_this_thread() -> int:
    return processor()
