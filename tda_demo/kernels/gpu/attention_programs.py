"""The Triton programs of what lies between a step's large products; import this only where ``device.has_triton``.

One token's sum and normalisation, rotary embedding and attention are each a handful of tiny operations in torch.
Captured in a graph they cost one to two microseconds apiece, which over all layers is as long as a third of the weights
takes. Here they are one launch each, attention two. Arithmetic is float32.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_program(
    x,
    update,
    weight,
    total,
    out,
    epsilon,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ADDED: tl.constexpr,
    UPDATED: tl.constexpr,
):
    """RMSNorm of one row of x [rows, WIDTH]; ``ADDED`` goes onto the weight: Gemma stores it less one.

    ``UPDATED``: of the row of x + update, which goes to ``total`` and is rounded as it is there.
    """
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    row = tl.program_id(0) * WIDTH
    values = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    if UPDATED:
        values += tl.load(update + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row + columns, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + ADDED
    root = tl.sqrt(tl.sum(values * values, axis=0) / WIDTH + epsilon)
    tl.store(out + row + columns, (values / root * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rotated(head, cosine, sine, HEAD: tl.constexpr, PADDED: tl.constexpr, ROTARY: tl.constexpr):
    """Rotary embedding of float32 [PADDED], the head at ``head``: pairs (j, j + ROTARY / 2), the rest unchanged."""
    j = tl.arange(0, PADDED)
    turned = j < ROTARY
    partner = tl.where(j < ROTARY // 2, j + ROTARY // 2, j - ROTARY // 2)
    own = tl.load(head + j, mask=j < HEAD, other=0.0).to(tl.float32)
    other = tl.load(head + partner, mask=turned, other=0.0).to(tl.float32)
    c = tl.load(cosine + j, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sine + j, mask=turned, other=0.0).to(tl.float32)
    return own * c + tl.where(j < ROTARY // 2, -other, other) * s


@triton.jit
def place_program(
    query,
    key,
    value,
    cosine,
    sine,
    position,
    out,
    keys,
    values,
    positions,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROTARY: tl.constexpr,
):
    """Rotates queries into ``out`` [HEADS, HEAD] and keys into the cache, where values go as they are; a head each.

    ``positions``, for which the cache has room, is no constant: a longer cache compiles nothing.
    """
    head = tl.program_id(0)
    at = tl.load(position)
    j = tl.arange(0, PADDED)
    inside = j < HEAD
    if head < HEADS:
        turned = _rotated(query + head * HEAD, cosine, sine, HEAD, PADDED, ROTARY)
        tl.store(out + head * HEAD + j, turned.to(out.dtype.element_ty), mask=inside)
    elif head < HEADS + KV_HEADS:
        kv = head - HEADS
        turned = _rotated(key + kv * HEAD, cosine, sine, HEAD, PADDED, ROTARY)
        tl.store(keys + (kv * positions + at) * HEAD + j, turned.to(keys.dtype.element_ty), mask=inside)
    else:
        kv = head - HEADS - KV_HEADS
        plain = tl.load(value + kv * HEAD + j, mask=inside, other=0.0)
        tl.store(values + (kv * positions + at) * HEAD + j, plain, mask=inside)


@triton.jit
def attend_program(
    query,
    keys,
    values,
    position,
    mixed,
    highest,
    total,
    positions,
    scale,
    cap,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    TILE: tl.constexpr,
):
    """One head over one stretch of the positions it may see: weighted values, their highest score and weight sum."""
    head, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    end = tl.load(position) + 1
    begin = tl.maximum(end - WINDOW, 0) if WINDOW > 0 else end * 0
    first, last = begin + split * (end - begin) // splits, begin + (split + 1) * (end - begin) // splits
    j = tl.arange(0, PADDED)
    inside = j < HEAD
    q = tl.load(query + head * HEAD + j, mask=inside, other=0.0).to(tl.float32) * scale
    rows = head // GROUP * positions
    top = tl.full([], float("-inf"), tl.float32)
    weight_sum = tl.full([], 0.0, tl.float32)
    sums = tl.zeros([PADDED], tl.float32)
    for start in range(first, last, TILE):
        places = start + tl.arange(0, TILE)
        valid = places < last
        both = valid[:, None] & inside[None, :]
        where = (rows + places)[:, None] * HEAD + j[None, :]
        k = tl.load(keys + where, mask=both, other=0.0).to(tl.float32)
        v = tl.load(values + where, mask=both, other=0.0).to(tl.float32)
        score = tl.sum(k * q[None, :], axis=1)
        if CAPPED:
            score = cap * (1.0 - 2.0 / (tl.exp(2.0 * score / cap) + 1.0))
        score = tl.where(valid, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=0))
        weights = tl.exp(score - higher)
        shrink = tl.exp(top - higher)
        sums = sums * shrink + tl.sum(weights[:, None] * v, axis=0)
        weight_sum = weight_sum * shrink + tl.sum(weights, axis=0)
        top = higher
    part = head * splits + split
    tl.store(mixed + part * HEAD + j, sums, mask=inside)
    tl.store(highest + part, top)
    tl.store(total + part, weight_sum)


@triton.jit
def combine_program(mixed, highest, total, out, HEAD: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr):
    """out [heads, HEAD] from the stretches of one head; one that saw nothing has the score -inf and no weight."""
    head = tl.program_id(0)
    splits = tl.arange(0, SPLITS)
    j = tl.arange(0, PADDED)
    inside = j < HEAD
    tops = tl.load(highest + head * SPLITS + splits)
    weights = tl.exp(tops - tl.max(tops, axis=0))
    parts = tl.load(mixed + (head * SPLITS + splits)[:, None] * HEAD + j[None, :], mask=inside[None, :], other=0.0)
    whole = tl.sum(weights * tl.load(total + head * SPLITS + splits), axis=0)
    value = tl.sum(parts * weights[:, None], axis=0) / whole
    tl.store(out + head * HEAD + j, value.to(out.dtype.element_ty), mask=inside)
