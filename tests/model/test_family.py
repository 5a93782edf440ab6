"""A family stands in one place: a record is all that a new one needs, and no other file knows families by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import CONFIGS, tiny_model
from gpu_device import CUDA
from gpu_step import dense_errors
from parity import STEPS, of_config, worst_error
from plain import plain_tda
from transformers import (
    DynamicCache,
    GemmaConfig,
    GlmConfig,
    LlamaConfig,
    MinistralConfig,
    PreTrainedConfig,
    Qwen3Config,
    SeedOssConfig,
    Starcoder2Config,
)

import tda_demo
from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.decode.cpu.fast_linears import FastLinearsEngine
from tda_demo.decode.engine import Engine
from tda_demo.decode.gpu.graph import supported
from tda_demo.decode.gpu.static_cache import attention_masks
from tda_demo.model.configuration import has_length_dependent_rope, rope_kinds, window_of
from tda_demo.model.family import FAMILIES, BlockLayout, DecoderLayout, Family
from tda_demo.model.loading import LoadedModel
from tda_demo.race import Finished, RaceSettings, race

_SIZES = {
    name: getattr(CONFIGS["llama"], name)
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
}
_GLM_BLOCK = BlockLayout(gate="mlp.gate_up_proj", up="mlp.gate_up_proj")
# Architectures that are no supported families: what their record would be, a tiny configuration, and the CPU's engine.
NEWCOMERS: dict[str, tuple[Family, PreTrainedConfig, type[Engine]]] = {
    "a window in some layers": (
        Family("ministral"),
        MinistralConfig(
            **_SIZES, head_dim=8, sliding_window=8, layer_types=["full_attention", *["sliding_attention"] * 2]
        ),
        CpuStepEngine,
    ),
    "biases in attention": (Family("seed_oss"), SeedOssConfig(**_SIZES, head_dim=8), CpuStepEngine),
    "norms stored less one": (
        Family("gemma", decoder=DecoderLayout(norm_offset=1.0)),
        GemmaConfig(**_SIZES, head_dim=8),
        CpuStepEngine,
    ),
    "a fused block in another decoder": (
        Family("glm", block=_GLM_BLOCK, decoder=None),
        GlmConfig(**_SIZES, head_dim=8),
        FastLinearsEngine,
    ),
    "a plain block in another decoder": (
        Family("starcoder2", block=BlockLayout(None, "mlp.c_fc", "mlp.c_proj"), decoder=None),
        Starcoder2Config(**_SIZES),
        FastLinearsEngine,
    ),
}


@pytest.fixture(params=NEWCOMERS)
def newcomer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[LoadedModel, type[Engine]]:
    """A model of an architecture whose record is added for the test alone, and the engine that is to run it."""
    family, config, engine = NEWCOMERS[request.param]
    assert family.model_type not in FAMILIES
    monkeypatch.setitem(FAMILIES, family.model_type, family)
    return of_config(config), engine


def test_a_record_is_enough_for_logits_like_those_of_transformers(newcomer: tuple[LoadedModel, type[Engine]]) -> None:
    assert worst_error(*newcomer) < 1e-5


@pytest.mark.skipif(CUDA, reason="the models of this file lie in the memory of the CPU")
def test_a_record_is_enough_for_the_gpu_engine(newcomer: tuple[LoadedModel, type[Engine]]) -> None:
    lm, _ = newcomer
    assert supported(lm)
    assert dense_errors(lm, steps=STEPS[:2]) < 1e-4


def test_a_record_is_enough_for_methods_and_races(newcomer: tuple[LoadedModel, type[Engine]]) -> None:
    lm, _ = newcomer
    ids = torch.arange(5, 25)[None]
    dense = lm.model(input_ids=ids).logits
    with plain_tda(cett=0.2)(lm):
        cache = DynamicCache()
        lm.model(input_ids=ids[:, :12], past_key_values=cache)
        restricted = lm.model(input_ids=ids[:, 12:13], past_key_values=cache).logits[0, -1]
        assert not torch.equal(restricted, dense[0, 12])
    assert torch.equal(lm.model(input_ids=ids).logits, dense)
    *_, last = race(lm, plain_tda(cett=0.2), "w5 w9 w17 w30", RaceSettings(max_new_tokens=4))
    assert isinstance(last, Finished)
    assert all(0 < sparsity < 1 for sparsity in last.result.sparsity)


def test_every_listed_family_has_a_tiny_model() -> None:
    assert set(CONFIGS) == {family.model_type for family in FAMILIES.values() if family.listed}


@pytest.mark.parametrize("name", CONFIGS)
def test_windows_are_those_of_the_models_own_masks(name: str) -> None:
    """Which keys the last of 40 tokens sees: by transformers' mask, by ``window_of``, and by the masks of ours."""
    model = tiny_model(name)
    tokens = torch.arange(3, 43)[None]
    model.set_attn_implementation("eager")
    masks = attention_masks(model.config, 40, torch.tensor([39]), torch.float32)
    for layer, weights in enumerate(model(input_ids=tokens, output_attentions=True).attentions):
        window = window_of(model.config, layer)
        seen = int((weights[0, :, -1] > 0).all(dim=0).sum())
        assert seen == (window or 40)
        mask = masks if isinstance(masks, torch.Tensor) else masks[model.config.layer_types[layer]]
        assert int((mask == 0).sum()) == seen


@pytest.mark.parametrize(
    ("rope_type", "expected"), [("default", False), ("linear", False), ("dynamic", True), ("longrope", True)]
)
def test_rope_that_depends_on_the_length(rope_type: str, expected: bool) -> None:
    config = LlamaConfig()
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4}
    assert has_length_dependent_rope(config) == expected
    assert rope_kinds(config) == [None]
    config.layer_types = ["sliding_attention", "full_attention"]
    config.rope_parameters = {"full_attention": {"rope_type": rope_type}, "sliding_attention": {"rope_type": "default"}}
    assert has_length_dependent_rope(config) == expected
    assert rope_kinds(config) == ["full_attention", "sliding_attention"]


def test_a_configuration_without_rope_depends_on_no_length() -> None:
    assert not has_length_dependent_rope(CONFIGS["opt"])


def test_qwen3_without_its_window_attends_to_everything() -> None:
    config = Qwen3Config(**_SIZES, sliding_window=8)
    assert [window_of(config, layer) for layer in range(3)] == [0, 0, 0]


_PACKAGE = Path(tda_demo.__file__).parent
# The records themselves, and shapes of published models, which are configurations for transformers to build.
_MAY_NAME_FAMILIES = {_PACKAGE / "model" / "family.py", _PACKAGE / "bench" / "random_model.py"}


def test_no_other_file_knows_families_by_name() -> None:
    """No string of the code, comments and docstrings apart, is a family's name or the beginning of its classes'."""
    names = {family.lower() for family in FAMILIES}
    names |= {re.match("[a-z]+", name)[0] for name in names} - {"gpt"}  # type: ignore[index]
    named = [
        f"{path.relative_to(_PACKAGE)}:{line} {text!r}"
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path not in _MAY_NAME_FAMILIES
        for line, text in _strings(ast.parse(path.read_text("utf-8")))
        if text.lower() in names
    ]
    assert named == []


def _strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The string constants of a module, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
