"""Plots as SVG text. Every label is escaped; numbers are the only thing that becomes a coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 44
COLOURS = ("#4269d0", "#d9822b", "#3a9a5b", "#a463b8", "#c0392b", "#6b7280")


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one name; ``notes`` are what a pointer resting on a point is told."""

    name: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()


def plot(series: Sequence[Series], x_label: str, y_label: str, *, lines: bool) -> str:
    """A plot with both axes, four ticks each, and a legend; ``lines`` joins the points. Empty without a point."""
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range([0.0, *(y for _, y in points)])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(HEIGHT - _BOTTOM - up, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    for step in range(5):
        x, y = x_low + (x_high - x_low) * step / 4, y_low + (y_high - y_low) * step / 4
        (at_x, bottom), (left, at_y) = place(x, y_low), place(x_low, y)
        parts.append(f'<text x="{at_x}" y="{bottom + 16}" text-anchor="middle">{x:.4g}</text>')
        parts.append(f'<text x="{left - 6}" y="{at_y + 4}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<line x1="{left}" x2="{WIDTH - _RIGHT}" y1="{at_y}" y2="{at_y}" class="grid"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{_LEFT}" y="11">{escape(y_label)}</text>')
    for index, each in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        placed = [place(*point) for point in each.points]
        if lines:
            path = " ".join(f"{x},{y}" for x, y in placed)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        notes = each.notes or [f"{x:.4g}, {y:.4g}" for x, y in each.points]
        parts += [
            f'<circle cx="{x}" cy="{y}" r="{2 if lines else 4}" fill="{colour}"><title>{escape(note)}</title></circle>'
            for (x, y), note in zip(placed, notes, strict=True)
        ]
        parts.append(
            f'<text x="{WIDTH - _RIGHT}" y="{_TOP + 14 * (index + 1)}" text-anchor="end" fill="{colour}">'
            f"{escape(each.name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
