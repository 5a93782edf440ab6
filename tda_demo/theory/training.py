"""Claim 1 from the beginning: a small model trained from scratch, with ReLU and with SiLU.

The claim (arXiv 2406.12569, 2408.11393): gradient descent makes activations sparse, since E[dL/dp] > 0 for positive
activations p; with ReLU they end at zero, with SiLU small but not zero. Our reading: on text a run is not trained on,
the share of exact zeros (ReLU) and of activations near zero (below a tenth of the layer's root mean square; both) grows
from the first step to the last, and the mean of dL/dp over positive activations, averaged over training, is above zero.

Weight decay and dropout are off: nothing but the loss can make these models sparse. The null is the untrained model, in
which about half of ReLU's outputs are zero by symmetry. Intervals are over runs, each from a draw of its own of
weights, text, and the text it is measured on: passages of one run say how sure its numbers are, not what training does.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..methods.settings import Range
from ..stats.estimates import LEAST_CLUSTERS
from ..support.lazy import nn, torch
from ..support.progress import Progress, Report, silent
from .experiment import Claim, Experiment, NumberInput, number_setting, seed_setting
from .findings import Check, Finding, Table, check_above_zero
from .gradients import Tally, gradient_scale, signals, stack_tallies, tally_layers
from .root_cause import RootCause
from .texts import VOCABULARY, grammar_passages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FUNCTIONS = ("relu", "silu")
LAYERS, WIDTH, D_FF, LENGTH, BATCH = 3, 96, 384, 48, 32
_HELD_OUT = 8  # passages a run is measured on
_POINTS = 12  # measurements of a run, beside the one before it starts
_RATE = 2e-3
_WARM_UP = 20  # steps


@dataclass(frozen=True, eq=False)
class TrainingPoint:
    """One measurement of one run after ``step`` steps: float64 [passages, layers] each.

    ``zeros`` and ``near`` are shares of all activations; ``push`` is the mean of dL/dp over positive activations,
    divided by the root mean square of dL/dp in the layer; ``loss`` is in nats per token, float64 [passages].
    """

    function: str
    run: int
    step: int
    loss: np.ndarray
    zeros: np.ndarray
    near: np.ndarray
    push: np.ndarray


@dataclass(frozen=True)
class Training(Experiment):
    """``runs`` runs of ``steps`` steps for each activation function; run r of both begins from the same draw."""

    name: ClassVar[str] = "training"
    title: ClassVar[str] = "Training"
    summary: ClassVar[str] = "a small model from scratch, ReLU against SiLU"
    claim: ClassVar[Claim] = Claim(
        RootCause.claim.statement,
        "While the loss falls, exact zeros become more frequent with ReLU and activations near zero with SiLU, and the "
        "mean of dL/dp over positive activations is above zero.",
        "L is the loss of the next token, p what a neuron gives to the down projection.",
    )
    duration: ClassVar[str] = (
        "under two minutes on two cores; it trains models of its own, the one chosen above is not used"
    )
    uses_model: ClassVar[bool] = False

    steps: int = number_setting(150, "of each run", Range(1, inf), NumberInput("Steps of each run", 5, 600, 5))
    runs: int = number_setting(
        4,
        "of each activation function, from different seeds",
        Range(LEAST_CLUSTERS, inf),
        NumberInput("Runs of each function", 4, 8),
    )
    seed: int = seed_setting()

    def run(
        self,
        lm: Any = None,
        text: Sequence[str] | str | None = None,
        report: Report = silent,
        stop: threading.Event | None = None,
        on_point: Callable[[TrainingPoint], None] | None = None,
    ) -> Finding:
        """Trains the models one after the other; ``on_point`` is told every measurement as it is made."""
        stop = stop or threading.Event()
        points: list[TrainingPoint] = []
        for point in _points(self, report, stop):
            points.append(point)
            if on_point is not None:
                on_point(point)
        return conclude(points, self, complete=not stop.is_set())

    @classmethod
    def live_tables(cls, points: Sequence[TrainingPoint]) -> tuple[Table, ...]:
        return (curve(points),)


def _points(settings: Training, report: Report, stop: threading.Event) -> Iterator[TrainingPoint]:
    """The measurements of every run, each yielded before the run goes on."""
    done, total = 0, settings.steps * settings.runs * len(FUNCTIONS)
    measured_at = set(np.linspace(0, settings.steps, _POINTS + 1).round().astype(int).tolist())
    report(Progress("Training", 0, total, "steps"))
    for run in range(settings.runs):
        for function in FUNCTIONS:
            seed = settings.seed + 1 + run
            model = new_model(function, seed)
            draws = torch.Generator().manual_seed(seed)
            held_out = grammar_passages(_HELD_OUT, LENGTH, draws)
            optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0)
            for step in range(settings.steps + 1):
                if stop.is_set():
                    break
                if step in measured_at:
                    yield measure(model, held_out, function, run, step)
                if step < settings.steps:
                    for group in optimiser.param_groups:
                        group["lr"] = _rate(step, settings.steps)
                    loss = _loss(model, grammar_passages(BATCH, LENGTH, draws)).mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    done += 1
                    report(Progress("Training", done, total, "steps"))


def new_model(function: str, seed: int) -> PreTrainedModel:
    """An untrained transformer with plain blocks (arXiv 2204.06745's architecture), float32 on the CPU."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=D_FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act=function,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def measure(model: PreTrainedModel, held_out: torch.Tensor, function: str, run: int, step: int) -> TrainingPoint:
    """Loss, sparsity and gradients on ``held_out`` int64 [passages, LENGTH]."""
    sums = stack_tallies([tally_layers(signals(model, ids[None])["a"]) for ids in held_out])
    with torch.no_grad():
        loss = _loss(model, held_out).double().numpy()
    return TrainingPoint(function, run, step, loss, sums.zeros / sums.entries, sums.near / sums.entries, _push(sums))


def conclude(points: Sequence[TrainingPoint], experiment: Training, *, complete: bool = True) -> Finding:
    """The finding from the measurements; a run measured only once says nothing about training and is left out."""
    runs = {
        (point.function, point.run): [p for p in points if (p.function, p.run) == (point.function, point.run)]
        for point in points
    }
    runs = {key: measurements for key, measurements in runs.items() if len(measurements) > 1}
    checks: list[Check] = []
    for function in FUNCTIONS:
        of_function = [measurements for (name, _), measurements in runs.items() if name == function]
        if len(of_function) < LEAST_CLUSTERS:
            continue
        if function == "relu":
            checks.append(_check("Exact zeros become more frequent, relu", _growth(of_function, "zeros")))
        checks.append(_check(f"Activations near zero become more frequent, {function}", _growth(of_function, "near")))
        pushes = np.stack([np.mean([point.push for point in run], axis=(0, 1)) for run in of_function])
        checks.append(_check(f"E[dL/dp] > 0 at positive p during training, {function}", pushes))
    notes = [_note(function, run, measurements) for (function, run), measurements in runs.items()]
    model = f"{LAYERS} layers of {D_FF} neurons, trained here"
    return experiment.finding(model, checks, notes, [curve(points)], complete=complete)


def _check(name: str, values: np.ndarray) -> Check:
    """Whether ``values`` float64 [runs, layers] are above zero."""
    return check_above_zero(name, "layers", "runs", values)


def _growth(runs: list[list[TrainingPoint]], share: str) -> np.ndarray:
    """From the first measurement of a run to its last, float64 [runs, layers]."""
    return np.stack([(getattr(points[-1], share) - getattr(points[0], share)).mean(axis=0) for points in runs])


def _note(function: str, run: int, points: list[TrainingPoint]) -> str:
    first, last = points[0], points[-1]
    return (
        f"{function}, run {run + 1}, {last.step} steps: loss {first.loss.mean():.2f} to {last.loss.mean():.2f} "
        f"nats per token, exact zeros {first.zeros.mean():.1%} to {last.zeros.mean():.1%}, "
        f"near zero {first.near.mean():.1%} to {last.near.mean():.1%}"
    )


def curve(points: Sequence[TrainingPoint]) -> Table:
    """A row for every measurement and layer, means over the passages."""
    rows = [(point, layer) for point in points for layer in range(point.zeros.shape[1])]
    return Table(
        "curve",
        "Loss, sparsity and gradient while training",
        {
            "function": [point.function for point, _ in rows],
            "run": [point.run for point, _ in rows],
            "step": [point.step for point, _ in rows],
            "layer": [layer for _, layer in rows],
            "loss, nats per token": [float(point.loss.mean()) for point, _ in rows],
            "share of exact zeros": [float(point.zeros[:, layer].mean()) for point, layer in rows],
            "share near zero": [float(point.near[:, layer].mean()) for point, layer in rows],
            "mean dL/dp at p > 0 / rms": [float(point.push[:, layer].mean()) for point, layer in rows],
        },
    )


def _push(sums: Tally) -> np.ndarray:
    return sums.positive_sum / gradient_scale(sums) / np.maximum(sums.positive, 1)


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    return _RATE * min((step + 1) / _WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def _loss(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Next-token loss in nats, a mean per passage: float32 [passages]."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)
