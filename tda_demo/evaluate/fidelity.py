"""How true the neurons that a plan computes are to the dense model: realised CETT and mask recall.

Both look at the dense model's input and activations of a block, and at what the plan leaves out of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..methods.plan import Plan
from ..model.feedforward import FeedForward
from ..stats import metrics

ServedPlans = Sequence[tuple[Plan, int]]
"""Plans one after the other, each with the number of tokens that run under it."""


@dataclass(frozen=True, eq=False)
class Fidelity:
    """``cett`` (``realised_cett``) and ``recall`` (``mask_recall``) of one layer, float64 [texts]."""

    cett: torch.Tensor
    recall: torch.Tensor


def fidelity(block: FeedForward, x: torch.Tensor, a: torch.Tensor, served: ServedPlans) -> Fidelity:
    """Both figures, where ``x`` [texts, T, d] and ``a`` [texts, T, d_ff] are the dense model's."""
    return Fidelity(realised_cett(block, x, a, served), mask_recall(block, x, a, served))


def realised_cett(block: FeedForward, x: torch.Tensor, a: torch.Tensor, served: ServedPlans) -> torch.Tensor:
    """Mean over tokens of ``||lacking|| / ||y||``, y the block's output without its bias: float64 [texts].

    ``lacking`` is what the output lacks under the plan. A token whose output is zero counts as 0.
    """
    output = block.outputs_of(a).norm(dim=2)
    lacking = torch.cat([plan.missing_output(block, *tokens) for plan, tokens in _split(x, a, served)], dim=1)
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(output > 0, lacking.norm(dim=2) / output.clamp_min(tiny), 0.0).mean(dim=1).double().cpu()


def mask_recall(block: FeedForward, x: torch.Tensor, a: torch.Tensor, served: ServedPlans) -> torch.Tensor:
    """``metrics.mask_recall`` of every text, float64 [texts]."""
    masks = [
        plan.active(block, inputs, activations).expand_as(activations)
        for plan, (inputs, activations) in _split(x, a, served)
    ]
    contributions = (a.float().abs() * block.output_norms).cpu().numpy()
    texts = zip(contributions, torch.cat(masks, dim=1).cpu().numpy(), strict=True)
    return torch.tensor([1.0 if mask.all() else metrics.mask_recall(text, mask) for text, mask in texts]).double()


def _split(
    x: torch.Tensor, a: torch.Tensor, served: ServedPlans
) -> list[tuple[Plan, tuple[torch.Tensor, torch.Tensor]]]:
    """Every plan with the input and the activations of its tokens."""
    counts = [count for _, count in served]
    pieces = zip(x.split(counts, dim=1), a.split(counts, dim=1), strict=True)
    return [(plan, piece) for (plan, _), piece in zip(served, pieces, strict=True)]
