"""A LoadedModel around a tiny random model, with a tokenizer made on the spot: a word a token."""

from __future__ import annotations

import torch
from families import VOCABULARY, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tda_demo.model.feedforward import find_blocks
from tda_demo.model.loading import LoadedModel

PROMPT = " ".join(f"w{number}" for number in (5, 9, 17, 30, 31, 44, 58, 60, 71, 90, 12, 13))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def tiny(family: str = "llama", dtype: torch.dtype = torch.float32) -> LoadedModel:
    model = tiny_model(family, dtype)
    return LoadedModel(
        name=f"tiny-{family}",
        fingerprint=f"{family:0<16}",
        model=model,
        tokenizer=tiny_tokenizer(),
        precision=str(dtype).removeprefix("torch."),
        device=torch.device("cpu"),
        blocks=find_blocks(model),
    )
