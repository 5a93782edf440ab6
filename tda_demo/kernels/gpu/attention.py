"""What lies between the large products of one decoded token: RMSNorm, rotary embedding and cache, attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .blocks import launch_options, next_power_of_two, triton_programs

_STRETCH, _SPLITS = 32, 64  # positions in a stretch where there is room, and stretches at most
_TILE = 16  # positions at once, at most


@dataclass(frozen=True)
class Heads:
    """The shape of an attention layer; ``window`` 0 sees all positions, ``cap`` 0 caps no scores."""

    heads: int
    kv_heads: int
    size: int
    scale: float
    window: int
    cap: float


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, added: float = 0.0) -> torch.Tensor:
    """RMSNorm over the last axis of contiguous ``x`` [..., d], times ``weight`` [d] + ``added``, in x's dtype."""
    out = torch.empty_like(x)
    _norm(x, None, weight, None, out, epsilon, added)
    return out


def add_rms_norm(
    x: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, epsilon: float, added: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` + ``update``, rounded to their dtype, and its RMSNorm, in one launch; see ``rms_norm``."""
    total, out = torch.empty_like(x), torch.empty_like(x)
    _norm(x, update, weight, total, out, epsilon, added)
    return total, out


def _norm(
    x: torch.Tensor,
    update: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    out: torch.Tensor,
    epsilon: float,
    added: float,
) -> None:
    width = x.shape[-1]
    programs = triton_programs("attention_programs")
    programs.norm_program[(x.numel() // width,)](
        x,
        update,
        weight,
        total,
        out,
        epsilon,
        WIDTH=width,
        PADDED=next_power_of_two(width),
        ADDED=added,
        UPDATED=update is not None,
        num_warps=8 if width > 1024 else 1,
        **launch_options(x.device),
    )


def attend(
    heads: Heads,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    position: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:
    """Attention [heads * size] of the token at ``position`` int64 [1], whose key and value are put into the cache.

    Args:
        query, key, value: contiguous, heads * size and kv_heads * size elements, before rotation.
        rotary: cosines and sines of the position, contiguous, as many elements as a head has rotated ones.
        keys, values: contiguous [1, kv_heads, positions, size]; one position is written, those before are read.
    """
    programs = triton_programs("attention_programs")
    positions, size = keys.shape[2], heads.size
    cosine, sine = rotary
    padded, options = next_power_of_two(size), launch_options(query.device)
    splits = min(_SPLITS, next_power_of_two(-(-positions // _STRETCH)))
    mixed = torch.empty(heads.heads, splits, size, device=query.device)
    highest, total = (torch.empty(heads.heads, splits, device=query.device) for _ in range(2))
    programs.attend_program[(heads.heads, splits)](
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
        heads.scale,
        heads.cap,
        GROUP=heads.heads // heads.kv_heads,
        HEAD=size,
        PADDED=padded,
        ROTARY=cosine.numel(),
        WINDOW=heads.window,
        CAPPED=heads.cap > 0,
        TILE=tile_of(padded, keys.element_size()),
        num_warps=1,  # which needs no barriers
        **options,
    )
    out = torch.empty(heads.heads * size, dtype=query.dtype, device=query.device)
    programs.combine_program[(heads.heads,)](
        mixed,
        highest,
        total,
        out,
        HEAD=size,
        PADDED=padded,
        SPLITS=splits,
        num_warps=combining_warps(padded, splits),
        **options,
    )
    return out


def tile_of(padded: int, element_bytes: int) -> int:
    """How many positions a program of ``attend_program`` takes at once, with heads ``padded`` to a power of two.

    Its one warp has the query and the sums in registers too: of a head twice as wide it can hold a quarter as many.
    """
    return max(1, min(_TILE, 2**19 // (padded**2 * element_bytes)))


def combining_warps(padded: int, splits: int) -> int:
    """The warps of ``combine_program``: one holds 4,096 numbers in its registers."""
    return max(1, padded * splits // 4096)
