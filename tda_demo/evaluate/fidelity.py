"""What the neurons that a plan leaves out would have added to a block's output: realised CETT and mask recall."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..methods.plan import Plan
from ..model.feedforward import FeedForward
from ..stats import metrics

Stretches = Sequence[tuple[Plan, int]]
"""Plans one after the other, each with the number of tokens that ran under it."""


def realised_cett(block: FeedForward, x: torch.Tensor, a: torch.Tensor, stretches: Stretches) -> torch.Tensor:
    """Mean over tokens of ``||lacking|| / ||y||``, y the block's output without its bias: float64 [texts].

    ``x`` [texts, T, d] and ``a`` [texts, T, d_ff] are the dense model's. A token whose output is zero counts as 0.
    """
    output = (a.float() @ block.output_weight().T).norm(dim=2)
    error = lacking(block, x, a, stretches).norm(dim=2)
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(output > 0, error / output.clamp_min(tiny), 0.0).mean(dim=1).double().cpu()


def lacking(block: FeedForward, x: torch.Tensor, a: torch.Tensor, stretches: Stretches) -> torch.Tensor:
    """What the block's output lacks, float32 [texts, T, d]."""
    return torch.cat([plan.lacking(block, *part) for plan, part in _parts(x, a, stretches)], dim=1)


def mask_recall(block: FeedForward, x: torch.Tensor, a: torch.Tensor, stretches: Stretches) -> torch.Tensor:
    """``metrics.mask_recall`` of every text, float64 [texts]."""
    masks = torch.cat([plan.active(block, *part).expand_as(part[1]) for plan, part in _parts(x, a, stretches)], dim=1)
    contributions = (a.float().abs() * block.output_norms).cpu().numpy()
    texts = zip(contributions, masks.cpu().numpy(), strict=True)
    return torch.tensor([1.0 if mask.all() else metrics.mask_recall(parts, mask) for parts, mask in texts]).double()


def _parts(
    x: torch.Tensor, a: torch.Tensor, stretches: Stretches
) -> list[tuple[Plan, tuple[torch.Tensor, torch.Tensor]]]:
    """Every plan with the input and the activations of its tokens."""
    lengths = [tokens for _, tokens in stretches]
    parts = zip(x.split(lengths, dim=1), a.split(lengths, dim=1), strict=True)
    return [(plan, part) for (plan, _), part in zip(stretches, parts, strict=True)]
