"""One matrix over methods and families: what every method promises."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import plain_tda
from tiny import PROMPT, tiny
from transformers import DynamicCache

import tda_demo
from tda_demo.calibration.sources import ANSWERS, PASSAGES, Source
from tda_demo.calibration.thresholds import ThresholdTable, calibrate, threshold_table
from tda_demo.decode.choose import engine_for
from tda_demo.evaluate.judge import Judge
from tda_demo.methods import (
    CATS,
    GRIFFIN,
    METHODS,
    TDA,
    TEAL,
    TT,
    CoreInfer,
    Magnitude,
    Method,
    Prior,
    Random,
    Sketch,
    make_method,
    method_named,
)
from tda_demo.model.hooks import observe
from tda_demo.model.loading import PRECISIONS, LoadedModel
from tda_demo.model.weights.embedded import NAME, WHEEL_SHA256
from tda_demo.support.errors import UserError

ZERO: dict[str, Method] = {
    "tda": TDA(cett=0),
    "tda weighted": TDA(cett=0, weighted=True),
    "griffin": GRIFFIN(keep=1),
    "coreinfer": CoreInfer(keep=1, exempt_first=0, exempt_last=0),
    "random": Random(keep=1),
    "magnitude": Magnitude(keep=1),
    "prior": Prior(keep=1),
    "sketch": Sketch(keep=1),
    "cats": CATS(keep=1),
    "tt": TT(cett=0),
    "teal": TEAL(sparsity=0),
}
HARD: dict[str, Method] = {
    "tda": plain_tda(cett=0.4),
    "tda uniform": plain_tda(cett=0.4, shape="uniform"),
    "tda online": plain_tda(cett=0.4, online=True),
    "tda weighted": plain_tda(cett=0.4, weighted=True),
    "griffin": GRIFFIN(keep=0.3),
    "coreinfer": CoreInfer(keep=0.3, exempt_first=1, exempt_last=1),
    "random": Random(keep=0.3),
    "magnitude": Magnitude(keep=0.3),
    "prior": Prior(keep=0.3),
    "sketch": Sketch(keep=0.3),
    "cats": CATS(keep=0.3),
    "tt": TT(cett=0.3),
    "teal": TEAL(sparsity=0.5),
}
TOKEN_LEVEL = ("sketch", "cats", "tt", "teal")
SEQUENCE_LEVEL = [name for name, method in HARD.items() if method.name not in TOKEN_LEVEL]
TRAINED = ("dejavu", "moefication")  # have a matrix of their own, in test_trained_methods

pytestmark = pytest.mark.usefixtures("little_text")


def test_every_method_has_a_public_name() -> None:
    public = {name: getattr(tda_demo, name) for name in tda_demo.__all__}
    assert set(METHODS.values()) <= set(public.values())
    assert all(found.__name__ == name for name, found in public.items())


def test_every_precision_has_a_table_of_its_own_and_the_embedded_model_has_one_at_each(
    lm: LoadedModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calibrate(lm, PASSAGES)

    def measured(lm: LoadedModel, source: Source, *, weighted: bool, report: object) -> ThresholdTable:
        return dataclasses.replace(found, precision=lm.precision, weighted=weighted, data=source.name)

    monkeypatch.setattr("tda_demo.calibration.thresholds.calibrate", measured)
    for precision in PRECISIONS:
        other = dataclasses.replace(lm, precision=precision)
        for source in (ANSWERS, PASSAGES):
            told = threshold_table(other, weighted=False, source=source)
            assert (told.precision, told.data) == (precision, source.name)
    monkeypatch.setattr("tda_demo.calibration.thresholds.calibrate", None)
    for source in (ANSWERS, PASSAGES):  # what int8 left there does not serve float32, nor one source the other
        told = threshold_table(lm, weighted=False, source=source)
        assert (told.precision, told.data) == ("float32", source.name)
        for precision in PRECISIONS:
            embedded = dataclasses.replace(lm, name=NAME, fingerprint=WHEEL_SHA256, precision=precision)
            for weighted in (False, True):
                told = threshold_table(embedded, weighted=weighted, source=source)
                assert (told.fingerprint, told.weighted, told.data) == (WHEEL_SHA256, weighted, source.name)


def logits_after_prompt(lm: LoadedModel) -> torch.Tensor:
    """Logits of the prompt's last token and of two steps after it."""
    cache = DynamicCache(config=lm.model.config)
    calls = [lm.prompt_ids(PROMPT), [40], [41]]
    return torch.cat([lm.model(input_ids=torch.tensor([ids]), past_key_values=cache).logits[0, -1:] for ids in calls])


