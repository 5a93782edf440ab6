"""Tiny models as files, and two looks at what loading them left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from families import tiny_model
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tiny import tiny_tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from tda_demo.model import weights
from tda_demo.model.weights import embedded, gguf
from tda_demo.model.weights.cache import find_fault
from tda_demo.support.progress import Report

LAYERS, WIDTH, D_FF, HEADS, KV_HEADS = 2, 64, 96, 4, 2
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "th", "the")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(
    path: Path,
    architecture: str = "llama",
    change: Callable[[GGUFWriter], object] = lambda _: None,
    eos: int = 2,
    kinds: Callable[[str], str] = lambda _: "Q4_1",
) -> Path:
    """Write a GGUF file like the embedded model's: random llama, 4-bit blocks, byte-level BPE, chat template.

    ``change`` may add to its metadata or tensors; ``kinds`` says what a matrix is stored as.
    """
    writer = GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(eos)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    change(writer)

    random = np.random.default_rng(0)

    def add_matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) / 8
        kind = GGMLQuantizationType[kinds(name)]
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, random.uniform(0.5, 1.5, WIDTH).astype(np.float32))

    add_matrix("token_embd.weight", len(TOKENS), WIDTH)
    add_norm("output_norm.weight")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm.weight")
        add_norm(f"{block}.ffn_norm.weight")
        add_matrix(f"{block}.attn_q.weight", WIDTH, WIDTH)
        add_matrix(f"{block}.attn_k.weight", WIDTH * KV_HEADS // HEADS, WIDTH)
        add_matrix(f"{block}.attn_v.weight", WIDTH * KV_HEADS // HEADS, WIDTH)
        add_matrix(f"{block}.attn_output.weight", WIDTH, WIDTH)
        add_matrix(f"{block}.ffn_gate.weight", D_FF, WIDTH)
        add_matrix(f"{block}.ffn_up.weight", D_FF, WIDTH)
        add_matrix(f"{block}.ffn_down.weight", WIDTH, D_FF)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_model(folder: Path, family: str = "llama") -> Path:
    """Write a tiny random model with its tokenizer, as ``save_pretrained`` leaves them."""
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def unfinished(cache: Path) -> list[str]:
    """What lies in the cache beside lock files and finished folders."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock" and find_fault(path)]


def count_conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the name of every model converted."""
    names: list[str] = []

    def counted(path: Path, folder: Path, name: str, report: Report) -> None:
        names.append(name)
        gguf.convert(path, folder, name, report)

    monkeypatch.setattr(embedded, "convert", counted)
    monkeypatch.setattr(weights, "convert", counted)
    return names
