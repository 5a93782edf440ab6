"""The text that is trained on: the calibration passages, and what the model writes when nobody asks it anything.

Each text of the model's own begins with a token drawn at random (as LLM-QAT does, arXiv 2305.17888), so that no data
is needed. Held-out passages are never read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...calibration.passages import calibration_passages
from ...support.lazy import inference_mode, torch
from ...support.progress import Progress, Report

if TYPE_CHECKING:
    from ...model.loading import LoadedModel

_LONGEST = 256  # tokens of a passage that are read
_WRITTEN = 64  # texts the model writes
_LENGTH = 128  # tokens of each
_LIKELIEST = 0.95  # probability mass that is drawn from


def passages(lm: LoadedModel) -> list[list[int]]:
    """Tokens of every calibration passage."""
    texts = calibration_passages().texts
    return [
        lm.tokenizer(text, truncation=True, max_length=min(_LONGEST, lm.context_length))["input_ids"] for text in texts
    ]


@inference_mode
def written(lm: LoadedModel, seed: int, report: Report) -> torch.Tensor:
    """Texts of the model's own, int64 [texts, tokens]: all are written at once, drawn at temperature 1."""
    from transformers import DynamicCache

    length = min(_LENGTH, lm.context_length)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(lm.tokenizer), (_WRITTEN, 1), generator=generator)
    cache = DynamicCache(config=lm.model.config)
    while ids.shape[1] < length:
        report(Progress("Writing text to train on", ids.shape[1], length, "tokens"))
        step = ids[:, -1:].to(lm.device)
        logits = lm.model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1]
        ids = torch.cat([ids, _drawn(logits.float().cpu(), generator)], dim=1)
    return ids


def _drawn(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token for every row of ``logits``, int64 [rows, 1], from the likeliest that make up ``_LIKELIEST``."""
    probabilities, tokens = logits.softmax(dim=1).topk(min(1000, logits.shape[1]), dim=1)
    before = probabilities.cumsum(dim=1) - probabilities
    places = probabilities.masked_fill(before > _LIKELIEST, 0).multinomial(1, generator=generator)
    return tokens.gather(1, places)
