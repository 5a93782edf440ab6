"""GGUF files: converted exactly, once, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from model_files import CHAT_TEMPLATE, count_conversions, unfinished, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from tda_demo.model import weights
from tda_demo.model.loading import load_model
from tda_demo.model.weights.gguf_reader import QuickReader
from tda_demo.support.errors import UserError


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names converted so far."""
    return count_conversions(monkeypatch)


def test_converted_gguf_equals_what_transformers_reads(own_cache: Path, tmp_path: Path, conversions: list[str]) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    loaded = load_model(str(path), precision="float32")
    expected: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)

    assert loaded.name == "tiny.gguf"
    mine, theirs = loaded.model.state_dict(), expected.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert loaded.model.generation_config.eos_token_id == expected.generation_config.eos_token_id
    assert "quantization_config" not in loaded.model.config.to_dict()
    prompt = "Why is the sky blue? \u0645\u0631\u062d\u0628\u0627 \N{GRINNING FACE} <|im_end|>{{ 7*7 }}${x}\x07"
    turns = [{"role": "user", "content": prompt}]
    assert loaded.tokenizer.chat_template == CHAT_TEMPLATE
    assert loaded.prompt_ids(prompt) == tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]

    load_model(str(path))
    assert conversions == ["tiny.gguf"]


def test_fingerprint_follows_the_content_and_not_the_place(own_cache: Path, tmp_path: Path) -> None:
    one = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copy(one, tmp_path / "elsewhere"))
    fingerprints = [weights.find_weights(str(path), lambda _: None).fingerprint for path in (one, copy)]
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    changed = weights.find_weights(str(copy), lambda _: None).fingerprint
    assert fingerprints[0] == fingerprints[1] != changed
    assert all(int(fingerprint, 16) for fingerprint in (*fingerprints, changed))


def cut(content: bytes) -> bytes:
    return content[: len(content) - 5000]


def header_only(content: bytes) -> bytes:
    return content[:200]


def noise(content: bytes) -> bytes:
    return bytes(range(256)) * 40


def noise_after_magic(content: bytes) -> bytes:
    return content[:8] + bytes(range(256)) * 40


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, header_only, noise, noise_after_magic, empty])
def test_corrupt_gguf(own_cache: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write_gguf(tmp_path / "broken.gguf")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"'broken.gguf' cannot be read as a GGUF model"):
        load_model(str(path))
    assert unfinished(own_cache) == []


def test_gguf_of_an_unsupported_architecture(own_cache: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", architecture="rwkv7")
    with pytest.raises(UserError, match="architecture"):
        load_model(str(path))


def test_missing_gguf() -> None:
    with pytest.raises(UserError, match=r"There is no file 'nowhere.gguf'"):
        load_model("nowhere.gguf")


def test_the_quick_reader_gives_what_the_package_does(tmp_path: Path) -> None:
    def change(writer: GGUFWriter) -> None:
        writer.add_array("odd.numbers", [1.5, -2.0])
        writer.add_array("odd.one", [True])
        writer.add_string("odd.text", "äöü")

    path = write_gguf(tmp_path / "tiny.gguf", change=change)
    ours, theirs = QuickReader(path), GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert ours.fields[name].types == field.types
        assert ours.fields[name].contents() == field.contents()
    for tensor, expected in zip(ours.tensors, theirs.tensors, strict=True):
        assert tensor.name == expected.name
        np.testing.assert_array_equal(tensor.data, expected.data)
    ours.let_go()
    np.testing.assert_array_equal(ours.tensors[0].data, theirs.tensors[0].data)


@given(length=st.integers(24, 6000))
def test_the_quick_reader_refuses_a_file_cut_short(length: int) -> None:
    with TemporaryDirectory() as folder:
        path = write_gguf(Path(folder) / "tiny.gguf")
        whole = path.read_bytes()
        path.write_bytes(whole[:length])
        with pytest.raises((ValueError, IndexError)):
            QuickReader(path)
