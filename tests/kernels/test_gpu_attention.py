"""Attention of one token over a cache, against float64: heads of any width, caches of any length."""

from __future__ import annotations

import pytest
import torch
from gpu_device import DEVICE, DTYPES, ON_A_CARD, TOLERANCE, relative_error

from tda_demo.kernels.gpu.attention import Heads, attend

pytestmark = ON_A_CARD


def expected(heads: Heads, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Softmax over the positions it may see of rotated float64 ``query`` [heads, size] and keys [kv, seen, size]."""
    group = heads.heads // heads.kv_heads
    keys, values = (each.repeat_interleave(group, dim=0) for each in (keys, values))
    scores = torch.einsum("hd,htd->ht", query, keys) * heads.scale
    if heads.cap:
        scores = heads.cap * torch.tanh(scores / heads.cap)
    return torch.einsum("ht,htd->hd", scores.softmax(dim=1), values).flatten()


def turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of the first numbers of each head, float64."""
    part, rest = x[:, : len(cosine)], x[:, len(cosine) :]
    first, second = part.chunk(2, dim=1)
    return torch.cat([part * cosine + torch.cat([-second, first], dim=1) * sine, rest], dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "rotary", "room", "at", "window", "cap"),
    [
        (64, 64, 64, 0, 0, 0.0),  # the first token sees itself alone
        (80, 32, 256, 200, 0, 0.0),
        (96, 96, 1536, 1400, 0, 0.0),  # the most stretches there are
        (256, 256, 256, 130, 0, 30.0),
        (256, 256, 1280, 1279, 0, 0.0),
        (256, 256, 1280, 1100, 512, 50.0),
    ],
)
def test_attention_is_that_of_float64(
    size: int, rotary: int, room: int, at: int, window: int, cap: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(size + at)
    heads = Heads(heads=4, kv_heads=2, size=size, scale=size**-0.5, window=window, cap=cap)
    query, key, value = (torch.randn(count, size).to(DEVICE, dtype) for count in (4, 2, 2))
    keys, values = (torch.randn(1, 2, room, size).to(DEVICE, dtype) for _ in range(2))
    keys[:, :, at:], values[:, :, at:] = torch.nan, torch.nan  # not written yet
    angles = torch.rand(rotary // 2).repeat(2)
    cosine, sine = (each.to(DEVICE, dtype) for each in (angles.cos(), angles.sin()))
    position = torch.tensor([at], device=DEVICE)

    out = attend(heads, query, key, value, (cosine, sine), position, keys, values)

    tables = cosine.double(), sine.double()
    own_key, asking = (turned(each.double(), *tables).to(dtype) for each in (key, query))
    assert relative_error(keys[0, :, at], own_key) < TOLERANCE[dtype]
    assert torch.equal(values[0, :, at], value)
    assert keys[:, :, at + 1 :].isnan().all()
    first = max(0, at + 1 - window) if window else 0
    seen = [each[0, :, first : at + 1].double() for each in (keys, values)]
    assert relative_error(out, expected(heads, asking.double(), *seen)) < TOLERANCE[dtype]
