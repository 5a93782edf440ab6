"""The captured step where neurons left out contribute what an NF4 copy says, and where its sets are renewed."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import pytest
import torch
from families import CONFIGS
from gpu_device import DEVICE, ON_A_CARD
from gpu_step import engine_of, on_device
from parity import PROMPT_IDS, STEPS, of_config, random_sets
from plain import plain_tda
from tiny import tiny
from transformers import DynamicCache

from tda_demo.decode.arm import Arm, Prefill
from tda_demo.decode.eager import EagerEngine
from tda_demo.decode.gpu.decoder import ListedArm
from tda_demo.decode.gpu.graph import CudaGraphEngine
from tda_demo.decode.weight_bytes import bytes_per_step
from tda_demo.kernels.gpu.choice import Way
from tda_demo.methods import CATS, GRIFFIN, TDA, ActiveSets
from tda_demo.methods.base import SequenceMethod
from tda_demo.methods.low_bit import LowBitRest, Nf4Rest, has_nf4_copy, low_bit_rest, nf4_rest
from tda_demo.methods.plan import Plan
from tda_demo.methods.sequence import SequencePolicy
from tda_demo.model.loading import LoadedModel

pytestmark = ON_A_CARD
NEURON = 3 * (32 + 4)  # bytes of a copied neuron of 64 columns: codes and a scale in each matrix


def wide(family: str = "llama") -> LoadedModel:
    """64 columns, which NF4 blocks fill."""
    changes: dict[str, Any] = {"hidden_size": 64, "head_dim": 16}
    if family == "opt":
        changes["word_embed_proj_dim"] = 64
    config = copy.deepcopy(CONFIGS[family]).to_dict() | changes
    return on_device(of_config(type(CONFIGS[family])(**config)))


def bound(lm: LoadedModel, method: SequenceMethod) -> SequencePolicy:
    """As on a card, also where there is none."""
    policy = method.bind(lm)
    if policy.rest is not None:
        policy.rest = nf4_rest(lm)
    return policy


def prefilled(engine: CudaGraphEngine, plan: Plan) -> Prefill:
    return dataclasses.replace(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(engine.lm)), plan=plan)


def sets_with_rest(lm: LoadedModel, counts: tuple[int, ...]) -> ActiveSets:
    return ActiveSets(tuple(mask.to(DEVICE) for mask in random_sets(lm, counts).masks), nf4_rest(lm))


def assert_same_steps(arm: Arm, reference: Arm, steps: list[int]) -> None:
    for token in steps:
        torch.testing.assert_close(arm.step(token), reference.step(token), rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(arm.activations(), reference.activations(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
        assert arm.computed() == reference.computed()


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        *((family, (70, 1, 33)) for family in ("llama", "phi3", "gemma2", "gpt_neox")),
        *(("opt", counts) for counts in ((0, 0, 0), (70, 70, 70), (70, 1, 33))),
    ],
)
def test_logits_are_those_of_the_model_under_the_plan(family: str, counts: tuple[int, ...]) -> None:
    lm = wide(family)
    plan = sets_with_rest(lm, counts)
    engine = engine_of(lm)
    arm = engine.sparse_arm(prefilled(engine, plan), 2)
    cache = DynamicCache(config=lm.model.config)
    lm.model(input_ids=torch.tensor([PROMPT_IDS], device=DEVICE), past_key_values=cache)
    with plan.on(lm.blocks):
        for token in STEPS[:2]:
            ids = torch.tensor([[token]], device=DEVICE)
            expected = lm.model(input_ids=ids, past_key_values=cache).logits[0, -1].float()
            torch.testing.assert_close(arm.step(token), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert [each.shape[1] for each in arm.activations()] == arm.computed() == list(counts)


@pytest.mark.parametrize(
    ("method", "way"),
    [
        (GRIFFIN(keep=0.5, rest="4bit"), "vendor"),
        (plain_tda(cett=0.4, online=True, shape="uniform", rest="4bit", first=2), "kernels"),
        (plain_tda(cett=0.4, online=True, shape="uniform", rest="4bit", refresh=3), "kernels"),
        (plain_tda(cett=0.4, online=True, shape="uniform", first=1, refresh=2), "vendor"),
    ],
    ids=str,
)
def test_sets_that_are_renewed_are_those_of_transformers(method: SequenceMethod, way: Way) -> None:
    lm = wide("opt")
    engine, policy = engine_of(lm, sparse=way), bound(lm, method)
    assert CudaGraphEngine.runs(policy)
    prefill = engine.prefill(PROMPT_IDS, policy)
    assert_same_steps(engine.sparse_arm(prefill, 7), EagerEngine(lm).sparse_arm(prefill, 7), STEPS[:7])
    assert engine.name.endswith("sparse skipping in place)")


def test_one_prepared_step_serves_dense_tokens_and_every_set() -> None:
    lm = wide()
    engine = engine_of(lm)
    made: list[int] = []
    make = engine.make_runner
    engine.make_runner = lambda step: made.append(1) or make(step)
    sets = sets_with_rest(lm, (10, 70, 0))
    arm = cast(ListedArm, engine.sparse_arm(prefilled(engine, sets), 8))
    logits = []
    for plan in (sets, ActiveSets(sets.masks), None, sets):
        arm.use(plan)
        arm.decoder.cache.position.fill_(len(PROMPT_IDS))
        logits.append(arm.step(40).clone())
    assert len(made) == 1 and torch.equal(logits[0], logits[3])
    dense = engine.dense_arm(prefilled(engine, sets), 1)
    torch.testing.assert_close(logits[2], dense.step(40))
    assert 0 < (logits[0] - logits[2]).norm() < 0.5 * (logits[1] - logits[2]).norm()
    arm.use(None)
    arm.decoder.cache.position.fill_(len(PROMPT_IDS))
    arm.step(40)
    for mine, theirs in zip(arm.activations(), dense.activations(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bytes_are_exact_weights_codes_scales_and_lists() -> None:
    lm = wide()
    engine, listed = engine_of(lm), 3 * 70 * 2 * 4
    everything, exact = bytes_per_step(lm.model), 3 * 64 * 4
    arm = engine.sparse_arm(prefilled(engine, sets_with_rest(lm, (70, 0, 23))), 1)
    assert nf4_rest(lm).neuron_bytes == (NEURON,) * 3
    assert arm.weight_bytes == everything - (70 + 47) * (exact - NEURON) + listed


def test_a_new_set_costs_no_copies_and_a_dense_token_is_counted_as_one() -> None:
    lm = wide()
    engine, policy = engine_of(lm), bound(lm, plain_tda(cett=0.4, online=True, shape="uniform", rest="4bit", first=2))
    arm = engine.sparse_arm(engine.prefill(PROMPT_IDS, policy), 3)
    everything, listed = bytes_per_step(lm.model), 3 * 70 * 2 * 4
    read = []
    for token in STEPS[:3]:
        arm.step(token)
        read.append(arm.weight_bytes)
    left_out = 3 * 70 - sum(arm.computed())
    assert left_out > 0
    assert read == [everything + listed] * 2 + [everything + listed - left_out * (3 * 64 * 4 - NEURON)]


def test_a_policy_is_warmed_up_once_with_the_step_it_takes() -> None:
    lm = wide()
    engine, policy = engine_of(lm), bound(lm, GRIFFIN(keep=0.5, rest="4bit"))
    told: list[str] = []
    for each in (None, policy, policy, None):
        engine.warm_up(lambda progress: told.append(progress.stage), each)
    assert len(told) == 2 and engine.shared.made == {"dense", "sparse", "rest"}
    assert all(len(spare) == 1 for spare in engine.shared.spare.values())


def test_which_policies_and_models_it_is_for() -> None:
    lm, narrow = wide(), tiny()
    assert has_nf4_copy(lm) and not has_nf4_copy(narrow)
    assert CudaGraphEngine.runs(plain_tda(cett=0.4, online=True, shape="uniform", refresh=3).bind(lm))
    assert not CudaGraphEngine.runs(CATS(0).bind(lm))
    on_a_card = dataclasses.replace(lm, device=torch.device("cuda"))
    assert isinstance(low_bit_rest(on_a_card), Nf4Rest)
    other = dataclasses.replace(narrow, device=torch.device("cuda"))
    assert isinstance(low_bit_rest(other), LowBitRest)
    policy = GRIFFIN(keep=0.5).bind(narrow)
    policy.rest = low_bit_rest(other)
    assert not CudaGraphEngine.runs(policy)
