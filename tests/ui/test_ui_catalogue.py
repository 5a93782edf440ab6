"""What the page says of a model's memory, and which it refuses before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny import tiny

from tda_demo.decode.cpu import compile_ahead
from tda_demo.model import loading as models
from tda_demo.model.loading import LoadedModel
from tda_demo.model.precision import choose_precision, default_precision
from tda_demo.support.errors import UserError
from tda_demo.ui import models as page_models
from tda_demo.ui.models import CATALOGUE, EMBEDDED, Models, Room, check_access, check_room
from tda_demo.ui.requests import HUB_MODELS, Offers


def entry(name: str) -> Any:
    return next(each for each in CATALOGUE if each.name == name)


def test_the_embedded_entry_counts_what_the_model_has(embedded: LoadedModel) -> None:
    config: Any = embedded.model.config
    parameters = sum(parameter.numel() for parameter in embedded.model.parameters())
    assert entry(EMBEDDED).parameters == pytest.approx(parameters, rel=0.01)
    assert entry(EMBEDDED).tables == pytest.approx(config.vocab_size * config.hidden_size, rel=0.01)
    assert entry(EMBEDDED).layers == len(embedded.blocks)
    assert entry(EMBEDDED).cached == config.num_key_value_heads * config.head_dim


def test_the_default_precision_of_a_cpu_is_the_loader_s() -> None:
    import torch

    assert default_precision("cpu") == choose_precision(None, torch.device("cpu"))


def test_eight_billion_weights_in_bfloat16_are_at_least_sixteen_gigabytes() -> None:
    llama = entry("meta-llama/Llama-3.1-8B-Instruct")
    assert 16.06e9 < llama.bytes_needed("cuda", "bfloat16") < 36e9
    assert llama.bytes_needed("cpu", "float32") > 3 * llama.bytes_needed("cuda", "nf4")
    for device in ("cpu", "cuda"):
        sizes = [llama.bytes_needed(device, kind) for kind in ("float32", "bfloat16", "int8", "nf4")]
        assert sizes == sorted(sizes, reverse=True)


def test_the_list_has_an_estimate_beside_every_name() -> None:
    choices = Offers().choices
    assert [value for _, value in choices] == [EMBEDDED, *HUB_MODELS]
    assert all(" GB" in text and text.startswith(value) for text, value in choices)
    assert "No CUDA GPU" in Offers().hint and "GPU memory" in Offers(device="cuda").hint


def test_a_model_that_is_too_large_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError, match=r"Qwen/Qwen3-8B in int8 needs about \d+ GB of memory, and 4\.0 GB are free"):
        check_room("Qwen/Qwen3-8B", None, "cpu", Room(4e9, "memory"))
    check_room("Qwen/Qwen3-8B", None, "cpu", Room(1e12, "memory"))
    check_room("some/other", "nf4", "cuda", Room(0, "GPU memory"))  # nothing is known of it
    check_room(None, None, "cpu", Room(4e9, "memory"))


def test_the_loader_refuses_before_it_fetches_or_lets_another_model_go(
    lm: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def load_model(name: str | None, **_: Any) -> LoadedModel:
        asked.append(name)
        return lm

    monkeypatch.setattr(models, "load_model", load_model)
    monkeypatch.setattr(page_models, "main_memory", lambda: Room(3e9, "memory"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    kept = Models(1)
    kept.get("a", "float32")
    with pytest.raises(UserError, match=r"3\.0 GB are free"):
        kept.get("Qwen/Qwen3-8B", None)
    assert kept.get("a", "float32") is lm and asked == ["a"]


def test_a_gated_model_needs_a_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"google/gemma-2-2b-it is gated .* HF_TOKEN"):
        check_access("google/gemma-2-2b-it")
    for open_to_all in (None, "Qwen/Qwen3-8B", "some/other"):
        check_access(open_to_all)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    check_access("google/gemma-2-2b-it")


def test_a_model_that_is_loaded_has_a_second_process_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, ...]] = []
    monkeypatch.setattr(compile_ahead, "compile_ahead", lambda *model: asked.append(model))
    monkeypatch.setattr(models, "load_model", lambda *_args, **_kwargs: tiny())
    Models(most=1).get(None, "float32")
    assert asked == [(None, "float32")]
