"""The sizes of the low-bit format (``q4``), which its compiled loops are made for."""

from __future__ import annotations

GROUP = 32  # weights with one scale and one minimum
LEVELS = 15  # a group's steps
RECORD = 64  # columns
RECORD_BYTES = RECORD // 2 + 8
TILE = 32  # neurons
HALVES_BYTES = 4 * TILE  # of a tile: scales and minima of 32 columns
CODES_BYTES = TILE * GROUP // 2  # of a tile: codes of 32 columns
TILE_BYTES = HALVES_BYTES + CODES_BYTES  # for every 32 columns
X_ONE = 127  # of a rounded vector's largest
