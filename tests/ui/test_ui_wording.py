"""Numbers and sentences."""

from __future__ import annotations

import pytest

from tda_demo.methods import CATS, GRIFFIN, Sketch
from tda_demo.stats.metrics import Speedup
from tda_demo.ui import wording


def speed(ratio: float, low: float, high: float, n: int = 50, capped: int = 0) -> Speedup:
    return Speedup(ratio, low, high, n, capped, ratio)


FAST, EVEN, SLOW = speed(1.2, 1.1, 1.3), speed(1.01, 0.97, 1.05), speed(0.9, 0.85, 0.95)


def verdict(speedup: Speedup | None, sparsity: float = 0.25) -> str:
    return wording.verdict(speedup, 1.25, sparsity, 50.0, "GRIFFIN", "of the MLP neurons")


def test_faster_says_by_how_much_and_what_was_possible() -> None:
    assert verdict(FAST) == (
        "1.20×: GRIFFIN was faster, skipping 25.0 % of the MLP neurons; the bytes it saves allow at most 1.25×."
    )


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(1.25, "at most 1.25×."), (1.26, "is chance."), (1.4, "slowed the dense arm")],
)
def test_more_than_the_bytes_allow_is_no_gain_and_says_why(ratio: float, said: str) -> None:
    assert said in verdict(speed(ratio, ratio - 0.05, ratio + 0.05))


def test_slower_says_so_and_why_in_numbers() -> None:
    said = verdict(SLOW)
    assert said.startswith("0.90×: slower than dense.")
    assert "from 20.0 ms to 16.0 ms; it took 22.2 ms" in said and "80 % of the weight bytes" in said


def test_an_interval_that_nearly_reaches_one_says_on_which_side() -> None:
    assert wording.interval(speed(1.02, 1.0004, 1.05, 9)) == "95 % interval 1.0004–1.05, n = 9"
    assert wording.interval(speed(0.9, 0.71, 0.9983, 47)) == "95 % interval 0.71–0.998, n = 47"
    assert wording.interval(speed(1.02, 0.9996, 1.05, 9)) == "95 % interval 1.00–1.05, n = 9"
    assert wording.interval(FAST) == "95 % interval 1.10–1.30, n = 50"
    assert wording.sureness(speed(1.1, 1.0004, 1.19, 90), None, True) == "1.0004–1.19 (95 %) · n = 90"
    assert wording.interval(speed(1.2, 1.1, 1.3, 50, 2)) == "95 % interval 1.10–1.30, n = 50, 2 steps capped"


@pytest.mark.parametrize(
    ("speedup", "over", "said"),
    [
        (None, False, ("", "measuring, n = 0")),
        (speed(2.0, 1.0, 3.0, 12), False, ("", "measuring, n = 12")),
        (speed(2.0, 1.0, 3.0, 12), True, ("", "too few steps to tell, n = 12")),
        (speed(2.0, 1.0, 3.0, 60), True, ("", "too noisy to tell, n = 60")),
        (speed(1.3, 1.04, 1.55, 60), True, ("", "faster, 1.04 to 1.55×")),
        (speed(0.7, 0.5, 0.9, 60), True, ("", "slower than dense, 0.50 to 0.90×")),
        (speed(1.3, 1.04, 1.55, 60), False, ("", "measuring, n = 60")),
        (EVEN, True, ("1.01×", "no difference")),
        (FAST, False, ("1.20×", "faster")),
        (SLOW, True, ("0.90×", "slower than dense")),
    ],
)
def test_a_headline_has_no_number_before_it_is_sure(speedup: Speedup | None, over: bool, said: tuple[str, str]) -> None:
    assert wording.claim(speedup, over) == said


@pytest.mark.parametrize("speedup", [SLOW, EVEN, FAST])
def test_arms_that_do_equal_work_are_neither_faster_nor_slower(speedup: Speedup) -> None:
    assert wording.claim(speedup, True, equal=True) == (wording.times(speedup.ratio), "at equal work")
    assert wording.claim(speed(1.3, 1.04, 1.55, 60), True, equal=True) == ("", "at equal work, 1.04 to 1.55×")


def test_a_duel_says_what_bytes_do_not_explain() -> None:
    assert wording.duel("TDA", "GRIFFIN", FAST, 1.2).endswith(
        "1.20× the speed of GRIFFIN (95 % interval 1.10–1.30, n = 50)."
    )
    assert wording.duel("TDA", "GRIFFIN", FAST, 1.1).endswith(", where their bytes explain 1.10×.")
    assert wording.duel("TDA", "GRIFFIN", SLOW, 1.1).endswith(", where their bytes explain 1.00×.")
    assert "explain" not in wording.duel("TDA", "GRIFFIN", SLOW, 0.85)
    assert "explain" not in wording.duel("TDA", "GRIFFIN", FAST, None)


