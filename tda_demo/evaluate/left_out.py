"""What the neurons that a method leaves out would have added to a block's output: realised CETT and mask recall."""

from __future__ import annotations

import torch

from .. import metrics
from ..feedforward import FeedForward


def output_norms(block: FeedForward, a: torch.Tensor) -> torch.Tensor:
    """``||y||`` of every token, without the output bias: [batch, T, d_ff] -> float32 [batch, T]."""
    return (a.float() @ block.output_weight().T).norm(dim=2)


def tail(block: FeedForward, a: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The part in the output of the neurons that ``masks`` leave out: [batch, T, d_ff] -> float32 [batch, T, d]."""
    return (a.float() * ~masks) @ block.output_weight().T


def tail_of_sets(block: FeedForward, a: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The same for ``masks`` [batch, d_ff]: a set serves a whole text, so only what it leaves out is multiplied."""
    weight = block.output_weight()
    return torch.stack([each[:, ~mask].float() @ weight[:, ~mask].T for each, mask in zip(a, masks, strict=True)])


def left_out(
    block: FeedForward, a: torch.Tensor, lacking: torch.Tensor, output: torch.Tensor, masks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Realised CETT and mask recall of each text's scored tokens, float64 [batch].

    ``a`` [batch, scored, d_ff] are the dense activations, ``lacking`` [batch, scored, d] what the output lacks,
    ``output`` float32 [batch, scored] norms, ``masks`` bool [batch, d_ff] or [batch, scored, d_ff].
    """
    found = [_of_text(block, *each) for each in zip(a, lacking, output, masks, strict=True)]
    cett, recall = (torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True))
    return cett, recall


def _of_text(
    block: FeedForward, a: torch.Tensor, lacking: torch.Tensor, output: torch.Tensor, mask: torch.Tensor
) -> tuple[float, float]:
    """The same of one text, all less their first dimension."""
    if mask.all() and not lacking.any():
        return 0.0, 1.0
    error = lacking.norm(dim=1)
    cett = torch.where(output > 0, error / output.clamp_min(torch.finfo(torch.float32).tiny), 0.0).mean()
    contributions = a.float().abs() * block.output_norms
    return float(cett), metrics.mask_recall(contributions.cpu().numpy(), mask.cpu().numpy())
