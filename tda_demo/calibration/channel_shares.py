"""What TEAL (arXiv 2408.14690) calibrates: how large each matrix's inputs are, and how to share sparsity out.

The search is the paper's greedy one, layer by layer on the dense model's inputs. Its cost is kept down by taking an
estimate of a step's error for what it was when last measured, until that step is about to be taken (steps get dearer
as others are taken, so the cheapest estimate that holds when measured again is the cheapest of all but for chance).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..model.feedforward import find_layers
from ..support.files import kept_name
from ..support.lazy import inference_mode, nn, torch
from ..support.progress import Progress, Report, silent
from .quantiles import SHARES, quantiles
from .sources import Source
from .tables import KeptTable, json_rows, significant

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

MOST = 0.9  # the sparsity of a matrix at which the search ends
_STEP = 0.1
_TEXTS, _TOKENS = 8, 48  # read, and counted of each; the search measures errors on the first two


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """By layer: ``magnitudes`` float64 [matrices, 101], quantiles of the inputs' magnitudes, and ``path`` float64
    [steps, matrices], the sparsities of its matrices as the search raised them, from 0 to ``MOST``; ``weights`` int64
    [matrices] are their sizes. Matrices are in the order of ``FeedForward.layer_linears``.
    """

    magnitudes: tuple[np.ndarray, ...]
    path: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]

    def limits(self, sparsity: float) -> list[np.ndarray]:
        """Float64 [matrices] a layer: thresholds that leave out the share ``sparsity`` of its weights on average."""
        return [
            _limits(shares_at(path, sizes, sparsity), magnitudes)
            for magnitudes, path, sizes in zip(self.magnitudes, self.path, self.weights, strict=True)
        ]


def shares_at(path: np.ndarray, weights: np.ndarray, sparsity: float) -> np.ndarray:
    """Sparsities float64 [matrices] at the place of ``path`` where the weights' mean is ``sparsity``."""
    totals = path @ (weights / weights.sum())
    return np.array([np.interp(sparsity, totals, of_matrix) for of_matrix in path.T])


def _limits(shares: np.ndarray, magnitudes: np.ndarray) -> np.ndarray:
    thresholds = [np.interp(share, SHARES, row) for share, row in zip(shares, magnitudes, strict=True)]
    return np.where(shares > 0, thresholds, -np.inf)


def greedy(error: Callable[[np.ndarray], float], weights: Sequence[int]) -> np.ndarray:
    """Raises sparsities from 0 to ``MOST`` a step at a time, the least ``error(shares)`` added per weight first.

    Float64 [steps + 1, matrices], the sparsities after every step.
    """
    shares, base = np.zeros(len(weights)), 0.0

    def raised(matrix: int) -> np.ndarray:
        return np.minimum(shares + _STEP * (np.arange(len(weights)) == matrix), MOST)

    estimates = [(error(raised(matrix)) / weights[matrix], matrix) for matrix in range(len(weights))]
    heapq.heapify(estimates)
    path = [shares]
    while estimates:
        _, matrix = heapq.heappop(estimates)
        raised_error = error(raised(matrix))
        price = (raised_error - base) / weights[matrix]
        if estimates and price > estimates[0][0]:
            heapq.heappush(estimates, (price, matrix))
            continue
        shares, base = raised(matrix), raised_error
        path.append(shares)
        if shares[matrix] < MOST - 1e-9:
            heapq.heappush(estimates, (price, matrix))
    return np.array(path)


def channel_table(lm: LoadedModel, source: Source, report: Report = silent) -> ChannelTable:
    """The model's table of ``source``: the one in the user's cache, else shipped, else measured now and kept."""
    weights = tuple(
        np.array([linear.in_features * linear.out_features for linear in b.layer_linears]) for b in lm.blocks
    )
    name = kept_name(lm.name, lm.fingerprint, lm.precision, source.name, "teal")
    table = KeptTable("thresholds", name, partial(_parse, weights), _text)
    return table.get(lambda: measure_channel_table(lm, weights, source, report))


def _text(table: ChannelTable) -> str:
    """A JSON list with a layer a line."""
    layers = zip(table.magnitudes, table.path, strict=True)
    rows = ({"magnitudes": magnitudes.tolist(), "path": path.tolist()} for magnitudes, path in layers)
    return f"{json_rows(rows)}\n"