def test_the_price_is_told_in_both_units() -> None:
    assert wording.price(1.715, 80, 128) == "Its price: 48 of 128 next tokens are not dense's; KL 1.72 nats/token."


def test_noise_is_called_noise() -> None:
    assert "interval includes 1" in verdict(EVEN)


def test_exact_is_called_exact() -> None:
    assert "Nothing was left out" in wording.verdict(EVEN, 1.0, 0.0, 50.0, "TDA", "of the MLP neurons")
    reads_more = wording.verdict(SLOW, 0.83, 0.0, 50.0, "Sketch", "of the MLP neurons", has_rest=True)
    assert "same work" not in reads_more and "120 % of the weight bytes" in reads_more
    assert "The rest may be" not in reads_more  # it took less than its bytes would


def test_a_budget_is_told_with_what_it_came_to() -> None:
    assert wording.kl_budget(0.3, "cett", 0.0834, 0.3, 0.34) == (
        "Asked for a KL of at most 0.30 nats/token: set cett = 0.0834. "
        "KL 0.30 on the calibration passages, on your prompt 0.34."
    )
    assert wording.mlp_budget(0.7, "keep", 0.7, 0.698, None) == (
        "Asked for at most 70 % of the MLP weight bytes: set keep = 0.7. It reads 70 % on the calibration passages."
    )


def test_too_short_is_called_too_short() -> None:
    assert "Too few steps" in verdict(None)


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (21, "21st"), (113, "113th")],
)
def test_ordinals(number: int, said: str) -> None:
    assert wording.ordinal(number) == said


@pytest.mark.parametrize(("ms", "said"), [(None, "–"), (9.6, "10 ms"), (999.4, "999 ms"), (1234, "1.23 s")])
def test_durations(ms: float | None, said: str) -> None:
    assert wording.duration(ms) == said


def test_the_machine_in_a_fixed_order_without_what_is_not_known() -> None:
    known = {"torch": "2.13", "cpu": "A", "ram_gb": 16.0, "secret": 1}
    assert wording.machine(known) == [["CPU", "A"], ["memory", "16.0 GB"], ["torch", "2.13"]]


def test_when_a_method_chooses() -> None:
    assert wording.chosen(GRIFFIN()) == "one set, from the prompt; the rest skipped"
    assert wording.chosen(GRIFFIN(rest="4bit")) == "one set, from the prompt; the rest from a 4-bit copy"
    assert wording.chosen(GRIFFIN(first=16)) == "one set, after 16 dense tokens; the rest skipped"
    assert wording.chosen(GRIFFIN(refresh=8)) == "a set from the prompt, a new one every 8 tokens; the rest skipped"
    assert wording.chosen(CATS()) == "a new set at every token"
    assert wording.chosen(Sketch()) == "a new set at every token; the rest from a 4-bit copy"


def test_more_than_the_bytes_allow_is_said_beside_the_number() -> None:
    unsettled = speed(1.3, 1.13, 1.61, 60)
    assert wording.sureness(FAST, 1.25, True) == "1.10–1.30 (95 %) · limit 1.25× · n = 50"
    assert wording.sureness(FAST, 1.15, True) == "1.10–1.30 (95 %) · over the limit 1.15× · n = 50"
    assert wording.sureness(FAST, 1.0, True, equal=True) == "1.10–1.30 (95 %) · limit 1.00× · n = 50"
    assert wording.sureness(EVEN, 0.9, True) == "0.97–1.05 (95 %) · limit 0.90× · n = 50"
    assert wording.sureness(SLOW, 0.8, True) == "0.85–0.95 (95 %) · limit 0.80× · n = 50"
    assert wording.sureness(unsettled, 0.95, True) == "over the limit 0.95×"
    assert wording.sureness(unsettled, 0.95, False) == "limit 0.95×"  # no number is shown yet
    assert wording.sureness(unsettled, 1.25, True) == "limit 1.25×"
    assert "allow at most 0.95×; the rest is no gain" in wording.verdict(
        speed(1.3, 1.13, 1.61, 60), 0.95, 0.5, 50.0, "TDA", "of the MLP neurons"
    )
    assert wording.sureness(None, 1.25, False) == "limit 1.25×"
