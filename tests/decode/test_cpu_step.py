"""The compiled CPU step against transformers itself, for every family of its layout and every storage format."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from families import CONFIGS
from parity import (
    PROMPT_IDS,
    STEPS,
    TOLERANCE,
    mean_kl,
    of_config,
    random_sets,
    reading_in_transformers,
    stored,
    worst_error,
    zeroed_logits,
)
from plain import plain_tda
from tiny import tiny
from transformers import LlamaConfig, Phi3Config, Qwen3Config

from tda_demo.decode.choose import engine_for
from tda_demo.decode.cpu import compiled_step
from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.decode.cpu.layout import has_layout
from tda_demo.decode.cpu.prompt_cache import number_type
from tda_demo.decode.eager import EagerEngine
from tda_demo.kernels.formats import FORMATS
from tda_demo.methods import TDA, ActiveSets
from tda_demo.model.family import FAMILIES
from tda_demo.model.loading import LoadedModel
from tda_demo.race import RaceSettings, race

pytestmark = pytest.mark.usefixtures("two_threads")

LAYOUTS = [name for name, config in CONFIGS.items() if FAMILIES[config.model_type].decoder]


@pytest.mark.parametrize("family", LAYOUTS)
def test_float32_logits_are_those_of_transformers(family: str) -> None:
    assert worst_error(tiny(family), CpuStepEngine) < 1e-5


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_each_format_computes_with_the_values_the_transformers_model_was_rounded_to(
    family: str, precision: str
) -> None:
    assert worst_error(stored(tiny(family), precision), CpuStepEngine) < TOLERANCE[precision]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu"},
        {"hidden_act": "relu"},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"intermediate_size": 1},
        {"intermediate_size": 33, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"num_key_value_heads": 1, "head_dim": 10},
    ],
    ids=str,
)
def test_variations_of_llama(changes: dict[str, Any]) -> None:
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "head_dim": None, **changes})
    assert worst_error(of_config(config), CpuStepEngine) < 1e-5


def test_partial_rotary_of_phi3() -> None:
    changes = {"rope_parameters": None, "partial_rotary_factor": 0.5}
    config = Phi3Config(**{**CONFIGS["phi3"].to_dict(), **changes})
    assert worst_error(of_config(config), CpuStepEngine) < 1e-5


def test_qwen3_with_a_sliding_window_in_some_layers() -> None:
    config = Qwen3Config(
        **{**CONFIGS["qwen3"].to_dict(), "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    )
    config.layer_types = ["full_attention", "sliding_attention", "full_attention"]
    assert worst_error(of_config(config), CpuStepEngine) < 1e-5


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 1, 1), (70, 70, 70), (0, 69, 3)])
@pytest.mark.parametrize("precision", FORMATS)
def test_any_active_set_gives_the_logits_of_zeroed_neurons(counts: tuple[int, ...], precision: str) -> None:
    lm = stored(tiny(), precision)
    active = random_sets(lm, counts)
    engine = reading_in_transformers(CpuStepEngine(lm))
    prefill = dataclasses.replace(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), plan=active)
    arm = engine.sparse_arm(prefill, 1)
    expected = zeroed_logits(lm, active, 40, number_type(precision))
    assert (arm.step(40) - expected).abs().max() < TOLERANCE[precision] * expected.abs().max()
    assert [each.shape[1] for each in arm.activations()] == list(counts)


@pytest.mark.parametrize("counts", [(7, 70, 0), (70, 70, 70), (1, 33, 69)])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_in_place_computes_what_packed_copies_do(counts: tuple[int, ...], precision: str) -> None:
    lm = stored(tiny(), precision)
    engine = CpuStepEngine(lm)
    prefill = dataclasses.replace(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), plan=random_sets(lm, counts))
    arm, packed = engine.in_place_arm(prefill, 2), engine.sparse_arm(prefill, 2)
    for token in (40, 41):
        pairs = [(arm.step(token), packed.step(token)), *zip(arm.activations(), packed.activations(), strict=True)]
        for ours, theirs in pairs:  # sums in another order may tip a rounding over
            assert ours.shape == theirs.shape
            assert ((ours - theirs).abs() <= TOLERANCE[precision] * (theirs.abs().max() if theirs.numel() else 1)).all()
    assert arm.weight_bytes == packed.weight_bytes


def test_activations_are_those_of_the_blocks() -> None:
    lm = tiny("gemma2")
    engine = CpuStepEngine(lm)
    arm = engine.dense_arm(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), 1)
    arm.step(40)
    eager = EagerEngine(lm).dense_arm(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), 1)
    eager.step(40)
    for mine, theirs in zip(arm.activations(), eager.activations(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_packing_everything_copies_nothing() -> None:
    packer = CpuStepEngine(tiny()).packer
    everything = ActiveSets.from_indices((torch.arange(70),) * 3, (70,) * 3)
    assert packer.pack(everything).neurons is packer.layout.neurons


def test_packed_sets_in_use_share_no_memory_and_given_back_memory_is_used_again() -> None:
    packer = CpuStepEngine(tiny()).packer
    many, others, few = (ActiveSets.from_indices((torch.arange(count),) * 3, (70,) * 3) for count in (40, 40, 20))
    first, second = packer.pack(many), packer.pack(others)
    gate = first.neurons.gate
    assert not np.shares_memory(gate, second.neurons.gate)
    assert packer.pack(many) is first  # as the arm that is judged reads what the one that races reads
    del first
    third = packer.pack(few)
    assert np.shares_memory(third.neurons.gate, gate)
    assert np.array_equal(third.neurons.up[20:40], packer.layout.neurons.up[70:90])


@pytest.mark.parametrize(("family", "expected"), [("opt", False), ("gpt_neox", False), ("llama", True)])
def test_other_layouts_run_with_compiled_linears_and_say_so(family: str, expected: bool) -> None:
    lm = tiny(family)
    assert has_layout(lm) == expected
    assert engine_for(lm).name == ("compiled CPU step" if expected else "transformers with compiled linears")


@pytest.mark.parametrize(("precision", "limit"), [("bfloat16", 0.002), ("int8", 0.01)])
def test_kl_to_float32_on_real_text(embedded: LoadedModel, precision: str, limit: float) -> None:
    """The embedded model teacher-forced through the compiled step, against transformers in float32."""
    from tda_demo.model.loading import load_model

    ids = embedded.tokenizer(
        "The harbour was quiet when the first boats came back. Gulls followed them in, and the women on the quay "
        "counted the masts, as they did each morning, before anyone spoke of the price of fish or of the weather."
    )["input_ids"]
    expected = embedded.model(input_ids=torch.tensor([ids])).logits[0, 8:-1]
    lm = load_model(precision=precision)
    engine = engine_for(lm)
    arm = engine.dense_arm(engine.prefill(ids[:8], TDA(cett=0).bind(lm)), len(ids))
    logits = torch.stack([arm.step(token).clone() for token in ids[8:-1]])
    assert mean_kl(expected, logits) < limit


def test_memory_is_flat_over_many_races() -> None:
    lm = tiny()
    process = psutil.Process()

    def races(n: int) -> int:
        for _ in range(n):
            list(race(lm, plain_tda(cett=0.4, online=True), "w5 w9 w17 w30", RaceSettings(max_new_tokens=8)))
        gc.collect()
        return process.memory_info().rss

    before = races(10)
    assert races(50) - before < 20e6


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_cache_of_halves_gives_nearly_what_one_of_floats_does(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = stored(tiny(family), "int8")
    engine = CpuStepEngine(lm)
    kinds = [number_type("int8"), number_type("float32")]
    logits = []
    for kind in kinds:
        monkeypatch.setattr(compiled_step, "number_type", lambda _precision, kind=kind: kind)
        arm = engine.dense_arm(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), len(STEPS))
        logits.append(torch.stack([arm.step(token).clone() for token in STEPS]))
    ours, exact = logits
    assert kinds[0] == np.float32 or not torch.equal(ours, exact)
    assert (ours - exact).abs().max() < 3e-3 * exact.abs().max()
