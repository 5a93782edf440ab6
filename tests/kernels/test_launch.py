"""Threads that wait for each other, and functions called by address with arguments that lie at one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from parity import stored
from tiny import tiny

from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.kernels.cpu import cores, most_threads, turn
from tda_demo.kernels.cpu.barrier import barrier
from tda_demo.kernels.cpu.launch import ParallelCall, argument
from tda_demo.kernels.cpu.partition import share
from tda_demo.methods import TDA
from tda_demo.support.errors import UserError

ROUNDS = 2000


class Inner(NamedTuple):
    table: np.ndarray  # int64 [threads]
    nothing: None


class Sums(NamedTuple):
    inner: Inner
    factor: float
    doubled: bool
    seen: np.ndarray  # int64 [threads, ROUNDS]


@numba.njit(nogil=True)
def _sums(t: Any, threads: Any, counters: Any, address: Any, kind: Any) -> None:
    """In every round each thread writes its number, and all see the sum of all: a late or early one would not."""
    factor = argument(address, kind, "factor")
    doubled = argument(address, kind, "doubled")
    seen = argument(address, kind, "seen")
    table, passed = argument(address, kind, "inner").table, 0
    for k in range(seen.shape[1]):
        table[t] = (k + t) * int(factor) * (2 if doubled else 1)
        passed = barrier(counters, passed, threads)
        for other in range(threads):
            seen[t, k] += table[other]
        passed = barrier(counters, passed, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_thread_sees_what_all_wrote_before_they_met(threads: int) -> None:
    threads = min(threads, most_threads())
    for repeat in range(3):  # a launch begins its counting anew
        work = Sums(Inner(np.zeros(threads, np.int64), None), 3.0, repeat == 1, np.zeros((threads, ROUNDS), np.int64))
        call = ParallelCall(_sums, work, threads)
        with turn(threads):
            assert call()
        rounds = np.arange(ROUNDS) * threads + sum(range(threads))
        assert (work.seen == rounds * 3 * (2 if repeat == 1 else 1)).all()


def test_a_pool_that_runs_one_task_after_the_other_is_told_and_does_nothing() -> None:
    work = Sums(Inner(np.zeros(2, np.int64), None), 1.0, False, np.zeros((2, ROUNDS), np.int64))
    call = ParallelCall(_sums, work, 2)
    with cores(1):
        assert not call()
    assert not work.seen.any()
    if most_threads() > 1:
        with turn(2):
            assert call()  # the next call is one like any other


def test_a_step_whose_threads_do_not_meet_is_refused_in_a_sentence() -> None:
    lm = stored(tiny(), "float32")
    engine = CpuStepEngine(lm)
    arm = engine.dense_arm(engine.prefill([3, 4, 5], TDA(cett=0).bind(lm)), 4)
    arm.threads, arm._take = 2, None  # it was prepared for as many as torch has here
    arm._computed = np.zeros((len(lm.blocks), 2), np.int64)
    arm._turn = cores(1)
    with pytest.raises(UserError, match="does not run 2 threads at once"):
        arm.step(3)


@pytest.mark.parametrize(("count", "threads"), [(0, 3), (1, 3), (7, 2), (8, 8), (100, 7)])
def test_shares_follow_one_another_and_the_last_has_the_end(count: int, threads: int) -> None:
    shares = [share(count, t, threads) for t in range(threads)]
    assert shares[0][0] == 0 and shares[-1][1] == count
    assert all(one[1] == other[0] for one, other in pairwise(shares))
    assert max(last - first for first, last in shares) - min(last - first for first, last in shares) <= 1
    assert count == 0 or shares[-1][1] > shares[-1][0]  # who has the token's own position
