"""Activations, the loss gradient at them, and what is counted of both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..model.configuration import activation_function
from ..model.feedforward import FeedForward, find_blocks
from ..support.lazy import nn, torch
from .reading import Stopped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Hook = Callable[..., None]
NEAR = 0.1  # an activation is near zero below this share of its layer's root mean square
REACH, BINS = 3.0, 60  # of the histogram, in units of the layer's root mean square


@dataclass(frozen=True, eq=False)
class Signals:
    """One layer on one passage: activations and the loss gradient at them, float32 [tokens, d_ff]."""

    activations: torch.Tensor
    gradients: torch.Tensor


@dataclass(frozen=True, eq=False)
class Tally:
    """Sums over the entries of one layer and passage; float64 throughout, stacked to [passages, layers]."""

    entries: np.ndarray
    positive: np.ndarray  # entries above zero
    positive_sum: np.ndarray  # of the gradient at them
    positive_raised: np.ndarray  # how many of them have a gradient above zero
    negative: np.ndarray
    negative_sum: np.ndarray
    gradient_squares: np.ndarray
    activation_squares: np.ndarray
    zeros: np.ndarray
    near: np.ndarray
    histogram: np.ndarray  # [passages, layers, bins]


def signals(model: PreTrainedModel, ids: torch.Tensor, stop: threading.Event | None = None) -> dict[str, list[Signals]]:
    """Activations and gradients of every layer on one passage ``ids`` int64 [1, T], by the tensor's name.

    ``a`` is the input of the down projection; in GLU blocks ``act(g)`` is the activation function's output. The last
    token predicts nothing, so T - 1 tokens are kept.

    Raises:
        Stopped: ``stop`` was set.
    """
    blocks = find_blocks(model)
    activation = activation_function(model)
    inputs: dict[tuple[int, str], torch.Tensor] = {}
    handles = list(_taps(blocks, inputs, stop or threading.Event()))
    try:
        with torch.enable_grad():
            embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
            logits = model(inputs_embeds=embeddings, use_cache=False).logits[0, :-1].float()
            loss = nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            activations = [inputs[block.layer, "a"] for block in blocks]
            gradients = torch.autograd.grad(loss, activations)
    finally:
        for handle in handles:
            handle.remove()
    by_tensor: dict[str, list[Signals]] = {"a": []}
    for block, a, gradient in zip(blocks, activations, gradients, strict=True):
        width = block.d_ff
        gradient = gradient.reshape(-1, width)[: ids.shape[1] - 1].float()
        by_tensor["a"].append(Signals(a.detach().reshape(-1, width)[: len(gradient)].float(), gradient))
        if (block.layer, "gate") in inputs:
            gate, up = (inputs[block.layer, part].reshape(-1, width)[: len(gradient)] for part in ("gate", "up"))
            by_tensor.setdefault("act(g)", []).append(Signals(activation(gate).float(), up.float() * gradient))
    return by_tensor


def tally(layer: Signals) -> Tally:
    """The sums of one layer on one passage, each a scalar array but the histogram."""
    values, gradients = layer.activations, layer.gradients
    above, below = values > 0, values < 0
    squares = values.square().sum(dtype=torch.float64)
    scale = float((squares / values.numel()).sqrt()) or 1.0
    bins = torch.histc((values / scale).clamp(-REACH, REACH), BINS, -REACH, REACH)
    sums = (
        above.sum(),
        (gradients * above).sum(dtype=torch.float64),
        (above & (gradients > 0)).sum(),
        below.sum(),
        (gradients * below).sum(dtype=torch.float64),
        gradients.square().sum(dtype=torch.float64),
        squares,
        (values == 0).sum(),
        (values.abs() < NEAR * scale).sum(),
    )
    counts = [np.asarray(float(total)) for total in (values.numel(), *sums)]
    return Tally(*counts, bins.double().cpu().numpy())  # pyright: ignore[reportCallIssue]


def tally_layers(layers: Sequence[Signals], stop: threading.Event | None = None) -> Tally:
    """The sums of every layer on one passage, arrays [layers].

    Raises:
        Stopped: ``stop`` was set.
    """
    tallies = []
    for layer in layers:
        if stop is not None and stop.is_set():
            raise Stopped
        tallies.append(tally(layer))
    return stack_tallies(tallies)


def stack_tallies(tallies: list[Tally]) -> Tally:
    return Tally(*(np.stack([getattr(one, field) for one in tallies]) for field in Tally.__dataclass_fields__))


def gradient_scale(sums: Tally) -> np.ndarray:
    """Root mean square of the gradient, float64 [layers]; 1 where it is all zero."""
    scale = np.sqrt(sums.gradient_squares.sum(axis=0) / sums.entries.sum(axis=0))
    return np.where(scale > 0, scale, 1)


def _taps(
    blocks: Sequence[FeedForward], seen: dict[tuple[int, str], torch.Tensor], stop: threading.Event
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks that keep ``a`` with its graph, and ``gate`` and ``up`` of GLU blocks without."""

    def look(_gradient: torch.Tensor | None = None) -> None:
        if stop.is_set():
            raise Stopped

    def take_input(layer: int) -> Hook:
        def take(_module: nn.Module, inputs: tuple) -> None:
            look()
            inputs[0].register_hook(look)  # the way back is twice as long as the way there
            seen[layer, "a"] = inputs[0]

        return take

    def take_output(layer: int, part: str, rows: slice) -> Hook:
        return lambda _module, _inputs, output: seen.__setitem__((layer, part), output.detach()[..., rows])

    for block in blocks:
        yield block.down.register_forward_pre_hook(take_input(block.layer))
        if block.gate is not None:
            for part, projection in (("gate", block.gate), ("up", block.up)):
                hook = take_output(block.layer, part, projection.rows)
                yield projection.linear.register_forward_hook(hook)
