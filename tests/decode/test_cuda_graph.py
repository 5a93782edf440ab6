"""The captured decoder against transformers: on a card as a graph, elsewhere the same step called eagerly."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import CONFIGS, FAMILIES
from gpu_device import CUDA, DEVICE, ON_A_CARD
from gpu_step import dense_errors, engine_of, on_device
from parity import PROMPT_IDS, STEPS, of_config, random_sets, zeroed_logits
from plain import plain_tda
from tiny import tiny
from transformers import LlamaConfig

from tda_demo.decode.choose import engine_for
from tda_demo.decode.eager import EagerEngine
from tda_demo.decode.gpu.graph import CudaGraphEngine, supported
from tda_demo.decode.weight_bytes import bytes_per_step
from tda_demo.kernels.gpu.choice import Way
from tda_demo.methods import TDA, ActiveSets
from tda_demo.model.feedforward import find_blocks
from tda_demo.model.loading import LoadedModel
from tda_demo.race import Finished, RaceSettings, race

pytestmark = ON_A_CARD


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_beyond_the_sliding_windows(family: str) -> None:
    assert dense_errors(on_device(tiny(family))) < 1e-4


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("way", ["vendor", "vendor, usual layout"])
def test_the_vendors_way_gives_the_same_logits(way: Way, family: str) -> None:
    assert dense_errors(on_device(tiny(family)), way, STEPS[:3]) < 1e-4


def test_down_projections_in_the_usual_layout_are_copied_once_and_for_the_dense_arm_alone() -> None:
    lm = on_device(tiny())
    engine = engine_of(lm, "vendor, usual layout")
    prefill = engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm))
    arms = [engine.dense_arm(prefill, 1) for _ in range(2)]
    used = [[block.down.weight for block in find_blocks(arm.decoder.runner.step.model)] for arm in arms]  # type: ignore[attr-defined]
    for mine, again, block in zip(*used, lm.blocks, strict=True):
        assert mine.is_contiguous() and mine.data_ptr() == again.data_ptr()
        assert block.down.weight.t().is_contiguous() and torch.equal(mine, block.down.weight)
    assert arms[0].weight_bytes == bytes_per_step(lm.model)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"mlp_bias": True, "attention_bias": True, "head_dim": None}),
        ("llama", {"hidden_act": "gelu", "num_key_value_heads": 1, "head_dim": 10}),
        ("phi3", {"partial_rotary_factor": 0.5, "rope_parameters": None}),
    ],
    ids=str,
)
def test_variations(family: str, changes: dict[str, Any]) -> None:
    config = type(CONFIGS[family])(**{**CONFIGS[family].to_dict(), **changes})
    assert dense_errors(on_device(of_config(config)), steps=STEPS[:2]) < 1e-4


@pytest.mark.parametrize("way", ["kernels", "vendor"])
@pytest.mark.parametrize("family", ["qwen2", "gemma2", "phi3", "opt"])
def test_a_restricted_set_is_the_model_with_the_other_neurons_zeroed(family: str, way: Way) -> None:
    lm = on_device(tiny(family))
    counts = (70, 0, 23)
    prefill = dataclasses.replace(
        engine_of(lm).prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), plan=to_device(random_sets(lm, counts))
    )
    arm = engine_of(lm, sparse=way).sparse_arm(prefill, 1)
    logits = arm.step(40).clone()
    assert [each.shape[1] for each in arm.activations()] == list(counts)
    expected = zeroed_on_device(lm, prefill.active, 40)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_one_prepared_step_serves_changing_sets_and_prompts() -> None:
    """Buffers are rewritten in place; what is replayed must see it, and nothing of the race before."""
    lm = on_device(tiny("gemma2"))
    engine = engine_of(lm)
    made: list[int] = []
    make = engine.make_runner
    engine.make_runner = lambda step: made.append(1) or make(step)
    for counts, prompt in [((70, 9, 23), PROMPT_IDS), ((1, 70, 0), PROMPT_IDS[:5])]:
        prefill = engine.prefill(prompt, TDA(cett=0).bind(lm))
        prefill = dataclasses.replace(prefill, plan=to_device(random_sets(lm, counts)))
        arm, reference = engine.sparse_arm(prefill, 3), EagerEngine(lm).sparse_arm(prefill, 3)
        for token in (40, 41):
            torch.testing.assert_close(arm.step(token), reference.step(token), rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(arm.activations(), reference.activations(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        del arm
        gc.collect()
    assert len(made) == 1


def test_the_choice_is_measured_with_the_models_own_device_as_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, whatever its tensors are on."""
    current: list[torch.device] = []

    @contextmanager
    def current_device(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr("tda_demo.decode.gpu.graph.current_device", current_device)
    lm = on_device(tiny())
    engine = engine_of(lm)
    chosen = engine.choose
    engine.choose = lambda blocks: chosen(blocks) if current == [lm.device] else pytest.fail("another device")
    assert engine.shared.choice.dense == "kernels"


@pytest.mark.parametrize("way", ["kernels", "vendor"])
def test_a_decoder_that_nothing_uses_is_freed_at_once(way: Way) -> None:
    """Not when Python next looks for cycles: what it holds is memory of the card."""
    lm = on_device(tiny())
    engine = engine_of(lm, sparse=way)
    arm = engine.sparse_arm(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), 1)
    arm.step(40)
    gc.disable()
    try:
        cache = weakref.ref(arm.decoder.cache.layers[0].keys)
        del arm
        engine.shared.spare["sparse"].clear()
        assert cache() is None
    finally:
        gc.enable()


