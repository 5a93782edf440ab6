"""The experiments' statistics against brute force and planted truths, the null among them."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tda_demo.stats.estimates import Estimate, mean, means, ratios, regression
from tda_demo.theory.findings import Check, Finding, Table, summary
from tda_demo.theory.reading import correlation, jaccard, ranks

# Of 2,000 intervals that hold 95 % of the time, 93.5 to 96.5 % hold the truth but once in 400 seeds (three deviations).
HOLDS = pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("clusters", [4, 5, 6, 15, 16])
def test_intervals_hold_the_truth_19_times_in_20(clusters: int) -> None:
    draws = np.random.default_rng(1).normal(loc=3, size=(clusters, 2000))
    assert np.mean([each.low <= 3 <= each.high for each in means(draws)]) == HOLDS


def test_an_interval_of_few_means_is_student_s() -> None:
    values = np.random.default_rng(9).normal(size=4)
    found = mean(values)
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=0.003)


def test_intervals_of_ratios_and_coefficients_hold_at_the_fewest_clusters() -> None:
    """Texts of 20 to 40 entries each, all of them around 3; lines of slope 2, four clusters of twelve rows."""
    random = np.random.default_rng(10)
    counts = random.integers(20, 41, (4, 2000)).astype(float)
    sums = 3 * counts + np.sqrt(counts) * random.normal(size=counts.shape)
    assert np.mean([each.low <= 3 <= each.high for each in ratios(sums, counts)]) == HOLDS
    inside = []
    for _ in range(400):
        predictors = [random.normal(size=(12, 1)) for _ in range(4)]
        slope = regression([2 * x[:, 0] + random.normal(size=12) for x in predictors], predictors)[1]
        inside.append(slope.low <= 2 <= slope.high)
    assert 0.92 <= np.mean(inside) <= 0.985  # 400 intervals; the jackknife errs on the wide side


def test_copies_of_a_cluster_do_not_narrow_its_interval() -> None:
    """The error that resampling tokens makes: 50 tokens of a text that are all alike are one observation."""
    values = np.random.default_rng(2).normal(size=12)
    counts = np.full((12, 1), 50.0)
    (of_tokens,) = ratios(50 * values[:, None], counts)
    of_texts = mean(values)
    assert (of_tokens.value, of_tokens.low, of_tokens.high) == pytest.approx(
        (of_texts.value, of_texts.low, of_texts.high)
    )


def test_ratio_is_the_mean_over_entries_and_needs_enough_clusters() -> None:
    sums, counts = np.array([[3.0], [1.0], [0.0], [8.0]]), np.array([[3.0], [4.0], [0.0], [1.0]])
    assert ratios(sums, counts)[0].value == 12 / 8
    assert ratios(sums, 0 * counts)[0] == Estimate(0, 0, 0, 4)
    with pytest.raises(ValueError, match="at least 4"):
        mean(np.ones(3))


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=6))
def test_ranks_are_counts_of_smaller_values_and_half_the_equal_ones(rows: list[list[int]]) -> None:
    values = np.array(rows, float)
    expected = [[sum(v < x for v in row) + (sum(v == x for v in row) - 1) / 2 for x in row] for row in rows]
    np.testing.assert_array_equal(ranks(values), expected)


def test_rank_correlation_sees_order_only() -> None:
    values = np.random.default_rng(3).normal(size=(4, 200))
    ranked = ranks(values)
    np.testing.assert_allclose(correlation(ranked, ranks(np.exp(values))), 1)
    np.testing.assert_allclose(correlation(ranked, ranks(-values)), -1)
    assert np.abs(correlation(ranked, ranks(np.random.default_rng(4).normal(size=(4, 200))))).max() < 0.3
    assert correlation(np.ones(5), np.arange(5.0)) == 0


@settings(max_examples=50, deadline=None)
@given(first=st.sets(st.integers(0, 9)), second=st.sets(st.integers(0, 9)))
def test_jaccard_is_its_definition(first: set[int], second: set[int]) -> None:
    a, b = (np.isin(np.arange(10), list(each)) for each in (first, second))
    expected = len(first & second) / len(first | second) if first | second else 1
    assert jaccard(a, b) == pytest.approx(expected)


def test_regression_finds_planted_coefficients_and_no_others() -> None:
    random = np.random.default_rng(5)
    predictors = [random.normal(size=(30, 3)) for _ in range(20)]
    responses = [2 + each @ [0.5, 0.0, -1.0] + random.normal(scale=0.3, size=30) for each in predictors]
    fits = regression(responses, predictors)
    design = np.column_stack([np.ones(600), np.concatenate(predictors)])
    expected = np.linalg.lstsq(design, np.concatenate(responses), rcond=None)[0]
    np.testing.assert_allclose([fit.value for fit in fits], expected)
    for fit, truth in zip(fits, (2, 0.5, 0, -1), strict=True):
        assert fit.low <= truth <= fit.high and fit.high - fit.low < 0.15


def check(values: np.ndarray) -> Check:
    """A check whose cases are the columns of ``values`` [clusters, cases]."""
    return Check("x", "layers", "texts", 0.0, tuple(means(values)), mean(values.mean(axis=1)))


@pytest.mark.parametrize(("planted", "outcome"), [(0.5, "supported"), (-0.5, "contradicted"), (0.0, "no effect")])
def test_outcome_is_what_was_planted(planted: float, outcome: str) -> None:
    found = check(np.random.default_rng(6).normal(loc=planted, scale=0.3, size=(16, 30)))
    assert found.outcome == outcome
    assert f": {outcome}; holds in {found.holds} of 30 layers" in found.verdict and "n = 16 texts" in found.verdict


def test_half_for_and_half_against_is_mixed() -> None:
    noise = np.random.default_rng(7).normal(scale=0.1, size=(16, 30))
    found = check(noise + np.where(np.arange(30) < 15, 1, -1))
    assert (found.holds, found.opposite, found.outcome) == (15, 15, "mixed")


def test_null_is_called_no_effect_nearly_always() -> None:
    random = np.random.default_rng(8)
    outcomes = [check(random.normal(size=(16, 30))).outcome for _ in range(60)]
    assert outcomes.count("no effect") >= 50 and "supported" not in outcomes and "contradicted" not in outcomes


def test_finding_is_told_in_words_json_and_csv() -> None:
    table = Table("t", "A table", {"layer": [0, 1], 'odd "name", so': [0.5, 1.5]})
    planted = check(np.ones((4, 2)) + np.arange(4)[:, None] / 100)
    finding = Finding("e", "Claim.", "Prediction.", "m", {"seed": 0}, (planted,), ("A note",), (table,))
    told = json.loads(json.dumps(finding.to_json(), allow_nan=False))
    assert told["verdict"] == finding.verdict == f"{planted.verdict}. A note."
    assert told["checks"][0]["outcome"] == "supported" and told["tables"]["t"]["columns"]["layer"] == [0, 1]
    assert list(csv.reader(io.StringIO(table.to_csv()))) == [["layer", 'odd "name", so'], ["0", "0.5"], ["1", "1.5"]]
    assert "A note" in summary(finding) and "Claim: Claim." in summary(finding)
    assert Finding("e", "", "", "m", {}, (), (), (), complete=False).verdict.startswith("Stopped before")