def brute_force_set(lm: LoadedModel, layer: int, cett: float) -> list[int]:
    """TDA's online active set in float64: drop the weakest while the mean error stays within ``cett``."""
    seen: list[torch.Tensor] = []
    with observe(lm.blocks[layer : layer + 1], lambda _block, a: seen.append(a.double())):
        lm.model(input_ids=torch.tensor([lm.prompt_ids(PROMPT)]))
    activations, down = seen[0], lm.blocks[layer].down.weight.double()
    outputs = activations @ down.T
    scores = (activations.abs() / activations.norm(dim=1, keepdim=True)).square().mean(dim=0).sqrt()
    kept = scores.argsort().tolist()
    while True:
        dropped = torch.tensor(sorted(set(range(len(scores))) - set(kept[1:])))
        tail = activations[:, dropped] @ down[:, dropped].T
        if float((tail.norm(dim=1) / outputs.norm(dim=1)).mean()) > cett:
            return sorted(kept)
        kept = kept[1:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ZERO)
def test_zero_setting_gives_bit_equal_logits(family: str, name: str) -> None:
    lm = tiny(family)
    dense = logits_after_prompt(lm)
    with ZERO[name](lm):
        assert torch.equal(logits_after_prompt(lm), dense)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", HARD)
def test_prompt_is_dense_steps_are_sparse_and_the_model_is_restored(family: str, name: str) -> None:
    lm = tiny(family)
    before = copy.deepcopy(lm.model.state_dict())
    dense = logits_after_prompt(lm)
    with HARD[name](lm):
        sparse = logits_after_prompt(lm)
    assert torch.equal(sparse[0], dense[0])
    assert not torch.equal(sparse[1:], dense[1:])
    assert torch.equal(logits_after_prompt(lm), dense)
    after = lm.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_sparse_logits_are_those_of_a_model_with_the_dropped_neurons_zeroed(family: str) -> None:
    """The arm's packed copies against transformers itself, the dropped neurons' output columns set to zero."""
    lm = tiny(family)
    engine = engine_for(lm)
    prefill = engine.prefill(lm.prompt_ids(PROMPT), plain_tda(cett=0.4).bind(lm))
    step = engine.sparse_arm(prefill, 1).step(40)

    masked = tiny(family)
    cache = DynamicCache(config=masked.model.config)
    masked.model(input_ids=torch.tensor([masked.prompt_ids(PROMPT)]), past_key_values=cache)
    for block, active in zip(masked.blocks, prefill.active.indices, strict=True):
        dropped = torch.ones(block.d_ff, dtype=torch.bool).index_fill(0, active, False)
        block.down.weight[:, dropped] = 0
    expected = masked.model(input_ids=torch.tensor([[40]]), past_key_values=cache).logits[0, -1]
    assert 0 < sum(prefill.active.counts()) < sum(prefill.active.d_ff)
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_active_set_is_the_brute_force_one(family: str) -> None:
    lm = tiny(family)
    prefill = engine_for(lm).prefill(lm.prompt_ids(PROMPT), plain_tda(cett=0.3, online=True).bind(lm))
    for layer, active in enumerate(prefill.active.indices):
        assert active.tolist() == brute_force_set(lm, layer, 0.3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SEQUENCE_LEVEL)
def test_what_is_chosen_is_what_the_engine_computes_and_reads(family: str, name: str) -> None:
    """Sorted sets within the width, the same again from a new selector; as many activations; the bytes, by hand."""
    lm = tiny(family)
    engine = engine_for(lm)
    prefill, again = (engine.prefill(lm.prompt_ids(PROMPT), HARD[name].bind(lm)) for _ in range(2))
    counts = prefill.active.counts()
    assert 0 < sum(counts) < sum(prefill.active.d_ff)
    for block, indices, same in zip(lm.blocks, prefill.active.indices, again.active.indices, strict=True):
        assert indices.tolist() == sorted({*indices.tolist()} & {*range(block.d_ff)}) == same.tolist()
    assert prefill.fired.shape == (prefill.tokens, len(lm.blocks))
    assert (prefill.fired >= 0).all() and (prefill.fired <= 70).all() and prefill.fired.any()
    arm = engine.sparse_arm(prefill, 1)
    arm.step(40)
    assert [each.shape for each in arm.activations()] == [(1, count) for count in counts]
    plain = family in ("opt", "gpt_neox")
    neuron = (2 * 32 + 1 if plain else 3 * 32) * 4  # rows of float32, and the bias of a plain block's first matrix
    dropped = sum(prefill.active.d_ff) - sum(counts)
    assert engine.dense_arm(prefill, 1).weight_bytes - arm.weight_bytes == dropped * neuron


@pytest.mark.parametrize("name", HARD)
def test_restored_after_an_exception_inside(name: str) -> None:
    lm = tiny()
    dense = logits_after_prompt(lm)

    def fail_while_patched() -> None:
        with HARD[name](lm):
            logits_after_prompt(lm)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_patched()
    assert torch.equal(logits_after_prompt(lm), dense)