def _parse(weights: tuple[np.ndarray, ...], layers: Any) -> ChannelTable:
    magnitudes = tuple(np.array(layer["magnitudes"], dtype=np.float64) for layer in layers)
    paths = tuple(np.array(layer["path"], dtype=np.float64) for layer in layers)
    for quantiles_of_matrices, path, sizes in zip(magnitudes, paths, weights, strict=True):
        if quantiles_of_matrices.shape != (len(sizes), len(SHARES)) or path.shape != (len(path), len(sizes)):
            raise ValueError("a layer has not one row of quantiles and one column of sparsities a matrix")
    return ChannelTable(magnitudes, paths, weights)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To what the file holds, so that the first use of a table is as every later one."""
    return np.array([significant(row, 5) for row in values])


@inference_mode
def measure_channel_table(
    lm: LoadedModel, weights: tuple[np.ndarray, ...], source: Source, report: Report = silent
) -> ChannelTable:
    """Reads a few texts of ``source`` and searches layer by layer."""
    ids, counts = _texts(lm, source, report)
    paths, magnitudes = [], []
    calls = _dense_calls(lm, ids[:2])
    inputs = _inputs(lm, ids, counts)
    for block, layer in zip(lm.blocks, find_layers(lm.model), strict=True):
        report(Progress("Sharing out the sparsity", block.layer, len(lm.blocks), "layers"))
        magnitudes.append(_rounded(np.stack([quantiles(values) for values in inputs[block.layer]])))
        error = _Error(layer, block.layer_linears, *calls[block.layer], magnitudes[-1])
        paths.append(_rounded(greedy(error, weights[block.layer].tolist())))
    report(Progress("Sharing out the sparsity", len(lm.blocks), len(lm.blocks), "layers"))
    return ChannelTable(tuple(magnitudes), tuple(paths), weights)


def _texts(lm: LoadedModel, source: Source, report: Report) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids int64 [texts, tokens], equally long, and which of them count, bool [texts, tokens]."""
    texts = source.texts(lm, report=report).texts
    long_enough = [text for text in texts if len(text.ids) >= text.begin + _TOKENS] or texts
    chosen = [long_enough[at] for at in np.linspace(0, len(long_enough) - 1, _TEXTS).astype(int)]
    length = min(min(len(text.ids), text.begin + _TOKENS) for text in chosen)
    ids = torch.tensor([text.ids[:length] for text in chosen], device=lm.device)
    begins = torch.tensor([text.begin for text in chosen], device=lm.device)
    return ids, torch.arange(length, device=lm.device) >= begins[:, None]


def _run(lm: LoadedModel, ids: torch.Tensor) -> None:
    lm.model(input_ids=ids, use_cache=False, logits_to_keep=1)


def _inputs(lm: LoadedModel, ids: torch.Tensor, counts: torch.Tensor) -> list[list[torch.Tensor]]:
    """Magnitudes of the inputs of every matrix of every layer at the tokens that count, float [T, channels]."""
    seen: list[list[torch.Tensor]] = [[] for _ in lm.blocks]

    def keep(into: list[torch.Tensor]) -> Callable[..., None]:
        return lambda _module, inputs: into.append(inputs[0].reshape(-1, inputs[0].shape[-1])[counts.flatten()].abs())

    with ExitStack() as hooks:
        for block in lm.blocks:
            for linear in block.layer_linears:
                hooks.callback(linear.register_forward_pre_hook(keep(seen[block.layer])).remove)
        _run(lm, ids)
    return seen


def _dense_calls(lm: LoadedModel, ids: torch.Tensor) -> list[tuple[Any, Any, torch.Tensor]]:
    """How every layer is called, and what it answers, float [texts, T, d]."""
    calls: list[tuple[Any, Any, torch.Tensor]] = []

    def keep(_layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args, kwargs, _hidden(output)))

    with ExitStack() as hooks:
        for layer in find_layers(lm.model):
            hooks.callback(layer.register_forward_hook(keep, with_kwargs=True).remove)
        _run(lm, ids)
    return calls


def _hidden(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


class _Error:
    """Mean over tokens of ``||y - y'|| / ||y||``, y the layer's output and y' that with given sparsities."""

    def __init__(
        self,
        layer: nn.Module,
        linears: Sequence[nn.Linear],
        args: Any,
        kwargs: Any,
        dense: torch.Tensor,
        magnitudes: np.ndarray,
    ) -> None:
        self.layer, self.linears, self.args, self.kwargs = layer, linears, args, kwargs
        self.dense, self.magnitudes = dense.float(), magnitudes
        self.norms = self.dense.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)

    def __call__(self, shares: np.ndarray) -> float:
        with ExitStack() as hooks:
            for linear, limit in zip(self.linears, _limits(shares, self.magnitudes).tolist(), strict=True):
                hooks.callback(linear.register_forward_pre_hook(_leaving_out(limit)).remove)
            output = _hidden(self.layer(*self.args, **self.kwargs)).float()
        return float(((output - self.dense).norm(dim=-1) / self.norms).mean())


def _leaving_out(limit: float) -> Callable[..., torch.Tensor]:
    return lambda _module, inputs: inputs[0] * (inputs[0].abs() > limit)
