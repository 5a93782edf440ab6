"""Models as they come: what their files say is applied, or refused in one sentence that is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter, RopeScalingType
from model_files import CHAT_TEMPLATE, write_gguf, write_model
from safetensors.torch import load_file, save_file
from tiny import PROMPT

from tda_demo.__main__ import main
from tda_demo.methods import GRIFFIN
from tda_demo.model.loading import LoadedModel, load_model
from tda_demo.race import Finished, RaceSettings, race
from tda_demo.support.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-llama")


def refusal(name: Path, prompt: str = PROMPT) -> str:
    with pytest.raises(UserError) as raised:
        load_model(str(name), precision="float32").prompt_ids(prompt)
    assert "\n" not in str(raised.value)
    return str(raised.value)


class TestRotaryPositions:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda writer: writer.add_rope_scaling_type(RopeScalingType.YARN), "yarn"),
            (lambda writer: (writer.add_rope_scaling_type(RopeScalingType.LINEAR), _factor(writer, 4.0)), "linear"),
            (lambda writer: writer.add_float32("llama.rope.scale_linear", 2.0), "linear"),
            (lambda writer: writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, 8, dtype=np.float32)), "factor"),
        ],
    )
    def test_scaled_ones_are_refused_by_name(
        self, tmp_path: Path, own_cache: Path, change: Callable[[GGUFWriter], object], named: str
    ) -> None:
        told = refusal(write_gguf(tmp_path / "scaled.gguf", change=change))
        assert "scaled.gguf" in told and "rotary positions" in told and named in told

    @pytest.mark.parametrize(
        "change",
        [
            lambda writer: writer.add_rope_scaling_type(RopeScalingType.NONE),
            lambda writer: (writer.add_rope_scaling_type(RopeScalingType.LINEAR), _factor(writer, 1.0)),
            lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(8, dtype=np.float32)),
        ],
    )
    def test_those_that_are_scaled_by_one_are_not(
        self, tmp_path: Path, own_cache: Path, change: Callable[[GGUFWriter], object]
    ) -> None:
        assert load_model(str(write_gguf(tmp_path / "plain.gguf", change=change)), precision="float32").blocks


def _factor(writer: GGUFWriter, factor: float) -> None:
    writer.add_rope_scaling_factor(factor)


class TestEndings:
    def test_an_end_of_turn_that_is_not_the_end_of_text(self, tmp_path: Path, own_cache: Path) -> None:
        gguf = write_gguf(tmp_path / "chat.gguf", change=lambda writer: writer.add_eot_token_id(2), eos=0)
        assert load_model(str(gguf), precision="float32").eos_ids == {0, 2}

    def test_one_that_only_the_template_shows(self, tmp_path: Path, own_cache: Path) -> None:
        assert load_model(str(write_gguf(tmp_path / "chat.gguf", eos=0)), precision="float32").eos_ids == {0, 2}

    def test_an_answer_ends_there(self, tmp_path: Path, own_cache: Path) -> None:
        lm = load_model(str(write_gguf(tmp_path / "chat.gguf", eos=0)), precision="float32")
        head: Any = lm.model.get_output_embeddings()
        head.weight.data = torch.zeros_like(head.weight)  # all logits alike, but the bias of the end of turn
        head.bias = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(2), len(head.weight)).float())
        result = _result(lm)
        assert (result.dense.ended, result.dense.tokens, result.dense.text) == ("eos", 1, "")


def _result(lm: LoadedModel) -> Any:
    *_, finished = race(lm, GRIFFIN(), PROMPT, RaceSettings(4))
    assert isinstance(finished, Finished)
    return finished.result


class TestTemplates:
    @pytest.mark.parametrize(
        ("template", "why"),
        [
            ("{{ raise_exception('No user turns.') }}", "No user turns"),
            ("{% for m in messages %}", "TemplateSyntaxError"),
            ("{{ nobody.knows.this }}", "nobody"),
            ({"tool_use": CHAT_TEMPLATE}, "tool_use"),
        ],
    )
    def test_what_is_wrong_with_one_is_said(self, folder: Path, template: Any, why: str) -> None:
        lm = load_model(str(folder), precision="float32")
        lm.tokenizer.chat_template = template
        with pytest.raises(UserError, match="chat template of tiny-llama cannot be used") as raised:
            lm.prompt_ids(PROMPT)
        assert why in str(raised.value) and "\n" not in str(raised.value)

    def test_the_command_says_so_too(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "chat_template.jinja").write_text("{% for m in messages %}")
        assert main(["race", PROMPT, "--model", str(folder), "--method", "griffin"]) == 2
        told = capsys.readouterr().err
        assert "chat template" in told and told.count("\n") == 1


class TestNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_none_are_refused(self, folder: Path, value: float) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert "up_proj.weight holds what is no number" in refusal(folder)

    def test_logits_that_are_none_are_no_result(self, lm: LoadedModel) -> None:
        norm: Any = lm.model.get_decoder().norm
        norm.weight.data = torch.full_like(norm.weight, float("nan"))
        with pytest.raises(UserError, match="computes no numbers"):
            _result(lm)


class TestFolders:
    def test_an_adapter_is_called_one(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text("{}")
        assert "is an adapter" in refusal(folder) and "merge" in refusal(folder)

    def test_sizes_that_contradict_each_other_are_said(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config |= {"num_attention_heads": 3, "head_dim": None}
        (folder / "config.json").write_text(json.dumps(config))
        told = refusal(folder)
        assert "config.json" in told and "damaged" not in told

    def test_a_missing_library_is_not_called_a_missing_tokenizer(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for file in folder.glob("token*"):
            file.unlink()
        (folder / "tokenizer.model").write_bytes(b"\n\x05")
        monkeypatch.setattr("tda_demo.model.loading.find_spec", lambda _: None)
        assert "pip install sentencepiece" in refusal(folder)


class TestPenalties:
    def test_what_is_not_applied_is_said(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.3, "do_sample": True}))
        lm = load_model(str(folder), precision="float32")
        assert lm.ignored == {"repetition_penalty": 1.3}
        assert _result(lm).environment["ignored"] == lm.ignored
        command = ["race", PROMPT, "--model", str(folder), "--method", "griffin", "--precision", "float32"]
        assert main([*command, "--max-new-tokens", "2"]) == 0
        assert "not applied, to either side: repetition_penalty 1.3" in capsys.readouterr().err

    def test_a_model_that_asks_for_none_has_nothing_to_say(self, lm: LoadedModel) -> None:
        assert lm.ignored == {} and "ignored" not in _result(lm).environment
