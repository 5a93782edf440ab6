"""The model's own greedy answers to questions written for this project: what races and generation look like to it.

A model without a chat template goes on from the beginnings of the passages instead. Written once for a model and kept,
a group of questions at a time, so that writing which is cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..support.files import DATA, kept_name
from ..support.kept import remove_kept
from ..support.lazy import inference_mode, torch
from ..support.progress import Progress, Report, silent
from .documents import project_passages
from .tables import KeptTable, json_rows

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

QUESTIONS = DATA / "questions.jsonl"
LENGTH = 96  # tokens of an answer at most
_AT_ONCE = 12  # questions: reading the weights serves them all, unless a lone token is computed from their codes
_BEGINNING = 32  # tokens of a passage that a model without a chat template goes on from


@dataclass(frozen=True)
class Question:
    """Something to answer; ``held_out`` ones choose presets and calibrate nothing."""

    prompt: str
    held_out: bool = False


@dataclass(frozen=True)
class Answer:
    """Token ids of a question and of its answer, the end token included where it came."""

    question: tuple[int, ...]
    answer: tuple[int, ...]
    held_out: bool


def project_questions() -> list[Question]:
    """The project's own; they share no sentence with the page's examples."""
    return [Question(**json.loads(line)) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]


def questions_sha256() -> str:
    """Of the questions' file, in hex."""
    return hashlib.sha256(QUESTIONS.read_bytes()).hexdigest()


def answers(lm: LoadedModel, *, held_out: bool, report: Report = silent) -> list[Answer]:
    """Those to calibrate on, or those held out: kept, else shipped, else written now and kept."""
    kept = kept_answers(lm)
    return [answer for answer in kept.get(lambda: _write_all(lm, kept, report)) if answer.held_out is held_out]


def kept_answers(lm: LoadedModel) -> KeptTable[list[Answer]]:
    """Where a model's answers are kept: those of one precision serve all."""
    return KeptTable("answers", kept_name(lm.name, lm.fingerprint), _parse, _text)


def _text(written: list[Answer]) -> str:
    return f"{json_rows(asdict(answer) for answer in written)}\n"


def _parse(rows: Any) -> list[Answer]:
    if not rows:
        raise ValueError("there is no answer")
    return [Answer(tuple(row["question"]), tuple(row["answer"]), bool(row["held_out"])) for row in rows]


def _write_all(lm: LoadedModel, kept: KeptTable[list[Answer]], report: Report) -> list[Answer]:
    """Every answer; those there are of writing that was cut off are taken over."""
    questions = _questions(lm)
    part = kept.unfinished(questions_sha256())
    written = (part.find() or [])[: len(questions)]
    at_once = 1 if lm.blocks[0].is_stored else _AT_ONCE
    while len(written) < len(questions):
        report(Progress(f"Writing answers of {lm.name} to calibrate on", len(written), len(questions), "answers"))
        group = questions[len(written) : len(written) + at_once]
        texts = write(lm, [list(ids) for ids, _ in group])
        pairs = zip(group, texts, strict=True)
        written += [Answer(ids, tuple(text), held_out) for (ids, held_out), text in pairs]
        part.save(written)
    kept.save(written)
    remove_kept(part.path)
    return written


def _questions(lm: LoadedModel) -> list[tuple[tuple[int, ...], bool]]:
    """Token ids of what is answered, and whether it is held out."""
    if lm.tokenizer.chat_template:
        return [(tuple(lm.prompt_ids(question.prompt)), question.held_out) for question in project_questions()]
    return [
        (tuple(lm.tokenizer(document.text)["input_ids"][:_BEGINNING]), held_out)
        for held_out in (False, True)
        for document in project_passages(held_out=held_out)
    ]


@inference_mode
def write(lm: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
    """The greedy continuations of ``prompts``, all at once, up to and with the end token."""
    from transformers import DynamicCache

    longest = max(map(len, prompts))
    length = min(LENGTH, lm.context_length - longest)
    filler = min(lm.eos_ids, default=0)
    ids = torch.tensor([[filler] * (longest - len(prompt)) + prompt for prompt in prompts], device=lm.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=lm.device)
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    cache = DynamicCache()
    texts: list[list[int]] = [[] for _ in prompts]
    for _ in range(length):
        logits = lm.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        ids = logits[:, -1].argmax(dim=1, keepdim=True)
        for text, token in zip(texts, ids[:, 0].tolist(), strict=True):
            if not text or text[-1] not in lm.eos_ids:
                text.append(token)
        if all(text[-1] in lm.eos_ids for text in texts):
            break
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return texts
