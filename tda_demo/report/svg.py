"""Plots as SVG text. Every label is escaped; numbers are the only thing that becomes a coordinate.

A heatmap holds its cells as a PNG of small whole numbers: exact, in a few kilobytes (https://www.w3.org/TR/png-3/).
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 22, 44
# Each is legible on white and on near black.
COLOURS = (
    "#4a78b8",
    "#d0752b",
    "#2f9a86",
    "#a463b8",
    "#8a8f98",
    "#d6408f",
    "#7c8b1d",
    "#cf3b3b",
    "#1f9fc4",
    "#4fa33a",
    "#8a6a4f",
    "#6f6fe8",
)
_SHAPES = {
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M-3.5-3.5h7v7h-7z",
    "diamond": "M0-5l5 5-5 5-5-5z",
    "triangle-up": "M0-5l5 8.5h-10z",
    "triangle-down": "M0 5l5-8.5h-10z",
    "cross": "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
}


_CIVIDIS = (
    (0x00, 0x22, 0x4E),
    (0x35, 0x45, 0x6C),
    (0x66, 0x69, 0x70),
    (0x94, 0x8E, 0x77),
    (0xC8, 0xB8, 0x66),
    (0xFE, 0xE8, 0x38),
)


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one name; ``notes`` are what a pointer resting on a point is told, ``shape`` '' shows none.

    ``band`` are the ends (low, high) of an interval at every point, or nothing.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = COLOURS[0]
    notes: Sequence[str] = ()
    shape: str = "circle"
    joined: bool = True
    band: Sequence[tuple[float, float]] = ()


def legend(series: Sequence[Series]) -> str:
    """What each series looks like, as a list."""
    entries = "".join(f"<li>{_sample(line)}{escape(line.name)}</li>" for line in series)
    return f'<ul class="legend">{entries}</ul>'


def plot(series: Sequence[Series], x_label: str, y_label: str, zero: bool = True) -> str:
    """A plot with both axes, five ticks each, at whole numbers where all x are; ``zero`` lets y begin there. Empty
    without a point."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    x_low, x_high = _range([x for x, _ in points])
    ends = [end for line in series for pair in line.band for end in pair]
    y_low, y_high = _range([*([0.0] if zero else []), *(y for _, y in points), *ends])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(HEIGHT - _BOTTOM - up, 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    ticks = [x_low + (x_high - x_low) * step / 4 for step in range(5)]
    if all(float(x).is_integer() for x in (x_low, *(x for x, _ in points))):
        ticks = sorted({round(x) for x in ticks})
    for x in ticks:
        at_x, bottom = place(x, y_low)
        anchor = "end" if x == ticks[-1] else "middle"
        parts.append(f'<text x="{at_x}" y="{bottom + 16}" text-anchor="{anchor}">{x:.4g}</text>')
    for step in range(5):
        y = y_low + (y_high - y_low) * step / 4
        left, at_y = place(x_low, y)
        parts.append(f'<text x="{left - 6}" y="{at_y + 4}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<line x1="{left}" x2="{WIDTH - _RIGHT}" y1="{at_y}" y2="{at_y}" class="grid"/>')
    parts.append(_titles(x_label, y_label))
    for line in series:
        placed = [place(*point) for point in line.points]
        if line.band:
            lows, highs = (
                [(x, pair[end]) for (x, _), pair in zip(line.points, line.band, strict=True)] for end in (0, 1)
            )
            outline = " ".join("{},{}".format(*place(*point)) for point in (*lows, *reversed(highs)))
            parts.append(f'<polygon points="{outline}" fill="{line.colour}" fill-opacity="0.18"/>')
        if line.joined:
            path = " ".join(f"{x},{y}" for x, y in placed)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.5"/>')
        if line.shape:
            notes = line.notes or [f"{line.name}: {x:.4g}, {y:.4g}" for x, y in line.points]
            parts += [
                f'<path d="{_SHAPES[line.shape]}" transform="translate({x} {y})" fill="{line.colour}">'
                f"<title>{escape(note)}</title></path>"
                for (x, y), note in zip(placed, notes, strict=True)
            ]
    return "".join([*parts, "</svg>"])


def useful_top(heights: Sequence[float]) -> float | None:
    """Where an axis had better end, so that a few hopeless points do not press all others flat; None: at the last."""
    if not heights:
        return None
    in_order = sorted(heights)
    enough = 2.5 * in_order[3 * len(in_order) // 4]
    return enough if 0 < enough < in_order[-1] / 1.5 else None


def bars(values: Sequence[float], notes: Sequence[str], x_label: str, y_label: str, colour: str) -> str:
    """A bar each of ``values``, 0..100, at 0, 1, 2 and so on."""
    step = (WIDTH - _LEFT - _RIGHT) / len(values)
    floor, tall = HEIGHT - _BOTTOM, HEIGHT - _TOP - _BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    for mark in (0, 25, 50, 75, 100):
        y = floor - tall * mark / 100
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{mark}</text>')
    for index, (value, note) in enumerate(zip(values, notes, strict=True)):
        x, height = _LEFT + step * index, tall * value / 100
        parts.append(
            f'<rect x="{x + 0.12 * step:.1f}" y="{floor - height:.1f}" width="{0.76 * step:.1f}" '
            f'height="{height:.1f}" fill="{colour}"><title>{escape(note)}</title></rect>'
        )
        if index % max(1, len(values) // 10) == 0:
            parts.append(f'<text x="{x + step / 2:.1f}" y="{floor + 16}" text-anchor="middle">{index}</text>')
    return "".join([*parts, _titles(x_label, y_label), "</svg>"])


def heatmap(
    values: np.ndarray, palette: np.ndarray, x_label: str, y_label: str, divider: tuple[int, str, str] | None = None
) -> str:
    """``values`` uint8 [rows, columns], indices into ``palette`` uint8 [colours, 3], row 0 on top.

    ``divider`` is a column before which a line is drawn, and what stands left and right of it.
    """
    rows, columns = values.shape
    wide, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">'
        f'<image x="{_LEFT}" y="{_TOP}" width="{wide}" height="{tall}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="{data_uri(values, palette)}"/>'
    ]
    parts += [
        f'<text x="{_LEFT - 6}" y="{_TOP + tall * (row + 0.5) / rows + 4:.1f}" text-anchor="end">{row}</text>'
        for row in range(0, rows, max(1, (rows + 3) // 5))
    ]
    if divider:
        column, left, right = divider
        x = _LEFT + wide * column / columns
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 14}" y2="{_TOP + tall}" stroke="currentColor"/>')
        parts.append(f'<text x="{x - 5:.1f}" y="{_TOP - 5}" text-anchor="end">{escape(left)}</text>')
        parts.append(f'<text x="{x + 5:.1f}" y="{_TOP - 5}">{escape(right)}</text>')
        y_label = ""
    return "".join([*parts, _titles(x_label, y_label), "</svg>"])


def _titles(x_label: str, y_label: str) -> str:
    return (
        f'<text x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="{_LEFT - 40}" y="13">{escape(y_label)}</text>'
    )


def _sample(series: Series) -> str:
    line = f'<line x1="-7" x2="7" y1="0" y2="0" stroke="{series.colour}" stroke-width="2"/>' if series.joined else ""
    mark = f'<path d="{_SHAPES[series.shape]}" fill="{series.colour}"/>' if series.shape else ""
    return f'<svg viewBox="-7 -7 14 14" aria-hidden="true">{line}{mark}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def cividis() -> np.ndarray:
    """256 colours from dark blue to yellow, uint8 [256, 3]: six of Cividis' own, and straight lines between them."""
    at = np.linspace(0, 255, len(_CIVIDIS))
    return np.stack([np.interp(np.arange(256), at, channel) for channel in np.array(_CIVIDIS).T], axis=1).astype(
        np.uint8
    )


def data_uri(values: np.ndarray, palette: np.ndarray) -> str:
    """``values`` uint8 [rows, columns], each an index into ``palette`` uint8 [colours, 3], as a ``data:`` address."""
    rows, columns = values.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), values], axis=1)  # every line begins with its filter: none
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette.tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    content = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
