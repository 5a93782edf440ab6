"""Claim 1, the root cause of sparsity: the loss gradient at positive activations.

The claim (arXiv 2406.12569, taken up in arXiv 2408.11393): for a positive activation p, E[dL/dp] > 0, so gradient
descent pushes positive activations down. ReLU lets them end at zero, SiLU and GELU near it.

Our reading:

* L is the next-token loss summed over a passage (nats), so dL/dp does not shrink with the passage's length.
* p is ``a``, the input of the down projection: the argument needs only that p multiplies an output column. In a GLU
  block it is measured at ``act(g)``, the output of the activation function, too: ``dL/d act(g) = u dL/da``.
* E is the mean over all positive entries of a layer. It is divided by the root mean square of dL/dp in that layer, so
  that layers can be compared; the table has the mean itself as well.
* The comparison is with zero, and beside it with negative activations: a gradient that is positive there as well would
  not be about positive activations.
* The argument's expectation is over random output weights, that is, over an untrained network. So the same is measured
  in untrained twins of the model (its configuration with fewer layers, its own initialisation) with SiLU, GELU, ReLU;
  every passage meets newly drawn blocks there, so that its interval is over weights and texts.

What falsifies it: intervals at or below zero in most layers. In a minimum of the loss ``sum_t a_tj dL/da_tj`` is zero
for every neuron (it is the gradient along the neuron's own output column), so in a trained model the claim cannot hold
for positive and negative activations alike unless the text is new to the model; weight decay makes that sum negative.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..methods.settings import Range
from ..model.configuration import activation_field, activation_name
from ..model.feedforward import find_blocks
from ..stats.estimates import LEAST_CLUSTERS, Estimate, mean, ratios
from ..support.errors import UserError
from ..support.lazy import torch
from ..support.progress import Progress, Report, silent
from .experiment import Claim, Experiment, NumberInput, number_setting, seed_setting
from .findings import Check, Finding, Table, columns
from .gradients import BINS, NEAR, REACH, Tally, gradient_scale, signals, stack_tallies, tally_layers
from .reading import Stopped, pieces, pieces_note, plain_ids
from .texts import english_passages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.loading import LoadedModel

TWINS = ("silu", "gelu", "relu")


@dataclass(frozen=True)
class RootCause(Experiment):
    """``passages`` texts of at most ``tokens`` tokens; ``twin_layers`` layers in each untrained twin, 0 for none."""

    name: ClassVar[str] = "root-cause"
    title: ClassVar[str] = "Root cause"
    summary: ClassVar[str] = "the loss gradient at positive activations"
    claim: ClassVar[Claim] = Claim(
        "Training makes activations sparse because the loss gradient at a positive activation is positive on average, "
        "E[dL/dp] > 0. Gradient descent so lowers positive activations: with ReLU they end at zero, with SiLU or GELU "
        "near it.",
        "The mean of dL/dp over positive activations lies above zero in most layers.",
        "L is the loss of the next token and p what a neuron gives: a = act(g) · u, which the down projection gets, or "
        "act(g) alone; g and u are the neuron's rows of gate and up times the block's input.",
    )
    duration: ClassVar[str] = "about half a minute on two cores"
    text_use: ClassVar[str] = "A text is cut into pieces, which take the place of the passages; 8 tokens or more."

    passages: int = number_setting(16, "texts to read", Range(LEAST_CLUSTERS, inf), NumberInput("Passages", 4, 32))
    tokens: int = number_setting(96, "of each text", Range(2, inf), NumberInput("Tokens of each", 8, 192))
    twin_layers: int = number_setting(
        2,
        "layers of the untrained models beside it, 0 for none",
        Range(0, inf),
        NumberInput("Layers of untrained models", 0, 4),
    )
    seed: int = seed_setting()

    def run(
        self,
        lm: LoadedModel,
        text: Sequence[str] | str | None = None,
        report: Report = silent,
        stop: threading.Event | None = None,
        on_point: Callable[[Any], None] | None = None,
    ) -> Finding:
        """Measures claim 1 on texts (default: the project's own passages), or on one text, cut into pieces.

        Raises:
            UserError: there are fewer than 4 texts with two tokens or more, or the one text is too short.
        """
        stop = stop or threading.Event()
        rows, notes = _rows(lm, self, text)
        measured = _measure(lm, rows, self, report, stop)
        finding = conclude(measured, lm.name, self, complete=not stop.is_set())
        return replace(finding, notes=(*notes, *finding.notes))


def _measure(
    lm: LoadedModel, rows: Sequence[torch.Tensor], settings: RootCause, report: Report, stop: threading.Event
) -> dict[str, dict[str, Tally]]:
    """The tallies of the loaded model and of its twins, by tensor; a model with too few passages is left out."""
    from ..decode.shared_model import share_weights

    names = [f"{activation_name(lm.model.config.get_text_config())}, as loaded"]
    names += [f"{name}, untrained" for name in TWINS] if settings.twin_layers else []
    total, done = len(rows) * len(names), 0
    measured: dict[str, dict[str, Tally]] = {}
    report(Progress("Root cause", 0, total, "passages"))
    for index, name in enumerate(names):
        if stop.is_set():  # a twin takes a second to make
            break
        model = share_weights(lm.model) if index == 0 else _twin(lm.model, TWINS[index - 1], settings)
        tallies: dict[str, list[Tally]] = {}
        for passage, ids in enumerate(rows):
            if stop.is_set():
                break
            if index:
                _draw_blocks(model, settings.seed + passage)
            try:
                by_tensor = signals(model, ids.to(lm.device), stop)
                counted = {tensor: tally_layers(layers, stop) for tensor, layers in by_tensor.items()}
            except Stopped:
                break
            for tensor, sums in counted.items():
                tallies.setdefault(tensor, []).append(sums)
            done += 1
            report(Progress("Root cause", done, total, "passages"))
        measured[name] = {tensor: stack_tallies(passages) for tensor, passages in tallies.items()}
    return {
        name: tensors for name, tensors in measured.items() if tensors and len(tensors["a"].entries) >= LEAST_CLUSTERS
    }


def _rows(
    lm: LoadedModel, settings: RootCause, texts: Sequence[str] | str | None
) -> tuple[list[torch.Tensor], tuple[str, ...]]:
    """The passages, int64 [1, T] each, and what is to be said of them."""
    if isinstance(texts, str):
        cut = pieces(lm, texts, settings.passages, settings.tokens, LEAST_CLUSTERS, shortest=2)
        return [torch.tensor([ids]) for ids in cut], (pieces_note(len(cut), len(cut[0])),)
    encoded = [plain_ids(lm, text)[: settings.tokens] for text in texts or english_passages()]
    rows = [torch.tensor([ids]) for ids in encoded if len(ids) > 1][: settings.passages]
    if len(rows) < LEAST_CLUSTERS:
        raise UserError(f"{len(rows)} texts have two tokens or more; at least {LEAST_CLUSTERS} are needed.")
    return rows, ()


def conclude(
    measured: dict[str, dict[str, Tally]], model: str, experiment: RootCause, *, complete: bool = True
) -> Finding:
    """The finding from the tallies of each model, the loaded one first, by the tensor's name."""
    checks = [
        _check(f"E[dL/dp] > 0 at positive p = {tensor} ({name})", sums)
        for name, tensors in measured.items()
        for tensor, sums in tensors.items()
    ]
    notes = [_note(name, tensors["a"]) for name, tensors in measured.items()]
    tables = (_layer_table(measured), _histogram_table(measured))
    return experiment.finding(model, checks, notes, tables, complete=complete)


def _check(name: str, sums: Tally) -> Check:
    scale = gradient_scale(sums)
    bias = ratios(sums.positive_sum / scale, sums.positive)
    per_passage = sums.positive_sum / scale / np.maximum(sums.positive, 1)
    return Check(name, "layers", "passages", 0.0, tuple(bias), mean(per_passage.mean(axis=1)))


def _note(name: str, sums: Tally) -> str:
    raised = mean((sums.positive_raised / np.maximum(sums.positive, 1)).mean(axis=1))
    negative = mean((sums.negative_sum / gradient_scale(sums) / np.maximum(sums.negative, 1)).mean(axis=1))
    entries = sums.entries.sum()
    return (
        f"{name}: {_percent(raised)} of the positive activations have a positive gradient; at negative ones the mean "
        f"gradient is {negative.value:.3g} ({negative.low:.3g} to {negative.high:.3g}) of its root mean square; "
        f"{sums.zeros.sum() / entries:.1%} of the activations are exactly zero and {sums.near.sum() / entries:.1%} "
        f"below {NEAR:g} of the layer's root mean square, n = {raised.n} passages"
    )


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _layer_table(measured: dict[str, dict[str, Tally]]) -> Table:
    parts: list[dict[str, list]] = []
    for name, tensors in measured.items():
        for tensor, sums in tensors.items():
            layers = sums.entries.shape[1]
            scale = gradient_scale(sums)
            entries = sums.entries.sum(axis=0)
            parts.append(
                {
                    "model": [name] * layers,
                    "tensor": [tensor] * layers,
                    "layer": list(range(layers)),
                    **columns("mean dL/dp at p > 0, nats", ratios(sums.positive_sum, sums.positive)),
                    **columns("mean dL/dp at p > 0 / rms", ratios(sums.positive_sum / scale, sums.positive)),
                    **columns("mean dL/dp at p < 0 / rms", ratios(sums.negative_sum / scale, sums.negative)),
                    **columns("share of p > 0 with dL/dp > 0", ratios(sums.positive_raised, sums.positive)),
                    "share of positive entries": (sums.positive.sum(axis=0) / entries).tolist(),
                    "share of exact zeros": (sums.zeros.sum(axis=0) / entries).tolist(),
                    "share near zero": (sums.near.sum(axis=0) / entries).tolist(),
                }
            )
    keys = parts[0] if parts else {}
    return Table(
        "layers", "Gradient at positive activations", {key: [v for part in parts for v in part[key]] for key in keys}
    )


def _histogram_table(measured: dict[str, dict[str, Tally]]) -> Table:
    centres = (np.arange(BINS) + 0.5) * 2 * REACH / BINS - REACH
    shares = {
        f"{tensor}, {name}": (sums.histogram.sum(axis=(0, 1)) / sums.entries.sum()).tolist()
        for name, tensors in measured.items()
        for tensor, sums in tensors.items()
    }
    title = "Activations over all layers, in units of each layer's root mean square; what lies beyond is at the ends"
    return Table("histogram", title, {"activation / rms": centres.tolist(), **shares})


def _twin(model: PreTrainedModel, activation: str, settings: RootCause) -> PreTrainedModel:
    """An untrained model of the same configuration with few layers and another activation function."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(model.config.get_text_config())
    setattr(config, activation_field(config), activation)
    config.num_hidden_layers = settings.twin_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: settings.twin_layers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return twin.to(model.device).eval().requires_grad_(False)


def _draw_blocks(model: PreTrainedModel, seed: int) -> None:
    """Draws the weights of every feed-forward block anew, with the spread they have."""
    random = torch.Generator(model.device).manual_seed(seed)
    for linear in (linear for block in find_blocks(model) for linear in block.linears):
        linear.weight.normal_(0, float(linear.weight.std()), generator=random)
