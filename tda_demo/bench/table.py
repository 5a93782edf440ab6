"""The rows of the speed table, and the table as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

EVEN = (0.9, 1.02)
"""The efficiencies of two arms that weight bytes bound alike, run on kernels of the same quality."""
_MARK = "!"


@dataclass(frozen=True)
class BenchRow:
    """One line of the table; times are medians over the rounds' own medians.

    ``speedup`` is over the dense row of the same precision: the median of the ratios of ``n`` rounds, not the ratio of
    the two rows' times, with ``low`` and ``high`` its 95 % interval. ``read_share`` is the share of the measured read
    bandwidth, ``over_*`` the ratio of that engine's row's time to this one's.
    """

    engine: str
    precision: str
    method: str
    keep: float
    ms_per_token: float
    tokens_per_second: float
    gb_per_second: float
    read_share: float
    speedup: float | None
    low: float | None
    high: float | None
    byte_bound: float | None
    efficiency: float | None
    over_transformers: float | None
    over_llama_cpp: float | None
    n: int

    @property
    def is_even(self) -> bool:
        """Whether its efficiency, if it has one, is what two arms on kernels of the same quality have (``EVEN``)."""
        return self.efficiency is None or EVEN[0] <= self.efficiency <= EVEN[1]


def markdown(
    rows: Sequence[BenchRow], environment: dict[str, Any], gb_per_second: float, bandwidth: str = "read bandwidth"
) -> str:
    """The table with its machine named above it, every column with its unit; ``bandwidth`` says what was measured.

    Rows that are not even are marked, and below the table it is said why.
    """
    machine = environment.get("gpu") or environment["cpu"]
    rounds = max((row.n for row in rows), default=0)
    head = (
        f"{machine}, {environment['threads']} threads, torch {environment['torch']}; "
        f"measured {bandwidth} {gb_per_second:.1f} GB/s; over dense: median of the ratios of {rounds} rounds\n"
    )
    titles = (
        "engine",
        "precision",
        "neurons kept",
        "ms/token",
        "tokens/s",
        "GB/s",
        f"of {bandwidth}",
        "over dense (95 %)",
        "byte bound",
        "efficiency",
        "over transformers",
        "over llama.cpp",
    )
    lines = [_line(titles), _line(["---"] * len(titles)), *(_line(_cells(row)) for row in rows)]
    odd = [] if all(row.is_even for row in rows) else [_UNEVEN]
    return "\n".join([head, *lines, *odd])


_UNEVEN = (
    f"\n{_MARK} efficiency outside {EVEN[0]:.2f} to {EVEN[1]:.2f}: below, weight bytes are not what bounds the sparse "
    "arm; above, the dense arm's kernels are slower than the sparse arm's"
)


def _cells(row: BenchRow) -> list[str]:
    interval = "" if row.low is None else f" ({row.low:.2f}-{row.high:.2f})"
    return [
        row.engine,
        row.precision,
        f"{row.keep:.0%}",
        f"{row.ms_per_token:.2f}",
        f"{row.tokens_per_second:.1f}",
        f"{row.gb_per_second:.1f}",
        f"{row.read_share:.0%}",
        _times(row.speedup) + interval,
        _times(row.byte_bound),
        "" if row.efficiency is None else f"{row.efficiency:.2f}{'' if row.is_even else ' ' + _MARK}",
        _times(row.over_transformers),
        _times(row.over_llama_cpp),
    ]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