def one_layer() -> LoadedModel:
    """For what does not depend on depth: an interpreter takes its time."""
    config = CONFIGS["llama"].to_dict() | {"num_hidden_layers": 1, "head_dim": None}
    return on_device(of_config(LlamaConfig(**config)))


def test_two_arms_at_once_do_not_share_memory() -> None:
    lm = one_layer()
    engine = engine_of(lm)
    prefill = engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm))
    first, second, lonely = (engine.dense_arm(prefill, 4) for _ in range(3))
    for token in (40, 41):
        expected = lonely.step(token).clone()
        torch.testing.assert_close(first.step(token), expected)
    torch.testing.assert_close(second.step(40), engine.dense_arm(prefill, 4).step(40))


def test_an_arm_stops_where_its_cache_ends() -> None:
    lm = on_device(tiny())
    engine = engine_of(lm)
    arm = engine.dense_arm(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), 1)
    arm.left = 0
    with pytest.raises(IndexError, match=f"made for {arm.decoder.cache.positions} tokens"):
        arm.step(5)


def test_bytes_are_all_weights_and_the_lists() -> None:
    lm = on_device(tiny("qwen2"))
    engine = engine_of(lm)
    everything = bytes_per_step(lm.model)
    prefill = engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm))
    assert engine.dense_arm(prefill, 1).weight_bytes == everything
    prefill = dataclasses.replace(prefill, plan=to_device(random_sets(lm, (70, 0, 23))))
    neuron = 3 * 32 * 4
    dropped = (70 + 70 - 23) * neuron
    assert engine.sparse_arm(prefill, 1).weight_bytes == everything - dropped + 93 * 2 * 4


def test_a_race_runs_on_it_and_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = one_layer()
    monkeypatch.setattr("tda_demo.race.run.engine_for", lambda lm, _chooser: engine_of(lm))
    *_, last = race(lm, plain_tda(cett=0.3, online=True), "w5 w9 w17 w30", RaceSettings(max_new_tokens=3))
    assert isinstance(last, Finished)
    way = "CUDA graph" if CUDA else "called eagerly"
    assert last.result.engine == f"{way} (dense kernels; sparse skipping in place)"
    assert last.result.dense.tokens > 1


def test_unsupported_models_are_left_to_transformers() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "head_dim": None, "rope_parameters": rope})
    assert not supported(of_config(config))
    sharded = tiny()
    sharded.model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}  # type: ignore[assignment]
    assert not supported(sharded)
    assert supported(tiny())
    if not CUDA:
        assert type(engine_for(tiny())) is not CudaGraphEngine


def to_device(active: ActiveSets) -> ActiveSets:
    return ActiveSets.from_indices(tuple(indices.to(DEVICE) for indices in active.indices), active.d_ff)


def zeroed_on_device(lm: LoadedModel, active: ActiveSets, token: int) -> torch.Tensor:
    cpu = on_cpu(lm)
    indices = tuple(indices.cpu() for indices in active.indices)
    return zeroed_logits(cpu, ActiveSets.from_indices(indices, active.d_ff), token).to(DEVICE)


def on_cpu(lm: LoadedModel) -> LoadedModel:
    lm.model.to("cpu")  # type: ignore[arg-type]
    return dataclasses.replace(lm, device=torch.device("cpu"), blocks=find_blocks(lm.model))
