"""The bytes that evaluation counts against those the arm of a race counts, method by method."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from parity import stored
from tiny import PROMPT, tiny

from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.cpu.compiled_step import CpuStepEngine, TokenArm
from tda_demo.decode.eager import EagerEngine
from tda_demo.evaluate import budget
from tda_demo.evaluate.result import quality
from tda_demo.evaluate.scoring import score_texts
from tda_demo.methods import CATS, METHODS, TEAL, TT, DejaVu, Method, MoEfication, Sketch
from tda_demo.methods.teal import ChannelPolicy
from tda_demo.methods.token import TokenPolicy
from tda_demo.model.loading import LoadedModel
from tda_demo.stats import metrics
from tda_demo.support.errors import UserError

pytestmark = pytest.mark.usefixtures("little_text")

TOKEN_LEVEL: dict[str, Method] = {
    "sketch": Sketch(keep=0.5),
    "cats": CATS(keep=0.5),
    "teal": TEAL(sparsity=0.5),
    "tt": TT(cett=0.3),
    "dejavu": DejaVu(keep=0.4, rank=8),
    "moefication": MoEfication(keep=0.4, size=8),
}
TOKENS = [40, 41, 17, 60, 33]


def bound_to(lm: LoadedModel, name: str) -> TokenPolicy:
    """TEAL with thresholds that are planted: looking for them takes longer than all the rest."""
    if name == "teal":
        return ChannelPolicy(lm, [np.full(len(block.layer_linears), 0.3) for block in lm.blocks])
    rule = TOKEN_LEVEL[name].bind(lm)
    assert isinstance(rule, TokenPolicy)
    return rule


def of_the_arm(lm: LoadedModel, rule: Any) -> tuple[float, float]:
    """Byte bound, and share of the MLP bytes, of an arm that decodes ``TOKENS``.

    A compiled arm that picks neurons counts those that the specification computes: its kernel, which takes long to
    compile for each precision and is compared with the specification elsewhere, does not run and is not made ready.
    """
    engine = engine_for(lm, rule)
    ids = lm.prompt_ids(PROMPT)
    prefill = engine.prefill(ids[:-1], rule)
    arm: Any
    running: Any
    if isinstance(engine, CpuStepEngine) and not isinstance(rule, ChannelPolicy):
        arm = TokenArm(engine, rule, prefill.tokens + len(TOKENS), prefill.cache)
        running = EagerEngine(lm).sparse_arm(prefill, len(TOKENS))
    else:
        arm = running = engine.sparse_arm(prefill, len(TOKENS))
    dense = engine.dense_arm(prefill, 1).weight_bytes
    read = []
    for token in (ids[-1], *TOKENS[:-1]):
        running.step(token)
        if running is not arm:
            arm._computed[:, 0] = running.computed()
            arm.position += 1
        read.append(arm.weight_bytes)
    assert dense is not None
    bound = metrics.byte_bound(dense, float(np.mean(read)))
    share = metrics.mlp_share_read(dense, bound, step_bytes(lm).mlp)
    assert share is not None
    return bound, share


def test_all_token_level_methods_are_here() -> None:
    found = {name for name, method in METHODS.items() if method.bind.__annotations__["return"] == "TokenPolicy"}
    assert found == set(TOKEN_LEVEL)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("precision", ["float32", "int8", "nf4"])
@pytest.mark.parametrize("name", TOKEN_LEVEL)
def test_the_bound_of_evaluation_is_the_arms(name: str, precision: str, family: str) -> None:
    lm = stored(tiny(family), precision)
    rule = bound_to(lm, name)
    ids = lm.prompt_ids(PROMPT)
    (scores,) = score_texts(lm, [rule], torch.tensor([[*ids, *TOKENS]]), len(ids))
    found = quality(scores, step_bytes(lm, rule), rule)
    bound, share = of_the_arm(lm, rule)
    assert min(found.sparsity) > 0.05
    # TEAL's kernel runs: a value on the threshold may fall on either side.
    assert found.byte_bound == pytest.approx(bound, rel=2e-3 if name == "teal" else 1e-6)
    if family == "opt" or (name, precision) == ("teal", "nf4"):  # no kernel
        assert found.byte_bound == bound <= 1
        assert found.mlp_share == pytest.approx(share) and found.mlp_share >= 1
    elif name == "teal":  # of a race, what it leaves out of attention is taken off the MLP's share
        assert share < found.mlp_share < 1 < bound
    else:
        assert found.mlp_share == pytest.approx(share)


def test_a_budget_of_bytes_is_refused_where_nothing_is_skipped() -> None:
    skipping, zeroing = (stored(tiny(family), "int8") for family in ("llama", "opt"))
    assert isinstance(budget.within(skipping, CATS(), mlp_share=0.8), CATS)
    with pytest.raises(UserError, match="cats saves no weight bytes on this model"):
        budget.within(zeroing, CATS(), mlp_share=0.8)


def test_one_model_in_two_precisions_is_counted_in_each() -> None:
    lm = tiny()
    wide, narrow = (step_bytes(dataclasses.replace(lm, precision=precision)) for precision in ("float32", "int8"))
    assert narrow.dense < wide.dense / 3 and narrow.mlp < wide.mlp / 3


def test_what_fewer_bits_would_read_is_what_a_model_stored_in_them_reads() -> None:
    lm = tiny()
    told = engine_for(lm).fewer_bits
    assert told == {name: engine_for(stored(tiny(), name)).step_bytes.dense for name in ("int8", "q4")}
    assert "int8" not in engine_for(stored(tiny(), "int8")).fewer_bits
    assert EagerEngine(lm).fewer_bits == {}


def test_a_race_does_not_count_what_was_counted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would at its end, where whoever pressed Stop waits for it."""
    lm = tiny()
    engine_for(lm).warm_up()
    monkeypatch.setattr("tda_demo.decode.weight_bytes.modules_of_a_step", lambda _: pytest.fail("counts again"))
    engine = engine_for(lm)
    assert engine.fewer_bits and engine.step_bytes.dense > 0
