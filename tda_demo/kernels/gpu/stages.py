"""The tiles that ``choice`` measures: few, cut for the width and the card."""

from __future__ import annotations

from .linear import LinearTiles

Stages = tuple[list[dict[str, int]], list[dict[str, int]]]
"""Tiles worth trying, as fields of ``Tiles``: for the launch of gate and up, then for that of down."""

LINEAR_TILES = tuple(LinearTiles(rows, warps) for rows, warps in ((4, 4), (4, 8), (1, 8), (1, 4), (8, 8)))


def float_stages(width: int, processors: int) -> Stages:
    """Fields of ``Tiles`` at hidden size ``width`` on a card of so many multiprocessors.

    For gate and up, a program reads whole rows, 16 KiB of bfloat16 a neuron at 4096 columns. With a program for every
    tile those beyond the active set start for nothing; else a multiprocessor has as many as its registers hold at once,
    each with the reads of its next tile under way. For down the columns of a warp are 256, 16 bytes a lane, so that no
    sum crosses warps.
    """
    first = [(1, 8, 4), (1, 4, 8), (1, 4, 4), (2, 8, 2), (1, 4, 0), (2, 8, 0)]
    second = [(4, 256, 1, 256), (4, 2048, 8, 256), (4, 1024, 4, 256), (8, 1024, 4, 128), (16, 256, 1, 128)]
    return _first(first, processors), _second(second, width)


def nf4_stages(width: int, processors: int) -> Stages:
    """The same for NF4, of which a neuron is a quarter of the bytes and its decoding the longer part.

    In down 16 bytes a lane are 1024 columns a warp; further warps have other rows. Where all neurons are computed, rows
    are outputs and warps share them.
    """
    first = [(2, 2, 4), (1, 2, 8), (2, 4, 4), (4, 8, 2), (2, 4, 0)]
    second = [(1, 1024, 1, 1024), (1, 1024, 1, 512), (4, 1024, 2, 256), (4, 1024, 4, 256), (8, 1024, 8, 128)]
    return _first(first, processors), _second(second, width)


def rest_stages(width: int, processors: int) -> Stages:
    """The same for blocks with a rest: what both halves can do, in as many registers as the larger one takes."""
    first = [(1, 4, 0), (2, 4, 0), (2, 8, 0), (1, 4, 4), (1, 4, 8), (2, 8, 2)]
    second = [(4, 1024, 4, 128), (4, 1024, 4, 256), (2, 1024, 2, 256), (8, 1024, 4, 128)]
    return _first(first, processors), _second(second, width)


def _first(cuts: list[tuple[int, int, int]], processors: int) -> list[dict[str, int]]:
    """Of rows, warps, and programs a multiprocessor."""
    return [
        {"rows": rows, "warps": warps, "programs": per_processor * processors} for rows, warps, per_processor in cuts
    ]


def _second(cuts: list[tuple[int, int, int, int]], width: int) -> list[dict[str, int]]:
    """Of rows, columns, warps and splits; fewer columns where ``width`` has no such power of two as a factor."""
    most = max(256, width & -width)
    return [
        {"down_rows": rows, "down_columns": min(columns, most), "down_warps": warps, "splits": splits}
        for rows, columns, warps, splits in cuts
    ]
