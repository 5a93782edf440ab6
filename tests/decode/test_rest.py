"""The compiled step with low-bit copies of the neurons that an active set leaves out, against transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from families import CONFIGS
from parity import PROMPT_IDS, TOLERANCE, of_config, random_sets, stored
from tiny import tiny
from transformers import DynamicCache, LlamaConfig

from tda_demo.decode.cpu.compiled_step import CpuStepEngine, PackedArm
from tda_demo.kernels.q4 import decode, decode_columns, multiply_columns
from tda_demo.kernels.q4_sizes import TILE
from tda_demo.methods import TDA, ActiveSets
from tda_demo.methods.low_bit import copy_of, low_bit_rest, model_copy_of
from tda_demo.model.configuration import activation_function
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.hooks import intercept
from tda_demo.model.loading import LoadedModel

CLOSE = 2e-2  # of the logits' norm: kernels round activations times scales to int8, and these models are narrow


@dataclass(frozen=True, eq=False)
class SetsWithRest(ActiveSets):
    rest: Any = None


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def sets_of(lm: LoadedModel, counts: tuple[int, ...]) -> SetsWithRest:
    return SetsWithRest(random_sets(lm, counts).masks, low_bit_rest(lm))


def arm_of(lm: LoadedModel, plan: ActiveSets, room: int = 1) -> PackedArm:
    engine = CpuStepEngine(lm)
    prefill = dataclasses.replace(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), plan=plan)
    return cast(PackedArm, engine.sparse_arm(prefill, room))


def expected_logits(lm: LoadedModel, sets: SetsWithRest, token: int) -> torch.Tensor:
    """Of ``token`` after the prompt, from transformers."""
    cache = DynamicCache(config=lm.model.config)
    lm.model(input_ids=torch.tensor([PROMPT_IDS]), past_key_values=cache)
    with ExitStack() as hooks:
        for block, mask in zip(lm.blocks, sets.masks, strict=True):
            hooks.callback(_add_rest(lm, block, mask[0], sets.rest.copies[block.layer]))
        return lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]


def _add_rest(lm: LoadedModel, block: FeedForward, mask: torch.Tensor, copy: Any) -> Any:
    added = []

    def change(x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        approximate = copy.activations(activation_function(lm.model), x)
        added.append(multiply_columns(copy.down, torch.where(mask, 0.0, approximate)))
        return activations * mask

    undo = intercept(block, change)
    handle = block.down.register_forward_hook(lambda _module, _inputs, output: output + added.pop().view_as(output))
    return lambda: (undo(), handle.remove())


def check(lm: LoadedModel, counts: tuple[int, ...]) -> None:
    sets = sets_of(lm, counts)
    arm = arm_of(lm, sets)
    expected = expected_logits(lm, sets, 40)
    error = (arm.step(40) - expected).norm() / expected.norm()
    assert error < max(CLOSE, TOLERANCE[lm.precision])
    assert [each.shape[1] for each in arm.activations()] == arm.computed() == list(counts)


@pytest.mark.parametrize("counts", [(0, 0, 0), (70, 1, 0), (33, 69, 70), (10, 20, 6)])
@pytest.mark.parametrize("precision", ["float32", "int8", "q4"])  # a rest does not look at the format
def test_neurons_left_out_contribute_what_their_copy_says(counts: tuple[int, ...], precision: str) -> None:
    check(stored(tiny(), precision), counts)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 33, 69)])
def test_any_number_of_threads(counts: tuple[int, ...]) -> None:
    check(tiny("gemma2"), counts)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"intermediate_size": 33, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"intermediate_size": 1},
    ],
    ids=str,
)
def test_variations_of_llama(changes: dict[str, Any]) -> None:
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "head_dim": None, **changes})
    lm = of_config(config)
    check(lm, (0,) * len(lm.blocks))
    check(lm, (lm.blocks[0].d_ff // 2,) * len(lm.blocks))


def test_an_arm_changes_between_plans_with_a_rest_and_without() -> None:
    lm = tiny()
    sets = sets_of(lm, (10, 20, 30))
    arm = arm_of(lm, sets, 5)
    logits = []
    for plan in (sets, ActiveSets(sets.masks), None, sets):
        arm.use(plan)
        arm.position = len(PROMPT_IDS)
        logits.append(arm.step(40).clone())
    assert torch.equal(logits[0], logits[3])
    dense = arm_of(lm, random_sets(lm, (70, 70, 70))).step(40)
    torch.testing.assert_close(logits[2], dense)
    assert (logits[0] - dense).norm() < 0.5 * (logits[1] - dense).norm()


def test_packed_rests_in_use_share_no_memory_and_given_back_memory_is_used_again() -> None:
    lm = tiny()
    packer = CpuStepEngine(lm).packer
    most, others, fewer = (sets_of(lm, counts) for counts in ((0, 1, 2), (0, 1, 2), (40, 50, 30)))
    first, second = packer.pack(most), packer.pack(others)
    assert first.rest is not None and second.rest is not None
    assert not np.shares_memory(first.rest.gate, second.rest.gate)
    assert first.rest.tiles.tolist() == [0, 3, 6] and first.rest.counts.tolist() == [70, 69, 68]
    gate, down = first.rest.gate, first.rest.down
    del first
    third = packer.pack(fewer)
    assert third.rest is not None
    assert np.shares_memory(third.rest.gate, gate) and np.shares_memory(third.rest.down, down)
    left_out = (~fewer.masks[1][0]).nonzero().squeeze(1).numpy()
    assert np.array_equal(third.rest.up[TILE : TILE + 20], copy_of(lm)[1].up.records[left_out])


def test_a_model_s_copy_is_made_once_and_its_blocks_are_parts_of_it() -> None:
    lm = tiny()
    whole = model_copy_of(lm)
    assert model_copy_of(lm) is whole and whole.gate is not None
    for block, copy in zip(lm.blocks, whole.blocks, strict=True):
        assert copy.gate is not None and block.gate is not None
        assert np.shares_memory(copy.gate.records, whole.gate) and np.shares_memory(copy.down.tiles, whole.down)
        assert (decode(copy.gate) - block.gate.weight).norm() < 0.1 * block.gate.weight.norm()
        assert (decode_columns(copy.down) - block.down.weight).norm() < 0.1 * block.down.weight.norm()
        assert copy.nbytes == 70 * 2 * 40 + 3 * TILE * copy.down.neuron_nbytes
        assert copy.neuron_nbytes == 2 * 40 + 20
