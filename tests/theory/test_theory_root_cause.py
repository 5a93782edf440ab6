"""Claim 1: gradients against finite differences, verdicts against planted gradients."""

from __future__ import annotations

import threading
from typing import cast

import numpy as np
import pytest
import torch
from families import tiny_model
from tiny import tiny
from torch import nn

from tda_demo.model.feedforward import find_blocks
from tda_demo.model.loading import LoadedModel
from tda_demo.support.errors import UserError
from tda_demo.theory.gradients import Signals, signals, stack_tallies, tally, tally_layers
from tda_demo.theory.reading import Stopped
from tda_demo.theory.root_cause import RootCause, conclude

IDS = torch.tensor([[5, 9, 17, 30, 31, 44]])
TEXTS = [" ".join(f"w{3 + (start + 7 * step) % 90}" for step in range(9)) for start in range(6)]
STEP = 1e-2
SMALL = RootCause(passages=5, tokens=8, twin_layers=1)


def unpatched(lm: LoadedModel) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def loss(model: nn.Module) -> float:
    logits = model(input_ids=IDS).logits[0, :-1]
    return float(nn.functional.cross_entropy(logits, IDS[0, 1:], reduction="sum"))


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "opt", "gpt_neox"])
def test_gradient_at_the_down_projections_input(family: str) -> None:
    """Central differences; coarse ones, since RMSNorm computes in float32 whatever the model holds."""
    model = tiny_model(family, torch.float64)
    for block, layer in zip(find_blocks(model), signals(model, IDS)["a"], strict=True):
        assert layer.activations.shape == layer.gradients.shape == (5, block.d_ff)
        for token, neuron in ((0, 3), (2, 50), (4, 69)):
            ends = []
            for step in (STEP, -STEP):

                def nudge(
                    _module: nn.Module, inputs: tuple, step: float = step, t: int = token, j: int = neuron
                ) -> tuple:
                    nudged = inputs[0].clone()
                    nudged.view(-1, nudged.shape[-1])[t, j] += step
                    return (nudged,)

                handle = block.down.register_forward_pre_hook(nudge)
                ends.append(loss(model))
                handle.remove()
            assert float(layer.gradients[token, neuron]) == pytest.approx(
                (ends[0] - ends[1]) / (2 * STEP), rel=5e-3, abs=5e-4
            )


def test_the_way_back_breaks_off_between_layers() -> None:
    """It is twice as long as the way there; a passage of a large model takes seconds."""
    model, stop = tiny_model("llama"), threading.Event()
    reached = []

    def after_the_last(_module: object, _inputs: object, _output: object) -> None:
        reached.append(stop.set())

    model.get_output_embeddings().register_forward_hook(after_the_last)
    with pytest.raises(Stopped):
        signals(model, IDS, stop)
    assert len(reached) == 1
    stop.clear()
    model.get_output_embeddings()._forward_hooks.clear()
    layers = signals(model, IDS, stop)["a"]
    stop.set()
    with pytest.raises(Stopped):
        tally_layers(layers, stop)


@pytest.mark.parametrize(("family", "name"), [("llama", "act_fn"), ("phi3", "activation_fn"), ("gemma2", "act_fn")])
def test_gradient_at_the_activation_functions_output(family: str, name: str) -> None:
    model = tiny_model(family, torch.float64)
    block, layer = 1, signals(model, IDS)["act(g)"][1]
    function = cast(nn.Module, getattr(model.get_submodule(f"model.layers.{block}.mlp"), name))
    outputs: list[torch.Tensor] = []
    for token, neuron in ((1, 4), (3, 60)):
        ends = []
        for step in (STEP, -STEP):

            def nudge(_module: nn.Module, _inputs: tuple, output: torch.Tensor, step: float = step) -> torch.Tensor:
                outputs.append(output)
                nudged = output.clone()
                nudged[0, token, neuron] += step  # noqa: B023
                return nudged

            handle = function.register_forward_hook(nudge)
            ends.append(loss(model))
            handle.remove()
        assert float(layer.gradients[token, neuron]) == pytest.approx(
            (ends[0] - ends[1]) / (2 * STEP), rel=5e-3, abs=5e-4
        )
    torch.testing.assert_close(layer.activations, outputs[0][0, :-1].float())


def test_plain_blocks_have_one_tensor() -> None:
    assert list(signals(tiny_model("opt"), IDS)) == ["a"]


