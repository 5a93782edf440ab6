"""A loaded model, and model folders: what is taken, what is refused and in which words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from model_files import write_gguf, write_model
from safetensors.torch import load_file, save_file
from tiny import PROMPT
from transformers import BertConfig, T5Config

from tda_demo.kernels.formats import round_by_neuron, round_by_row
from tda_demo.model.loading import EMBEDDED, PRECISIONS, LoadedModel, load_model
from tda_demo.support.errors import UserError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-llama")


def test_folder(model_folder: Path) -> None:
    loaded = load_model(str(model_folder), precision="float32", device="cpu")
    assert loaded.name == "tiny-llama"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.device == torch.device("cpu")
    assert len(loaded.blocks) == 3
    expected = load_file(model_folder / "model.safetensors")
    assert torch.equal(loaded.blocks[1].up.weight, expected["model.layers.1.mlp.up_proj.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, family: str) -> None:
    loaded = load_model(str(write_model(tmp_path, family)))
    assert len(loaded.blocks) == 3
    assert loaded.model(input_ids=torch.tensor([[5, 9]]), logits_to_keep=1).logits.shape[:2] == (1, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision(model_folder: Path, precision: str) -> None:
    loaded = load_model(str(model_folder), precision=precision)
    assert loaded.precision == precision
    block, exact = loaded.blocks[1], load_model(str(model_folder), precision="float32").blocks[1]
    assert block.up.weight.dtype == torch.float32
    assert torch.equal(block.up.weight, round_by_row(exact.up.weight, precision))
    assert torch.equal(block.down.weight, round_by_neuron(exact.down.weight, precision))


def test_default_precision_on_cpu(model_folder: Path) -> None:
    assert load_model(str(model_folder), device="cpu").precision == "int8"


@pytest.mark.parametrize("precision", ["int3", "", "float16"])
def test_unknown_precision(precision: str) -> None:
    with pytest.raises(UserError, match="use float32, bfloat16, int8, q4 or nf4"):
        load_model(precision=precision, device="cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:63", "mps", "meta", "abacus", ""])
def test_unusable_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"use .*cpu"):
        load_model(device=device)


def test_pickles_are_refused(model_folder: Path) -> None:
    weights_file = model_folder / "model.safetensors"
    torch.save(load_file(weights_file), model_folder / "pytorch_model.bin")
    load_model(str(model_folder))  # the safetensors beside them are what is read
    weights_file.unlink()
    with pytest.raises(UserError, match="never opened because they can run code"):
        load_model(str(model_folder))


def test_custom_code_is_never_run(model_folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (model_folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')")
    config = json.loads((model_folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"},
    }
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="custom code, which is never run"):
        load_model(str(model_folder))
    assert not ran.exists()


def test_folder_without_config(model_folder: Path) -> None:
    (model_folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"'tiny-llama' holds no config.json"):
        load_model(str(model_folder))


@pytest.mark.parametrize(
    "config", ["", "{", "[]", "{}", '{"model_type": "nobody-knows"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_folder_with_a_broken_config(model_folder: Path, config: str) -> None:
    (model_folder / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"config.json of 'tiny-llama'"):
        load_model(str(model_folder))


@pytest.mark.parametrize("config", [BertConfig(), T5Config()])
def test_architecture_is_checked_before_weights(tmp_path: Path, config: Any) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=config.model_type):
        load_model(str(tmp_path))


def test_quantised_weights_are_refused(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised already"):
        load_model(str(model_folder))


def test_damaged_weights(model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"The weights in .*tiny-llama are damaged"):
        load_model(str(model_folder))


def test_missing_tensors_are_not_made_up(model_folder: Path) -> None:
    path = model_folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack 1 tensor"):
        load_model(str(model_folder))


def test_missing_tokenizer(model_folder: Path) -> None:
    for file in model_folder.glob("token*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer of 'tiny-llama' is missing"):
        load_model(str(model_folder))


def test_folder_of_ggufs(tmp_path: Path, model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    write_gguf(model_folder / "tiny.gguf")
    with pytest.raises(UserError, match=r"give the path of one .gguf file"):
        load_model(str(model_folder))


def test_prompt_ids_without_template(lm: LoadedModel) -> None:
    assert lm.tokenizer.chat_template is None
    assert lm.prompt_ids("w5 w9") == [5, 9]


@pytest.mark.parametrize("prompt", ["", " ", "\n\t "])
def test_blank_prompt(lm: LoadedModel, prompt: str) -> None:
    with pytest.raises(UserError, match="prompt is empty"):
        lm.prompt_ids(prompt)


def test_prompt_without_tokens(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lm.tokenizer), "__call__", lambda *_: {"input_ids": []})
    with pytest.raises(UserError, match="no text that"):
        lm.prompt_ids("?")


def test_prompt_up_to_the_context(lm: LoadedModel) -> None:
    assert len(lm.prompt_ids("w5 " * (lm.context_length - 1))) == 127
    with pytest.raises(UserError, match=r"128 tokens long.* at most 127"):
        lm.prompt_ids("w5 " * lm.context_length)


def test_half_an_emoji_is_no_reason_to_fail(lm: LoadedModel) -> None:
    assert len(lm.prompt_ids("w5 \ud83d w9")) == 3


@pytest.mark.parametrize(("configured", "ids"), [(None, {2}), (5, {2, 5}), ([5, 6], {2, 5, 6})])
def test_eos_ids(lm: LoadedModel, configured: Any, ids: set[int]) -> None:
    lm.model.generation_config.eos_token_id = configured
    assert lm.eos_ids == ids


def test_generate_is_the_greedy_continuation(lm: LoadedModel) -> None:
    ids = torch.tensor([lm.prompt_ids(PROMPT)])
    model: Any = lm.model
    model.generation_config.eos_token_id = None
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
    new = expected[0, ids.shape[1] :].tolist()
    if 2 in new:
        new = new[: new.index(2)]
    assert lm.generate(PROMPT, max_new_tokens=20) == lm.tokenizer.decode(new, skip_special_tokens=True)


def test_generate_stops_at_the_context(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoadedModel, "eos_ids", frozenset())
    prompt = "w5 " * (lm.context_length - 4)
    assert 0 < len(lm.generate(prompt, max_new_tokens=10**9).split()) <= 4


@pytest.mark.parametrize("number", [0, -1])
def test_generate_nothing(lm: LoadedModel, number: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        lm.generate(PROMPT, max_new_tokens=number)


def test_the_embedded_model(embedded: LoadedModel) -> None:
    assert (embedded.name, embedded.precision, embedded.context_length) == (EMBEDDED, "float32", 8192)
    assert len(embedded.blocks) == 30
    assert embedded.eos_ids == {2}
    assert str(embedded.tokenizer.decode(embedded.prompt_ids("Why is the sky blue?"))).endswith(
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "Paris" in embedded.generate("What is the capital of France?", max_new_tokens=16)


def test_transformers_is_as_talkative_as_before(model_folder: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(model_folder))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_importing_costs_torch_alone() -> None:
    script = (
        "import sys, tda_demo.model.loading; print('transformers' in sys.modules, 'huggingface_hub' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]
