"""The tiles that ``choice`` measures: few, cut for the width and the card."""

from __future__ import annotations

from .nf4 import columns_at_once

Stages = tuple[list[dict[str, int]], list[dict[str, int]]]
"""Tiles worth trying, as fields of ``Tiles``: for the launch of gate and up, then for that of down."""


def float_stages(width: int, processors: int) -> Stages:
    """Fields of ``Tiles`` at hidden size ``width`` on a card of so many multiprocessors.

    For gate and up, 8 to 64 KiB of bfloat16 reads are under way a program. With a program for every tile those beyond
    the active set start for nothing; else there are as many as the registers of a multiprocessor hold at once. For down
    the columns of a warp are 256, so that no sum crosses warps.
    """
    columns = _columns(width)
    first = [(4, 8, 0), (2, 4, 0), (1, 4, 0), (2, 4, 4), (1, 4, 9), (2, 8, 3), (4, 8, 2)]
    second = [(8, 1, 128), (16, 1, 64), (4, 1, 256), (8, 3, 128), (8, 1, 256)]
    return (
        [
            {"rows": rows, "columns": columns, "warps": warps, "programs": per_processor * processors}
            for rows, warps, per_processor in first
        ],
        [
            {
                "down_rows": rows,
                "down_columns": columns,
                "down_warps": max(1, columns // 256),
                "down_stages": stages,
                "splits": splits,
            }
            for rows, stages, splits in second
        ],
    )


def nf4_stages(width: int, processors: int) -> Stages:
    """The same for NF4; at 4096 columns a row of codes is 2 KiB and a program has 4 to 8 KiB under way."""
    columns = columns_at_once(width)
    first = [(*cut, held) for cut in [(4, 8, 0), (2, 4, 0), (1, 4, 0), (2, 4, 8)] for held in (False, True)]
    second = [(4, 1024, 4, 128), (8, 512, 4, 64), (4, 512, 2, 128), (8, 1024, 4, 64)]
    second += [(16, 1024, 8, 128), (8, 1024, 4, 256), (4, 1024, 4, 512), (8, 512, 4, 256)]
    return (
        [
            {"rows": rows, "columns": columns, "warps": warps, "programs": per_processor * processors, "held": held}
            for rows, warps, per_processor, held in first
        ],
        [
            {"down_rows": rows, "down_columns": min(wide, columns), "down_warps": warps, "splits": splits}
            for rows, wide, warps, splits in second
        ],
    )


def rest_stages(width: int, processors: int) -> Stages:
    """The same for blocks with a rest: what both halves can do, in as many registers as the larger one takes."""
    columns = _columns(width)
    first = [(*cut, held) for cut in [(4, 8, 0), (2, 4, 0), (1, 4, 0), (2, 4, 4), (2, 8, 3)] for held in (False, True)]
    second = [(8, 1, 128), (4, 1, 128), (4, 1, 256), (8, 1, 256), (8, 1, 64)]
    return (
        [
            {"rows": rows, "columns": columns, "warps": warps, "programs": per_processor * processors, "held": held}
            for rows, warps, per_processor, held in first
        ],
        [
            {
                "down_rows": rows,
                "down_columns": columns,
                "down_warps": max(1, columns // 256),
                "down_stages": stages,
                "splits": splits,
            }
            for rows, stages, splits in second
        ],
    )


def _columns(width: int) -> int:
    """The largest power of two up to 1024 that divides ``width``, so that no lane idles; 512 where it is small."""
    divisor = width & -width
    return min(1024, divisor) if divisor >= 256 else 512
