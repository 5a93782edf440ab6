"""The texts that ship with the project: calibration passages and the page's example prompts."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tda_demo.calibration.answers import LENGTH, kept_answers, project_questions
from tda_demo.calibration.channel_shares import MOST
from tda_demo.calibration.quantiles import SHARES
from tda_demo.calibration.sources import ANSWERS
from tda_demo.calibration.sources import PASSAGES as TEXTS
from tda_demo.model.loading import LoadedModel
from tda_demo.model.weights.embedded import WHEEL_SHA256
from tda_demo.support.files import DATA

ROOT = Path(__file__).parent.parent
PASSAGES: list[dict] = [json.loads(line) for line in (DATA / "passages.jsonl").read_text("utf-8").splitlines()]
CALIBRATION = [passage for passage in PASSAGES if not passage["held_out"]]
HELD_OUT = [passage for passage in PASSAGES if passage["held_out"]]
EXAMPLES: list[dict] = json.loads((DATA / "prompts.json").read_text("utf-8"))

KINDS = {"prose", "dialogue", "code", "list", "letter", "explanation"}
HUMAN = {"en", "fr", "de"}
PROGRAMMING = {"python", "javascript", "sql", "shell"}


def word_runs(passages: list[dict], length: int) -> set[tuple[str, ...]]:
    """Every run of ``length`` consecutive words, in lower case and without punctuation."""
    runs = set()
    for passage in passages:
        words = re.findall(r"\w+", passage["text"].lower())
        runs.update(zip(*(words[start:] for start in range(length)), strict=False))
    return runs


def test_the_last_twelve_of_sixty_passages_are_held_out() -> None:
    assert [passage["held_out"] for passage in PASSAGES] == [False] * 48 + [True] * 12


@pytest.mark.parametrize("passage", PASSAGES, ids=lambda passage: passage["id"])
def test_passage_is_well_formed(passage: dict) -> None:
    assert list(passage) == ["id", "kind", "language", "held_out", "text"]
    assert re.fullmatch(rf"{passage['kind']}-\d\d", passage["id"])
    assert passage["kind"] in KINDS
    assert passage["language"] in (PROGRAMMING if passage["kind"] == "code" else HUMAN)
    assert 110 <= len(passage["text"].split()) <= 190
    assert passage["text"] == passage["text"].strip()
    assert not re.search(r"[^\S\n ]|[ ]$", passage["text"], flags=re.MULTILINE), (
        "only spaces and line feeds, none trailing"
    )


@pytest.mark.parametrize("passages", [CALIBRATION, HELD_OUT], ids=["calibration", "held out"])
def test_both_parts_cover_every_kind_and_human_language(passages: list[dict]) -> None:
    assert {passage["kind"] for passage in passages} == KINDS
    languages = Counter(passage["language"] for passage in passages)
    assert languages.keys() >= HUMAN
    assert languages["en"] > languages["fr"] >= languages["de"]


def test_calibration_covers_every_programming_language() -> None:
    assert {passage["language"] for passage in CALIBRATION} >= PROGRAMMING


@pytest.mark.parametrize("field", ["id", "text"])
def test_passages_are_distinct(field: str) -> None:
    assert len({passage[field] for passage in PASSAGES}) == len(PASSAGES)


def test_calibration_shares_no_sentence_with_the_held_out_texts() -> None:
    assert not word_runs(CALIBRATION, 8) & word_runs(HELD_OUT, 8)


def test_calibration_shares_no_sentence_with_the_example_prompts() -> None:
    prompts = [{"text": example["prompt"]} for example in EXAMPLES]
    assert not word_runs(PASSAGES, 8) & word_runs(prompts, 8)


def test_there_are_eight_examples_with_distinct_labels_and_prompts() -> None:
    assert len(EXAMPLES) == 8
    assert len({example["label"] for example in EXAMPLES}) == 8
    assert len({example["prompt"] for example in EXAMPLES}) == 8


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["label"])
def test_example_is_well_formed(example: dict) -> None:
    assert list(example) == ["label", "prompt"]
    assert 1 <= len(example["label"]) <= 24
    assert "\n" not in example["label"]
    assert example["prompt"] == example["prompt"].strip()
    assert 5 <= len(example["prompt"].split()) <= 200


def test_one_example_is_a_longer_text_to_work_on() -> None:
    assert max(len(example["prompt"].split()) for example in EXAMPLES) >= 120


def test_readme_card_asks_for_the_gradio_that_is_pinned() -> None:
    (pinned,) = re.findall(r"^gradio==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    (asked,) = re.findall(r"^sdk_version: (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert asked == pinned


def test_what_is_imported_is_pinned() -> None:
    listed = re.findall(r"^([\w-]+)[=<>]=", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    pinned = {name.replace("-", "_") for name in listed}
    found: set[str] = set()
    for path in (ROOT / "app.py", *(ROOT / "tda_demo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    own = {"tda_demo", "triton", "starlette"}  # torch's builds for a GPU bring their triton, gradio its server
    optional = {"spaces", "lm_eval", "llama_cpp", "pyarrow"}  # done without where they are not installed
    assert found - set(sys.stdlib_module_names) - own - optional <= pinned


def test_shipped_thresholds_are_of_the_embedded_model_and_the_shipped_texts(embedded: LoadedModel) -> None:
    read = [json.loads(path.read_text(encoding="utf-8")) for path in (DATA / "thresholds").iterdir()]
    tables = [table for table in read if isinstance(table, dict)]
    made_of = {source.name: source.texts(embedded).sha256 for source in (ANSWERS, TEXTS)}
    assert {(table["weighted"], table["data"]) for table in tables} == set(product((False, True), made_of))
    for table in tables:
        assert table["fingerprint"] == WHEEL_SHA256
        assert table["data_sha256"] == made_of[table["data"]]
        assert len(table["thresholds"]) == 30
        assert all(layer == sorted(layer) and layer[0] == 0 for layer in table["thresholds"])


def test_shipped_answers_are_to_the_shipped_questions_and_end_where_the_model_ended(embedded: LoadedModel) -> None:
    questions = project_questions()
    written = kept_answers(embedded).get(pytest.fail)
    assert [answer.held_out for answer in written] == [question.held_out for question in questions]
    for question, answer in zip(questions, written, strict=True):
        assert list(answer.question) == embedded.prompt_ids(question.prompt)
        assert 2 <= len(answer.answer) <= LENGTH
        assert (len(answer.answer) < LENGTH) <= (answer.answer[-1] in embedded.eos_ids)
        assert not set(answer.answer[:-1]) & embedded.eos_ids


def test_twelve_of_sixty_questions_are_held_out_and_no_two_are_the_same() -> None:
    questions = project_questions()
    assert [question.held_out for question in questions].count(True) == 12 and len(questions) == 60
    prompts = [question.prompt for question in questions]
    plain = {" ".join(re.findall(r"\w+", prompt.lower())) for prompt in prompts}
    assert len(plain) == 60 and all(prompt == prompt.strip() for prompt in prompts)


def test_questions_share_nothing_with_the_example_prompts() -> None:
    questions = [{"text": question.prompt} for question in project_questions()]
    held_out = [{"text": question.prompt} for question in project_questions() if question.held_out]
    calibration = [{"text": question.prompt} for question in project_questions() if not question.held_out]
    prompts = [{"text": example["prompt"]} for example in EXAMPLES]
    assert not {each["text"].lower() for each in questions} & {each["text"].lower() for each in prompts}
    assert not word_runs(questions, 8) & word_runs(prompts, 8)
    assert not word_runs(calibration, 8) & word_runs(held_out, 8)


@pytest.mark.parametrize("name", ["int8-passages-cats", "int8-passages-tt"])
def test_shipped_quantiles_of_token_level_methods_are_of_the_embedded_model(name: str) -> None:
    path = DATA / "thresholds" / f"SmolLM2-135M-Instruct-{WHEEL_SHA256[:12]}-{name}.json"
    layers = np.array(json.loads(path.read_text(encoding="utf-8")))
    assert len(layers) == 30 and np.isfinite(layers).all() and (np.diff(layers) >= 0).all()


def test_the_shipped_table_of_teal_is_of_the_embedded_model() -> None:
    path = DATA / "thresholds" / f"SmolLM2-135M-Instruct-{WHEEL_SHA256[:12]}-int8-passages-teal.json"
    layers = json.loads(path.read_text(encoding="utf-8"))
    assert len(layers) == 30
    for layer in layers:
        magnitudes, steps = np.array(layer["magnitudes"]), np.array(layer["path"])
        assert magnitudes.shape == (7, len(SHARES)) and (np.diff(magnitudes) >= 0).all()
        assert (steps[0] == 0).all() and steps[-1] == pytest.approx([MOST] * 7) and (np.diff(steps, axis=0) >= 0).all()
