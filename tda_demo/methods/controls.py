"""Controls are methods that choose blindly. One that does not beat them says so, as is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import METHODS

Fields = Mapping[str, Any]

_EQUAL = 0.01  # bytes that differ by less are the same: a budget is met to about that


def is_control(method: str) -> bool:
    """Whether ``method`` is the name of a control; a method that is not installed here is none."""
    return method in METHODS and METHODS[method].is_control


def beats(read: float, kl: float, control_read: float, control_kl: float) -> bool | None:
    """Whether a method that reads ``read`` bytes (or a share of them) beats a control; KL in nats per token.

    True where its KL is lower at no more bytes, False where the control's is no higher at no more bytes, and None where
    the one that reads more also has the lower KL: that says nothing of the choice.
    """
    if kl < control_kl and read <= control_read * (1 + _EQUAL):
        return True
    if control_kl <= kl and control_read <= read * (1 + _EQUAL):
        return False
    return None


def against(
    name: str, read: float | None, kl: float | None, control: str, control_read: float | None, control_kl: float | None
) -> str:
    """In one sentence what ``beats`` says of a race against ``control``; empty where something was not measured."""
    if read is None or kl is None or control_read is None or control_kl is None:
        return ""
    wins = beats(read, kl, control_read, control_kl)
    if wins is None:
        return f"{name} and the control {control} did not read the same bytes: set both by bytes to compare them."
    verb = "beats" if wins else "does not beat"
    return f"{name} {verb} the control {control}: KL {kl:.3f} against {control_kl:.3f} nats/token."


def unbeaten(row: Fields, rows: Iterable[Fields]) -> Fields | None:
    """The control's row of lowest KL among those of a sweep (``evaluate.sweep_table.SweepRow``) that ``row`` does not
    beat, of its model, precision and text; None where it beats them all, or is dense or a control itself.
    """
    if row["method"] == "dense" or is_control(row["method"]):
        return None
    unbeaten_controls = [
        other
        for other in rows
        if is_control(other["method"])
        and _scored_alike(row, other)
        and beats(row["step_bytes"], row["kl"], other["step_bytes"], other["kl"]) is False
    ]
    return min(unbeaten_controls, key=lambda other: other["kl"], default=None)


def not_beating(rows: Sequence[Fields]) -> list[str]:
    """A sentence for every row of a sweep that does not beat a control."""
    pairs = [(row, control) for row in rows if (control := unbeaten(row, rows))]
    return [
        f"{row['method']} {row['settings']} at {row['precision']} does not beat the control {control['method']}: "
        f"KL {row['kl']:.3f} against {control['kl']:.3f} nats/token at no more bytes."
        for row, control in pairs
    ]


def _scored_alike(one: Fields, other: Fields) -> bool:
    return all(one[name] == other[name] for name in ("model", "precision", "tokens_sha256"))