def test_tally_counts() -> None:
    activations = torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.001, 0.0]])
    gradients = torch.tensor([[0.5, 9.0, -3.0], [-0.1, 0.2, 7.0]])
    found = tally(Signals(activations, gradients))
    assert (found.entries, found.positive, found.negative, found.zeros, found.near) == (6, 3, 1, 2, 3)
    assert found.positive_sum == pytest.approx(0.6) and found.positive_raised == 2 and found.negative_sum == -3
    assert found.histogram.sum() == 6


@pytest.mark.parametrize(("planted", "outcome"), [(0.1, "supported"), (-0.1, "contradicted"), (0.0, "no effect")])
def test_verdict_is_what_was_planted(planted: float, outcome: str) -> None:
    """Gradients of unit spread with the planted mean at positive activations and none at the others."""
    random = torch.Generator().manual_seed(1)
    passages = []
    for _ in range(16):
        layers = []
        for _ in range(10):
            a = torch.randn(20, 40, generator=random)
            layers.append(tally(Signals(a, torch.randn(20, 40, generator=random) + planted * (a > 0))))
        passages.append(stack_tallies(layers))
    finding = conclude({"planted": {"a": stack_tallies(passages)}}, "planted", RootCause())
    assert finding.checks[0].outcome == outcome
    assert finding.checks[0].overall.value == pytest.approx(planted, abs=0.02)
    assert len(finding.tables[0].columns["layer"]) == 10


def test_it_measures_the_model_and_twins_and_leaves_the_model_alone(lm: LoadedModel) -> None:
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    finding = SMALL.run(lm, TEXTS)
    names = [check.name.partition("(")[2] for check in finding.checks]
    assert len(names) == 8 and finding.complete  # two tensors each of the model and three twins
    assert [len(check.estimates) for check in finding.checks] == [3, 3, *[1] * 6]
    histogram = finding.tables[1].columns
    assert sum(histogram["a, relu, untrained"]) == pytest.approx(1)
    zeros = dict(
        zip(finding.tables[0].columns["model"], finding.tables[0].columns["share of exact zeros"], strict=True)
    )
    assert zeros["silu, untrained"] == 0 and 0.3 < zeros["relu, untrained"] < 0.7
    assert unpatched(lm) and all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())
    assert SMALL.run(lm, TEXTS) == finding


def test_plain_models_and_bias_are_fine() -> None:
    assert len(SMALL.run(tiny("opt"), TEXTS).checks) == 4


def test_stop_keeps_what_was_measured(lm: LoadedModel) -> None:
    stop = threading.Event()
    finding = SMALL.run(lm, TEXTS, lambda progress: progress.done == 4 and stop.set(), stop)
    assert not finding.complete and finding.verdict.startswith("Stopped early. E[dL/dp]")
    assert {check.overall.n for check in finding.checks} == {4} and unpatched(lm)
    stopped = SMALL.run(lm, TEXTS, stop=stop)
    assert stopped.checks == () and "Stopped before" in stopped.verdict and unpatched(lm)


@pytest.mark.parametrize("wrong", [{"passages": 3}, {"tokens": 1}, {"twin_layers": -1}])
def test_settings_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        RootCause(**wrong)


def test_too_few_texts(lm: LoadedModel) -> None:
    with pytest.raises(UserError, match="2 texts have two tokens"):
        SMALL.run(lm, ["w3 w4", "w5 w6", "w7"])


def test_one_text_is_cut_into_pieces(lm: LoadedModel) -> None:
    finding = SMALL.run(lm, " ".join(TEXTS))  # 54 tokens; pieces come in even numbers
    assert {check.overall.n for check in finding.checks} == {4} and "4 pieces of 8 tokens" in finding.notes[0]
    assert {check.overall.n for check in SMALL.run(lm, TEXTS[0]).checks} == {4}
    with pytest.raises(UserError, match="Your text has 7 tokens; at least 8 are needed"):
        SMALL.run(lm, "w3 w4 w5 w6 w7 w8 w9")


def test_means_of_planted_layers_are_told_per_layer() -> None:
    random = torch.Generator().manual_seed(2)
    rows = [
        stack_tallies(
            [tally(Signals(torch.ones(9, 9), torch.randn(9, 9, generator=random) + mean)) for mean in (1.0, -1.0)]
        )
        for _ in range(8)
    ]
    (check,) = conclude({"m": {"a": stack_tallies(rows)}}, "m", RootCause()).checks
    assert (check.holds, check.opposite) == (1, 1)
    assert np.sign([each.value for each in check.estimates]).tolist() == [1, -1]
