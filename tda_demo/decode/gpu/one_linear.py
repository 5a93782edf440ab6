"""Linears that read the same input as one product, without a second copy of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def one_linear(linears: Sequence[nn.Linear]) -> nn.Linear | None:
    """A linear whose outputs are those of ``linears`` one after the other, or None where they are not plain ones.

    Its weight is one tensor, which theirs become views of, in place: for all modules that share them.
    """
    weights, biases = [each.weight for each in linears], [each.bias for each in linears]
    if any(type(each) is not nn.Linear for each in linears) or len({bias is None for bias in biases}) > 1:
        return None
    with torch.device("meta"):
        made = nn.Linear(weights[0].shape[1], sum(map(len, weights)), bias=False)
    made.weight = nn.Parameter(_stacked(weights), requires_grad=False)
    if biases[0] is not None:
        made.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return made


def _stacked(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """``weights`` [rows, d] as one contiguous [sum of rows, d], which they are views of afterwards or were before."""
    if _lie_in_a_row(weights):
        first = weights[0].detach()
        return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


def _lie_in_a_row(weights: Sequence[torch.Tensor]) -> bool:
    first = weights[0]
    at = first.storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and weight.is_contiguous() and weight.storage_offset() == at):
            return False
        at += weight.numel()
    return True