def test_restored_after_an_exception_inside_the_model(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = logits_after_prompt(lm)
    with plain_tda(cett=0.4, online=True)(lm):
        with pytest.raises(IndexError):
            lm.model(input_ids=torch.tensor([[10_000]]))
        logits_after_prompt(lm)
    assert torch.equal(logits_after_prompt(lm), dense)


def test_a_new_prompt_inside_the_context_runs_dense_again(lm: LoadedModel) -> None:
    dense = logits_after_prompt(lm)
    with plain_tda(cett=0.4, online=True)(lm):
        first, second = logits_after_prompt(lm), logits_after_prompt(lm)
    assert torch.equal(first, second) and torch.equal(second[0], dense[0])


def test_library_use_generates_with_the_patched_model(lm: LoadedModel) -> None:
    dense = lm.generate(PROMPT, max_new_tokens=12)
    with plain_tda(cett=0.6, online=True)(lm):
        sparse = lm.generate(PROMPT, max_new_tokens=12)
    with TDA(cett=0)(lm):
        assert lm.generate(PROMPT, max_new_tokens=12) == dense
    assert sparse.split()[0] == dense.split()[0]  # the first token is the dense prompt's


def test_batches_are_refused(lm: LoadedModel) -> None:
    with TDA(cett=0)(lm), pytest.raises(UserError, match="one sequence at a time"):
        lm.model(input_ids=torch.ones(2, 4, dtype=torch.long))


def test_exempt_layers_and_scale_zero_stay_dense(lm: LoadedModel) -> None:
    method = plain_tda(cett=0.5, online=True, exempt=(0,), scale=(1, 0, 1))
    active = engine_for(lm).prefill(lm.prompt_ids(PROMPT), method.bind(lm)).active
    sparsity = active.sparsity()
    assert sparsity[:2] == [0, 0] and sparsity[2] > 0


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(0, 3), cett=st.floats(0.05, 0.6))
def test_a_larger_threshold_keeps_a_subset(factor: float, cett: float) -> None:
    lm = tiny()
    ids = lm.prompt_ids(PROMPT)
    mild, hard = (
        engine_for(lm).prefill(ids, plain_tda(cett=cett, online=True, scale=(each,) * 3).bind(lm)).active
        for each in (factor, factor + 0.5)
    )
    assert all(set(b.tolist()) <= set(a.tolist()) for a, b in zip(mild.indices, hard.indices, strict=True))


def test_no_neuron_kept_still_decodes(lm: LoadedModel) -> None:
    method = plain_tda(cett=0.5, online=True, scale=(1e9,) * 3)
    engine = engine_for(lm)
    prefill = engine.prefill(lm.prompt_ids(PROMPT), method.bind(lm))
    assert prefill.active.counts() == [0, 0, 0]
    assert engine.sparse_arm(prefill, 1).step(40).isfinite().all()


def test_all_zero_activations_give_no_nan() -> None:
    lm = tiny("opt")
    for block in lm.blocks:
        block.up.weight.zero_()
        block.up.bias.fill_(-1)
    engine = engine_for(lm)
    prefill = engine.prefill(lm.prompt_ids(PROMPT), plain_tda(cett=0.2, online=True).bind(lm))
    assert engine.sparse_arm(prefill, 1).step(40).isfinite().all()
    assert Judge(engine, [prefill]).read([40, 41])[0].cett == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"cett": float("nan")}, "cett is nan; it must be a number from 0 to 0.7"),
        ({"cett": 0.75}, "cett is 0.75"),
        ({"cett": -0.1}, "cett is -0.1"),
        ({"scale": (1, float("nan"), 1)}, "scale is 1,nan,1"),
        ({"scale": (-1.0,)}, "scale is -1"),
        ({"scale": (float("inf"),)}, "scale is inf"),
        ({"exempt": (-1,)}, "exempt is -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings_: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TDA(**settings_)


def test_settings_that_do_not_fit_the_model_are_refused(lm: LoadedModel) -> None:
    with pytest.raises(UserError, match="scale has 2 factors; this model has 3 layers"):
        plain_tda(scale=(1, 1)).bind(lm)
    with pytest.raises(UserError, match="exempt names layer 7; this model has layers 0 to 2"):
        plain_tda(exempt=(7,)).bind(lm)


def test_every_method_explains_its_settings() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.__doc__
        assert all(field.metadata["explanation"] for field in dataclasses.fields(method))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_in_the_matrix_and_its_dial_is_a_setting(name: str) -> None:
    assert (name in ZERO and name in HARD) or name in TRAINED
    method, dial = METHODS[name], METHODS[name].dial
    (field,) = [each for each in dataclasses.fields(method) if each.name == dial.setting]
    assert dial.dense in field.metadata["within"] and dial.sparsest in field.metadata["within"]
    assert name in TRAINED or getattr(ZERO[name], dial.setting) == dial.dense


def test_a_method_is_made_by_name() -> None:
    assert all(method_named(name) is method for name, method in METHODS.items())
    assert make_method("tda", ["cett=0.3", "exempt=0,2"]) == TDA(cett=0.3, exempt=(0, 2))
    with pytest.raises(UserError, match=r"There is no method 'magic'; there are: tda, sketch, (.*, )prior\."):
        make_method("magic", ["cett=0.3"])
    with pytest.raises(UserError, match="'tda' has no setting 'keep'"):
        make_method("tda", ["keep=0.3"])
