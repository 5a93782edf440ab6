"""A model's own answers: written group by group, taken up again, and those of greedy decoding one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES
from little_text import DOCUMENTS
from tiny import tiny

from tda_demo.calibration import answers
from tda_demo.calibration.answers import Answer, kept_answers, project_questions, questions_sha256, write
from tda_demo.calibration.sources import ANSWERS, PASSAGES
from tda_demo.model.loading import LoadedModel
from tda_demo.support.progress import Progress

pytestmark = pytest.mark.usefixtures("little_text", "own_cache")

QUESTIONS = len(DOCUMENTS) + len(DOCUMENTS[1:])
TEMPLATE = "{% for turn in messages %}{{ turn['content'] }}{% endfor %} w9"


class CutOffError(Exception):
    pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that answers were written to, in groups of three."""
    prompts: list[list[int]] = []
    whole = answers.write

    def watched(lm: LoadedModel, group: list[list[int]]) -> list[list[int]]:
        prompts.extend(group)
        return whole(lm, group)

    monkeypatch.setattr(answers, "write", watched)
    monkeypatch.setattr(answers, "_AT_ONCE", 3)
    return prompts


def cut_off_after(groups: int) -> Any:
    def report(progress: Progress) -> None:
        if progress.done >= 3 * groups:
            raise CutOffError

    return report


def all_of(lm: LoadedModel, **more: Any) -> list[Answer]:
    return [answer for held_out in (False, True) for answer in answers.answers(lm, held_out=held_out, **more)]


@pytest.mark.parametrize("groups", [1, 2])
def test_writing_that_is_cut_off_goes_on_where_it_was(lm: LoadedModel, asked: list[list[int]], groups: int) -> None:
    kept = kept_answers(lm)
    with pytest.raises(CutOffError):
        answers.answers(lm, held_out=False, report=cut_off_after(groups))
    assert not kept.path.exists() and kept.unfinished(questions_sha256()).path.exists()
    assert len(kept.unfinished(questions_sha256()).find() or []) == len(asked) == 3 * groups
    found = all_of(lm)
    assert len(asked) == QUESTIONS and asked == [list(answer.question) for answer in found]
    assert kept.path.exists() and not kept.unfinished(questions_sha256()).path.exists()
    assert all_of(lm) == found and len(asked) == QUESTIONS  # now they are read
    kept.path.unlink()
    assert all_of(lm) == found and len(asked) == 2 * QUESTIONS  # in one go it is the same


@pytest.mark.parametrize("content", ["", "[", "{}", '[{"question": [3]}]'])
def test_a_damaged_part_is_written_anew(lm: LoadedModel, asked: list[list[int]], content: str) -> None:
    part = kept_answers(lm).unfinished(questions_sha256())
    part.path.parent.mkdir(parents=True)
    part.path.write_text(content, "utf-8")
    assert len(all_of(lm)) == len(asked) == QUESTIONS and not part.path.exists()


def test_another_model_has_answers_of_its_own(lm: LoadedModel, asked: list[list[int]]) -> None:
    with pytest.raises(CutOffError):
        answers.answers(lm, held_out=False, report=cut_off_after(1))
    other = tiny("opt")
    assert kept_answers(other).path != kept_answers(lm).path
    assert len(all_of(other)) == QUESTIONS and kept_answers(lm).unfinished(questions_sha256()).path.exists()


def test_with_a_chat_template_the_projects_questions_are_answered(
    lm: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LENGTH", 3)
    lm.tokenizer.chat_template = TEMPLATE
    calibration, held_out = (answers.answers(lm, held_out=each) for each in (False, True))
    assert (len(calibration), len(held_out)) == (48, 12)
    questions = project_questions()
    for found, held in ((calibration, False), (held_out, True)):
        expected = [tuple(lm.prompt_ids(each.prompt)) for each in questions if each.held_out is held]
        assert [answer.question for answer in found] == expected
        assert all(1 <= len(answer.answer) <= 3 and answer.held_out is held for answer in found)


def test_without_one_passages_go_on_whatever_the_models_context(
    lm: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "project_passages", lambda held_out: [*DOCUMENTS] if not held_out else [])
    monkeypatch.setattr(answers, "_BEGINNING", 7)
    lm.model.config.max_position_embeddings = 20  # shorter than the passages
    found = answers.answers(lm, held_out=False)
    begun = [tuple(lm.tokenizer(document.text)["input_ids"][:7]) for document in DOCUMENTS]
    assert [answer.question for answer in found] == begun
    assert all(len(answer.answer) <= 12 for answer in found)


def test_of_answers_the_question_is_context_only_and_passages_count_whole(lm: LoadedModel) -> None:
    for held_out in (False, True):
        read = ANSWERS.texts(lm, held_out=held_out)
        written = answers.answers(lm, held_out=held_out)
        assert [text.ids for text in read.texts] == [(*each.question, *each.answer) for each in written]
        assert [text.begin for text in read.texts] == [len(each.question) for each in written]
        assert read.tokens == sum(len(each.answer) for each in written)
    cut = ANSWERS.texts(lm, longest=31)  # questions are 30 tokens long
    assert [len(text.ids) - text.begin for text in cut.texts] == [1] * 4
    assert ANSWERS.texts(lm, longest=30).texts == ()
    whole = PASSAGES.texts(lm)
    assert {text.begin for text in whole.texts} == {0} and whole.tokens == 4 * 30
    assert len({ANSWERS.texts(lm).sha256, ANSWERS.texts(lm, held_out=True).sha256, whole.sha256}) == 3
    assert (ANSWERS.name, PASSAGES.name) == ("answers", "passages") and ANSWERS.version() != PASSAGES.version()


def greedy(lm: LoadedModel, prompt: list[int], length: int) -> list[int]:
    """Without a cache, without padding."""
    text: list[int] = []
    while len(text) < length and not (text and text[-1] in lm.eos_ids):
        text.append(int(lm.model(input_ids=torch.tensor([[*prompt, *text]])).logits[0, -1].argmax()))
    return text


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_any_lengths_at_once_are_written_on_as_one_by_one(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny(family)
    monkeypatch.setattr(answers, "LENGTH", 20)
    prompts = [list(range(5, 5 + length)) for length in (1, 23, 6, 17)]
    free = [greedy(lm, prompt, 20) for prompt in prompts]
    monkeypatch.setattr(type(lm), "eos_ids", frozenset({free[1][:8][-1], 96}))  # one text at least ends by itself
    expected = [greedy(lm, prompt, 20) for prompt in prompts]
    assert min(map(len, expected)) <= 8
    assert write(lm, prompts) == expected
    assert [write(lm, [prompt])[0] for prompt in prompts] == expected
