"""``rest=4bit``: what arms compute and count where neurons left out contribute what a low-bit copy of them says."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evidence import TOKENS
from families import FAMILIES
from parity import PROMPT_IDS, TOLERANCE, stored
from plain import plain_tda
from tiny import PROMPT, tiny
from transformers import DynamicCache

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.eager import EagerEngine
from tda_demo.evaluate.judge import Judge
from tda_demo.evaluate.result import quality
from tda_demo.evaluate.scoring import score_texts
from tda_demo.methods import GRIFFIN, METHODS, TDA, CoreInfer, Magnitude, Random
from tda_demo.methods.base import SequenceMethod
from tda_demo.model.loading import LoadedModel
from tda_demo.support.errors import UserError

PLAIN = ("opt", "gpt_neox")
WIDTH = 70
CLOSE = 2e-2  # of the logits' norm: kernels round activations times scales to int8
SPARSE: dict[str, Any] = {
    "tda": plain_tda(cett=0.4, online=True),
    "griffin": GRIFFIN(keep=0.3),
    "coreinfer": CoreInfer(0.3, 0.2, 1, 0),
    "random": Random(keep=0.3),
    "magnitude": Magnitude(keep=0.3),
}


def with_rest(method: Any, **more: Any) -> Any:
    return dataclasses.replace(method, rest="4bit", **more)


def rest_bytes(family: str) -> int:
    """Five bits a weight: of one or two rows of 32 columns, filled up to 64, and of a column of 32 outputs."""
    return ((1 if family in PLAIN else 2) * 64 + 32) * 5 // 8


def steps(lm: LoadedModel, plan: Any) -> torch.Tensor:
    """Logits of ``TOKENS`` after the prompt, from transformers under ``plan``."""
    cache = DynamicCache(config=lm.model.config)
    lm.model(input_ids=torch.tensor([PROMPT_IDS]), past_key_values=cache)
    with plan.on(lm.blocks):
        calls = [lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache) for token in TOKENS]
    return torch.cat([call.logits[0] for call in calls])


def test_every_sequence_level_method_has_it() -> None:
    kinds = {name for name, kind in METHODS.items() if issubclass(kind, SequenceMethod)}
    assert kinds == {*SPARSE, "prior"}  # which is measured on answers and keeps as fixed a set as magnitude


@pytest.mark.parametrize("precision", ["float32", "int8", "q4"])  # a rest does not look at the format
@pytest.mark.parametrize("family", FAMILIES)
def test_an_arm_computes_what_the_plan_says_and_counts_both_kinds_of_neurons(family: str, precision: str) -> None:
    lm = stored(tiny(family), precision)
    policy = with_rest(SPARSE["griffin"]).bind(lm)
    engine = engine_for(lm, policy)
    prefill = engine.prefill(PROMPT_IDS, policy)
    arm: Any = engine.sparse_arm(prefill, len(TOKENS))
    found = torch.stack([arm.step(token).clone() for token in TOKENS])
    expected = steps(lm, prefill.plan)
    close = max(CLOSE, TOLERANCE[precision])  # q4 products round what they multiply with to 8 bits
    assert (found - expected).norm() < close * expected.norm()
    assert arm.computed() == [21] * 3
    count = step_bytes(lm, policy)
    left_out = 3 * (WIDTH - 21) * (count.neurons[0].whole - rest_bytes(family))
    assert arm.weight_bytes == pytest.approx(engine.dense_arm(prefill, 1).weight_bytes - left_out, abs=1)
    judged = Judge(engine, [prefill]).read(TOKENS)[0]
    assert (judged.sparse_logits - expected).norm() < close * expected.norm()


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_makes_up_for_most_of_what_is_left_out(family: str, name: str) -> None:
    """The same sets, a smaller error in every layer, and a smaller KL; more bytes than without, fewer than dense."""
    lm = tiny(family)
    text = torch.tensor([[*PROMPT_IDS, *TOKENS], [*range(40, 52), *TOKENS]])
    skipping, resting = (each.bind(lm) for each in (SPARSE[name], with_rest(SPARSE[name])))
    without, with_ = score_texts(lm, [skipping, resting], text, len(PROMPT_IDS))
    for alone, made_up in zip(without, with_, strict=True):
        assert alone.kept == made_up.kept and alone.recall == made_up.recall
        layers = zip(alone.kept, alone.cett, made_up.cett, strict=True)
        assert all(rest < 0.3 * own or kept == WIDTH for kept, own, rest in layers)
        assert made_up.kl < 0.5 * alone.kl
    count = step_bytes(lm)
    few, some = quality(without, count, skipping), quality(with_, count, resting)
    assert few.step_bytes < some.step_bytes < count.dense
    left_out = 3 * WIDTH - sum(sum(each.kept) for each in with_) / 2
    assert some.step_bytes - few.step_bytes == pytest.approx(left_out * rest_bytes(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_output_lacks_is_what_a_block_gives_less(family: str) -> None:
    """In the first layer, whose input is the dense model's; of two texts at once."""
    lm = tiny(family)
    ids = torch.tensor([PROMPT_IDS, [*range(40, 52)]])
    reader = with_rest(GRIFFIN(keep=0.3)).bind(lm).reader()
    seen: list[torch.Tensor] = []
    block = lm.blocks[0]
    hooks = [
        block.linears[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].view(2, 12, -1))),
        block.down.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].view(2, 12, -1))),
    ]
    lm.model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    for each in lm.blocks:
        reader.see(each, *seen)  # of later layers nothing is asked
    plan: Any = reader.plan()

    def outputs() -> torch.Tensor:
        found: list[torch.Tensor] = []
        hook = block.down.register_forward_hook(lambda _module, _inputs, output: found.append(output.view(2, 12, -1)))
        lm.model(input_ids=ids)
        hook.remove()
        return found[0]

    dense = outputs()
    with plan.on(lm.blocks):
        sparse = outputs()
    missing = plan.missing_output(block, *seen)
    torch.testing.assert_close(dense - sparse, missing, rtol=1e-3, atol=1e-4)
    assert 0 < missing.norm() < 0.3 * plan.__class__(plan.masks).missing_output(block, *seen).norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "method", [TDA(cett=0), GRIFFIN(keep=1), CoreInfer(1, 0.2, 0, 0), Random(1), Magnitude(1)], ids=str
)
def test_the_zero_setting_needs_no_copy_and_is_exact(family: str, method: Any) -> None:
    lm = tiny(family)
    policy = with_rest(method).bind(lm)
    assert policy.rest is None and policy.rest_bytes == ()
    prompt = torch.tensor([PROMPT_IDS])

    def logits() -> torch.Tensor:
        cache = DynamicCache(config=lm.model.config)
        lm.model(input_ids=prompt, past_key_values=cache)
        return lm.model(input_ids=torch.tensor([[40]]), past_key_values=cache).logits

    dense = logits()
    with with_rest(method)(lm):
        assert torch.equal(logits(), dense)
    engine = engine_for(lm, policy)
    prefill = engine.prefill(PROMPT_IDS, policy)
    sparse, plain = engine.sparse_arm(prefill, 1), engine.dense_arm(prefill, 1)
    assert torch.equal(sparse.step(40), plain.step(40)) and sparse.weight_bytes == plain.weight_bytes


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("refresh", [0, 3])
def test_first_tokens_and_new_sets_pack_both_kinds(family: str, eager: bool, refresh: int) -> None:
    lm = tiny(family)
    method = with_rest(GRIFFIN(keep=0.3, first=2, refresh=refresh))
    policy = method.bind(lm)
    engine = EagerEngine(lm) if eager else engine_for(lm, policy)
    prefill = engine.prefill(PROMPT_IDS, policy)
    arm: Any = engine.sparse_arm(prefill, len(TOKENS))
    neuron = step_bytes(lm, policy).neurons[0].whole
    dense: Any = engine.dense_arm(prefill, 1).weight_bytes
    sparse = dense - 3 * 49 * (neuron - rest_bytes(family))
    packing = 3 * (21 * neuron + 49 * rest_bytes(family))
    expected = [
        dense,
        dense + packing,
        *([sparse, sparse, dense + packing, sparse, sparse] if refresh else [sparse] * 5),
    ]
    cache = DynamicCache(config=lm.model.config)
    with method(lm):
        lm.model(input_ids=torch.tensor([PROMPT_IDS]), past_key_values=cache)
        calls = [lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache) for token in TOKENS]
    (score,), _ = score_texts(lm, [policy, policy], torch.tensor([[*PROMPT_IDS, *TOKENS]]), len(PROMPT_IDS))
    for token, call, read in zip(TOKENS, calls, expected, strict=True):
        wanted = call.logits[0, -1]
        assert (arm.step(token) - wanted).norm() < CLOSE * wanted.norm()
        assert arm.weight_bytes == pytest.approx(read, abs=1)
    sets = 1 + (refresh > 0)
    assert score.copied == ((pytest.approx(sets * 21 / 7), pytest.approx(sets * 49 / 7)),) * 3
    assert quality([score], step_bytes(lm, policy), policy).step_bytes == pytest.approx(sum(expected) / 7)


@pytest.mark.parametrize("lacking", ["is_quantised", "is_offloaded"])
def test_a_model_without_its_weights_values_is_told_so_in_one_sentence(
    lacking: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = tiny()
    blocks: Any = [
        SimpleNamespace(layer_linears=(), **{"is_quantised": False, "is_offloaded": False, lacking: True}, d_ff=WIDTH)
    ] * 3
    lost = dataclasses.replace(lm, blocks=blocks)
    for method in (GRIFFIN(rest="4bit"), Random(rest="4bit"), plain_tda(online=True, rest="4bit")):
        with pytest.raises(UserError, match="A 4-bit copy is made from the weights' values") as raised:
            method.bind(lost)
        assert "\n" not in str(raised.value)
    assert GRIFFIN(keep=1, rest="4bit").bind(lost).rest is None  # what leaves nothing out needs none
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: lost)
    assert main(["race", PROMPT, "--method", "random", "--set", "rest=4bit"]) == 2
    told = capsys.readouterr()
    assert "4-bit copy" in told.err and told.err.count("\n") == 1 and told.out == ""
