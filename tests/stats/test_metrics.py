"""Every number's definition, against planted truths and independent formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tda_demo.stats import metrics
from tda_demo.stats.clock import StepClock


def speed(dense: list[float], sparse: list[float]) -> metrics.Speedup:
    found = metrics.speedup(StepClock(dense), StepClock(sparse))
    assert found is not None
    return found


def counted_by_hand(step_ms: list[float]) -> list[float]:
    """What each step counts for, by the definition: three times the median of those before it, from the fourth on."""
    return [ms if at < 3 else min(ms, 3 * float(np.median(step_ms[:at]))) for at, ms in enumerate(step_ms)]


STEPS = st.lists(st.floats(0.1, 1000), min_size=1, max_size=60)


@given(STEPS, STEPS)
def test_speedup_is_the_ratio_of_the_sums_of_what_steps_count_for(dense: list[float], sparse: list[float]) -> None:
    found, n = speed(dense, sparse), min(len(dense), len(sparse))
    own, other = counted_by_hand(sparse)[:n], counted_by_hand(dense)[:n]
    assert found.ratio == pytest.approx(sum(other) / sum(own)) and found.n == n
    changed = [ms != counts for ms, counts in zip([*dense[:n], *sparse[:n]], [*other, *own], strict=True)]
    assert found.capped == sum(changed)
    assert StepClock(dense).total == pytest.approx(sum(counted_by_hand(dense)))
    assert found.low <= found.high


@given(STEPS, st.floats(0.1, 1000))
def test_a_later_step_does_not_change_what_earlier_ones_counted_for(step_ms: list[float], later: float) -> None:
    assert StepClock([*step_ms, later]).counted[:-1] == StepClock(step_ms).counted


def test_a_hiccup_of_the_machine_decides_nothing() -> None:
    steady, hiccup = [10.0] * 40, [8.0] * 20 + [2000.0] + [8.0] * 19
    found = speed(steady, hiccup)
    assert found.ratio == pytest.approx(400 / (39 * 8 + 24)) and found.capped == 1
    assert found.winner == 1


def test_there_is_no_speedup_before_both_have_stepped() -> None:
    assert metrics.speedup(StepClock(), StepClock([1.0])) is None
    assert StepClock().rate(5) is None


def test_a_speedup_is_shown_once_it_is_sure_enough() -> None:
    assert not speed([10.0] * 19, [8.0] * 19).settled
    assert speed([10.0] * 20, [8.0] * 20).settled
    noisy = np.random.default_rng(0).uniform(1, 40, 40).tolist()
    assert not speed(noisy, noisy[::-1]).settled and speed(noisy, noisy[::-1]).winner == 0


def test_interval_covers_a_planted_ratio_and_shrinks_with_n() -> None:
    random = np.random.default_rng(1)

    def measured(n: int) -> metrics.Speedup:
        return speed((12 + random.normal(0, 1, n)).tolist(), (10 + random.normal(0, 1, n)).tolist())

    few, many = measured(20), measured(2000)
    assert many.low < 1.2 < many.high
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize(("correlation", "n", "least"), [(0.0, 40, 0.91), (0.0, 125, 0.92), (0.5, 125, 0.90)])
def test_the_interval_of_a_ratio_of_sums_holds_the_truth(correlation: float, n: int, least: float) -> None:
    """300 simulated races, as for the median below."""
    found = [speed(*race) for race in of_noise(correlation, n, 300)]
    assert np.mean([each.low <= 1.25 <= each.high for each in found]) >= least


def of_noise(correlation: float, n: int, count: int) -> list[tuple[list[float], list[float]]]:
    """Step times in ms of a dense arm and of one 1.25 times as fast, whose noise has a memory: AR(1)."""
    random = np.random.default_rng(2)
    noise = np.empty((count, n + 50))
    noise[:, 0] = random.normal(size=count)
    for step in range(1, n + 50):
        noise[:, step] = correlation * noise[:, step - 1] + random.normal(size=count)
    return [((10 + 0.1 * each).tolist(), [8.0] * n) for each in noise[:, 50:]]


def of_single_draws(ratios: np.ndarray) -> tuple[float, float]:
    resampled = np.random.default_rng(0).choice(ratios, size=(1000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return low, high


@pytest.mark.parametrize(
    ("correlation", "n", "least"), [(0.0, 16, 0.92), (0.0, 125, 0.92), (0.5, 125, 0.91), (0.7, 125, 0.87)]
)
def test_an_interval_holds_the_truth_where_neighbours_are_alike(correlation: float, n: int, least: float) -> None:
    """300 simulated races: one standard error is 1.3 to 2 points, so ``least`` is two below what many more gave."""
    races = of_noise(correlation, n, 300)
    found = [metrics.paired_speedup(*race) for race in races]
    holds = np.mean([each.low <= 1.25 <= each.high for each in found])
    plain = [of_single_draws(np.array(dense) / np.array(sparse)) for dense, sparse in races]
    assert holds >= least
    assert holds >= np.mean([low <= 1.25 <= high for low, high in plain]) + 0.3 * correlation - 0.02


def test_equal_times_give_equal_intervals_and_few_times_one_too() -> None:
    (dense, sparse), *_ = of_noise(0.5, 40, 1)
    assert metrics.paired_speedup(dense, sparse) == metrics.paired_speedup(dense, sparse)
    assert metrics.paired_speedup([3.0], [2.0]) == metrics.MedianSpeedup(1.5, 1.5, 1.5, 1)
    assert metrics.paired_speedup([3.0, 4.0], [2.0, 2.0]) == metrics.MedianSpeedup(1.75, 1.5, 2.0, 2)
    for n in range(3, 20):
        found = metrics.paired_speedup(dense[:n], sparse[:n])
        assert found.low < found.median < found.high and found.n == n


def test_prompts_that_differ_widen_the_interval_of_a_row() -> None:
    random = np.random.default_rng(3)
    alike = 1.25 + 0.01 * random.normal(size=(3, 6))
    apart = alike + np.array([[-0.1], [0.0], [0.1]])
    one, many = (metrics.grouped_speedup(each.tolist(), np.ones((3, 6)).tolist()) for each in (alike, apart))
    assert one.n == many.n == 18 and one.high - one.low < 0.03
    assert many.low < 1.17 and many.high > 1.33
    assert many == metrics.grouped_speedup(apart.tolist(), np.ones((3, 6)).tolist())
    assert metrics.grouped_speedup([[3.0]], [[2.0]]) == metrics.MedianSpeedup(1.5, 1.5, 1.5, 1)


def test_equal_arms_have_speedup_one() -> None:
    times = [5.0, 7.0, 9.0, 4.0, 6.0, 8.0]
    assert speed(times, times) == metrics.Speedup(1.0, 1.0, 1.0, 6, 0, 1.0)


def test_rate_bound_and_efficiency() -> None:
    assert StepClock([20.0, 20.0, 60.0, 100.0]).rate(3) == pytest.approx(30.0)
    assert metrics.byte_bound(300, 200) == 1.5
    assert metrics.efficiency(1.2, 1.5) == pytest.approx(0.8)


@given(st.integers(1, 6), st.integers(2, 40), st.integers(0, 99))
def test_kl_and_agreement_are_those_of_torch_in_float64(positions: int, vocabulary: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    p, q = (4 * torch.randn(positions, vocabulary, generator=random) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        q.double().log_softmax(-1), p.double().log_softmax(-1), log_target=True, reduction="none"
    ).sum(dim=-1)
    found = metrics.compare_forced(p, q, torch.zeros(positions, dtype=torch.int64))
    torch.testing.assert_close(found.kl.double(), expected, rtol=1e-4, atol=1e-5)
    assert found.agrees.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()


def test_kl_of_equal_logits_is_zero() -> None:
    logits = 30 * torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    given = torch.zeros(3, dtype=torch.int64)
    assert metrics.compare_forced(logits, logits.clone(), given).kl.tolist() == [0, 0, 0]
    torch.testing.assert_close(
        metrics.compare_forced(logits, logits + 100, given).kl, torch.zeros(3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("dense", "sparse", "expected"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 2], None), ([1, 2, 3], [1, 9, 3], 1), ([], [], None), ([4], [5], 0)],
)
def test_divergence(dense: list[int], sparse: list[int], expected: int | None) -> None:
    assert metrics.divergence(dense, sparse) == expected
