"""Models whose matrices bitsandbytes holds, loaded as on a GPU but here on the CPU, which bitsandbytes can use too."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path

import pytest
import torch
from families import CONFIGS
from parity import PROMPT_IDS, mean_kl, of_config, random_sets
from plain import plain_tda
from tiny import tiny
from transformers import AutoModelForCausalLM, LlamaConfig

from tda_demo.decode.arm import Prefill
from tda_demo.decode.eager import EagerEngine
from tda_demo.decode.engine import Engine
from tda_demo.decode.gpu.graph import CudaGraphEngine, supported
from tda_demo.kernels.gpu.blocks import Tiles
from tda_demo.kernels.gpu.choice import KernelChoice
from tda_demo.kernels.gpu.device import eager_runner, graph_runner
from tda_demo.methods import GRIFFIN, TDA, CoreInfer, Magnitude, Random
from tda_demo.model.feedforward import find_blocks
from tda_demo.model.loading import LoadedModel
from tda_demo.model.precision import give_back_memory, loading_arguments, model_dtype

TILES = Tiles(rows=128, down_rows=128, down_columns=64, splits=2)


@pytest.fixture(autouse=True)
def plain_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with AVX512_BF16 bitsandbytes packs weights anew in place; on a GPU it does not."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def quantised(folder: Path, precision: str) -> tuple[LoadedModel, LoadedModel]:
    """A tiny llama in float32, and as ``from_pretrained`` loads it with the settings for a GPU."""
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    lm = of_config(config)
    lm.model.save_pretrained(folder)
    settings = loading_arguments(precision, torch.device("cuda"))
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=settings["quantization_config"], device_map={"": "cpu"}
    )
    model.eval().requires_grad_(False)
    return lm, dataclasses.replace(tiny(), model=model, precision=precision, blocks=find_blocks(model))


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_output_weights_are_the_values_the_module_computes_with(precision: str, tmp_path: Path) -> None:
    lm, quantised_lm = quantised(tmp_path, precision)
    for _ in range(2):  # before a forward pass and after one, which moves bitsandbytes' int8 scales
        block = quantised_lm.blocks[1]
        assert block.is_quantised and not lm.blocks[1].is_quantised
        values, original = block.output_weight(), lm.blocks[1].output_weight()
        assert values.shape == original.shape
        assert 0 < float((values - original).norm() / original.norm()) < (0.15 if precision == "nf4" else 0.02)
        quantised_lm.model(input_ids=torch.tensor([PROMPT_IDS]))


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_input_norms_are_those_of_the_values_the_module_computes_with(precision: str, tmp_path: Path) -> None:
    lm, quantised_lm = quantised(tmp_path, precision)
    for block, original in zip(quantised_lm.blocks, lm.blocks, strict=True):
        assert original.gate is not None and block.gate is not None
        exact = original.gate.weight.norm(dim=1) * original.up.weight.norm(dim=1)
        torch.testing.assert_close(original.input_norms, exact)
        # Of what a linear without a bias makes of every unit vector: its columns.
        norms = [linear(torch.eye(64)).norm(dim=0) for linear in (block.gate, block.up)]
        torch.testing.assert_close(block.input_norms, norms[0] * norms[1], rtol=0.02, atol=0)
        assert 0 < float((block.input_norms / exact - 1).abs().max()) < 0.2


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_every_method_chooses_on_a_quantised_model(precision: str, tmp_path: Path) -> None:
    _, lm = quantised(tmp_path, precision)
    engine = EagerEngine(lm)
    for method in (GRIFFIN(0.5), CoreInfer(0.5, exempt_first=0, exempt_last=0), Random(0.5), Magnitude(0.5)):
        prefill = engine.prefill(PROMPT_IDS, method.bind(lm))
        assert prefill.active.counts() == [64, 64, 64]
        arm = engine.sparse_arm(prefill, 1)
        assert arm.step(40).isfinite().all()
        assert [each.shape for each in arm.activations()] == [(1, 64)] * 3


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_limited_block_is_the_block_without_the_other_neurons(precision: str, tmp_path: Path) -> None:
    _, lm = quantised(tmp_path, precision)
    engine = EagerEngine(lm)
    prefill = engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm))
    active = random_sets(lm, (128, 0, 40))
    arm = engine.sparse_arm(dataclasses.replace(prefill, plan=active), 1)
    seen = []
    find_blocks(arm.model)[2].down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten()))
    arm.step(40)
    assert seen[0].nonzero().flatten().tolist() == active.indices[2].tolist()
    assert [each.shape[1] for each in arm.activations()] == [128, 0, 40]
    assert torch.equal(arm.activations()[2][0], seen[0][active.indices[2]])
    assert arm.weight_bytes == engine.dense_arm(prefill, 1).weight_bytes  # nothing is saved


def test_with_a_method_a_quantised_model_is_patched_and_restored(tmp_path: Path) -> None:
    _, lm = quantised(tmp_path, "nf4")
    ids = {"input_ids": torch.tensor([PROMPT_IDS])}
    before = lm.model(**ids).logits
    with plain_tda(cett=0.5, online=True)(lm):
        past = lm.model(**ids, use_cache=True).past_key_values
        step = {"input_ids": torch.tensor([[40]])}
        limited = lm.model(**step, past_key_values=past).logits
    past = lm.model(**ids, use_cache=True).past_key_values
    assert not torch.equal(limited, lm.model(**step, past_key_values=past).logits)
    assert torch.equal(lm.model(**ids).logits, before)


def assert_judged_by(engine: Engine, prefill: Prefill, logits: torch.Tensor) -> None:
    """A race is judged by what the sparse arm computes, ``logits`` [2, vocabulary] after two tokens."""
    arm = engine.judging_arm(prefill, 2)
    assert arm is not None
    torch.testing.assert_close(torch.stack([arm.step(token).clone() for token in (40, 41)]), logits)


def test_the_captured_decoder_runs_nf4_and_judges_what_it_runs(tmp_path: Path) -> None:
    _, lm = quantised(tmp_path, "nf4")
    assert supported(lm)
    engine = CudaGraphEngine(lm, eager_runner, lambda _: KernelChoice(TILES, TILES, "kernels", "kernels", {}))
    prefill = engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm))
    prefill = dataclasses.replace(prefill, plan=random_sets(lm, (128, 60, 40)))
    arm, masked = engine.sparse_arm(prefill, 2), EagerEngine(lm).sparse_arm(prefill, 2)
    got = torch.stack([arm.step(token).clone() for token in (40, 41)])
    expected = torch.stack([masked.step(token) for token in (40, 41)])
    # The same neurons; what differs is the down projections, quantised again by neuron.
    assert 0 < mean_kl(expected, got) < 0.5
    assert_judged_by(engine, prefill, got)
    assert arm.weight_bytes < engine.dense_arm(prefill, 2).weight_bytes
    assert engine.dense_arm(prefill, 2).weight_bytes < sum(p.nbytes for p in lm.model.parameters()) * 1.2


def test_the_decoder_runs_int8_and_skips(tmp_path: Path) -> None:
    _, lm = quantised(tmp_path, "int8")
    assert supported(lm)
    engine = CudaGraphEngine(lm, graph_runner, lambda _: KernelChoice(TILES, TILES, "kernels", "kernels", {}))
    prefill = engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm))
    prefill = dataclasses.replace(prefill, plan=random_sets(lm, (128, 60, 40)))
    arm, masked = engine.sparse_arm(prefill, 2), EagerEngine(lm).sparse_arm(prefill, 2)
    assert arm.decoder.runner.name == "called eagerly"  # nothing tried to capture it
    got = torch.stack([arm.step(token).clone() for token in (40, 41)])
    expected = torch.stack([masked.step(token) for token in (40, 41)])
    # The same neurons and codes; what differs is that bitsandbytes rounds activations to int8.
    assert mean_kl(expected, got) < 0.01
    assert_judged_by(engine, prefill, got)
    dense = engine.dense_arm(prefill, 2).weight_bytes
    skipped = 128 + 3 * 128 - (128 + 60 + 40) - 128  # neurons; each has three rows of 64 codes and two scales
    assert dense - arm.weight_bytes == skipped * (3 * 64 + 2 * 4) - (128 + 60 + 40) * 2 * 4


def test_a_model_that_nothing_uses_is_freed_with_its_4_bit_weights(tmp_path: Path) -> None:
    _, lm = quantised(tmp_path, "nf4")
    gc.disable()
    try:
        module = weakref.ref(lm.blocks[0].down)
        del lm
        assert module() is not None  # bitsandbytes' weight and module hold each other
        give_back_memory()
        assert module() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_cards_without_bfloat16_compute_in_float16(
    precision: str, native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: native and not including_emulation)
    device = torch.device("cuda")
    assert model_dtype(precision, device) == dtype
    if precision == "nf4":
        assert loading_arguments(precision, device)["quantization_config"].bnb_4bit_compute_dtype == dtype
    assert model_dtype("float32", device) == model_dtype("bfloat16", torch.device("cpu")) == torch.float32
    assert model_dtype("bfloat16", device) == torch.bfloat16  # as it was asked for


def test_the_int8_product_does_not_warn_at_every_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, lm = quantised(tmp_path, "int8")
    lm.model(input_ids=torch.tensor([PROMPT_IDS]))
    assert "MatMul8bitLt" not in caplog.text


def test_on_a_cpu_nothing_is_left_to_bitsandbytes() -> None:
    assert loading_arguments("nf4", torch.device("cpu")) == {} == loading_arguments("bfloat16", torch.device("cuda"))
