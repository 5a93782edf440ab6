"""The Triton programs of what lies between a step's large products; import this only where ``device.has_triton``.

One token's sum and normalisation, rotary embedding and attention are each a handful of tiny operations in torch.
Captured in a graph they cost one to two microseconds apiece, which over all layers is as long as a third of the weights
takes. Here they are one launch each, attention with its embedding and cache two. Arithmetic is float32. Launches
overlap as those of the products do (``programs``).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# Triton reads these functions itself; as plain Python they would not type-check.

from __future__ import annotations

import triton
import triton.language as tl

from .programs import let_next_begin, wait_for_previous


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
    OVERLAP: tl.constexpr,
):
    """RMSNorm of one row of x [rows, WIDTH]; ``ADDED`` goes onto the weight: Gemma stores it less one.

    ``UPDATED``: of the row of x + update, which goes to ``total`` and is rounded as it is there.
    """
    let_next_begin(OVERLAP)
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    row = tl.program_id(0) * WIDTH
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32) + ADDED
    wait_for_previous(OVERLAP)
    values = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    if UPDATED:
        values += tl.load(update + row + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row + columns, rounded, mask=inside)
        values = rounded.to(tl.float32)
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
def _score(k, q, cap, CAPPED: tl.constexpr):
    """float32 [places]: keys [places, PADDED] times the scaled query [PADDED]."""
    score = tl.sum(k * q[None, :], axis=1)
    if CAPPED:
        score = cap * (1.0 - 2.0 / (tl.exp(2.0 * score / cap) + 1.0))
    return score


@triton.jit
def attend_program(
    query,
    key,
    value,
    cosine,
    sine,
    position,
    keys,
    values,
    mixed,
    highest,
    total,
    positions,
    scale,
    cap,
    GROUP: tl.constexpr,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    ROTARY: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    TILE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One head over one stretch of the positions it may see: weighted values, their highest score and weight sum.

    The last stretch takes in the token itself, whose rotated key and value the first head of a group puts into the
    cache. What lies there already is read before the launch before this one has ended. ``positions``, for which the
    cache has room, is no constant: a longer cache compiles nothing.
    """
    let_next_begin(OVERLAP)
    head, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    at = tl.load(position)
    begin = tl.maximum(at + 1 - WINDOW, 0) if WINDOW > 0 else at * 0
    first, last = begin + split * (at - begin) // splits, begin + (split + 1) * (at - begin) // splits
    j = tl.arange(0, PADDED)
    inside = j < HEAD
    kv = head // GROUP
    places = first + tl.arange(0, TILE)
    where = (kv * positions + places)[:, None] * HEAD + j[None, :]
    both = (places < last)[:, None] & inside[None, :]
    k, v = tl.load(keys + where, mask=both, other=0.0), tl.load(values + where, mask=both, other=0.0)
    wait_for_previous(OVERLAP)
    # Rounded as the cache and transformers' queries are.
    q = (
        _rotated(query + head * HEAD, cosine, sine, HEAD, PADDED, ROTARY).to(keys.dtype.element_ty).to(tl.float32)
        * scale
    )
    top = tl.full([], float("-inf"), tl.float32)
    weight_sum = tl.full([], 0.0, tl.float32)
    sums = tl.zeros([PADDED], tl.float32)
    for _ in range(first, last, TILE):
        valid = places < last
        score = tl.where(valid, _score(k.to(tl.float32), q, cap, CAPPED), float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=0))
        weights = tl.exp(score - higher)
        shrink = tl.exp(top - higher)
        sums = sums * shrink + tl.sum(weights[:, None] * v.to(tl.float32), axis=0)
        weight_sum = weight_sum * shrink + tl.sum(weights, axis=0)
        top = higher
        places += TILE
        where += TILE * HEAD
        both = (places < last)[:, None] & inside[None, :]
        k, v = tl.load(keys + where, mask=both, other=0.0), tl.load(values + where, mask=both, other=0.0)
    if split == splits - 1:
        own_key = _rotated(key + kv * HEAD, cosine, sine, HEAD, PADDED, ROTARY).to(keys.dtype.element_ty)
        own_value = tl.load(value + kv * HEAD + j, mask=inside, other=0.0)
        score = tl.max(_score(own_key.to(tl.float32)[None, :], q, cap, CAPPED), axis=0)
        higher = tl.maximum(top, score)
        weight, shrink = tl.exp(score - higher), tl.exp(top - higher)
        sums = sums * shrink + weight * own_value.to(tl.float32)
        weight_sum = weight_sum * shrink + weight
        top = higher
        if head % GROUP == 0:
            tl.store(keys + (kv * positions + at) * HEAD + j, own_key, mask=inside)
            tl.store(values + (kv * positions + at) * HEAD + j, own_value, mask=inside)
    part = head * splits + split
    tl.store(mixed + part * HEAD + j, sums, mask=inside)
    tl.store(highest + part, top)
    tl.store(total + part, weight_sum)


@triton.jit
def combine_program(
    mixed,
    highest,
    total,
    out,
    HEAD: tl.constexpr,
    PADDED: tl.constexpr,
    SPLITS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """out [heads, HEAD] from the stretches of one head; one that saw nothing has the score -inf and no weight."""
    let_next_begin(OVERLAP)
    head = tl.program_id(0)
    splits = tl.arange(0, SPLITS)
    j = tl.arange(0, PADDED)
    inside = j < HEAD
    wait_for_previous(OVERLAP)
    tops = tl.load(highest + head * SPLITS + splits)
    weights = tl.exp(tops - tl.max(tops, axis=0))
    parts = tl.load(mixed + (head * SPLITS + splits)[:, None] * HEAD + j[None, :], mask=inside[None, :], other=0.0)
    whole = tl.sum(weights * tl.load(total + head * SPLITS + splits), axis=0)
    value = tl.sum(parts * weights[:, None], axis=0) / whole
    tl.store(out + head * HEAD + j, value.to(out.dtype.element_ty), mask=inside)
