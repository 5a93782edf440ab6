"""Tables kept for a model: which file is read, what is written, and what becomes of a file that is no such table."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tda_demo.calibration import channel_shares, quantiles, tables
from tda_demo.calibration.answers import kept_answers
from tda_demo.calibration.documents import calibration_passages, held_out_passages
from tda_demo.calibration.priors import kept_prior
from tda_demo.calibration.sensitivity import kept_sensitivity
from tda_demo.calibration.sources import ANSWERS, PASSAGES
from tda_demo.calibration.tables import KeptTable, json_rows, significant
from tda_demo.calibration.thresholds import kept_thresholds
from tda_demo.evaluate.budget import kept_curve
from tda_demo.methods import GRIFFIN, METHODS
from tda_demo.model.loading import LoadedModel
from tda_demo.model.weights.embedded import NAME, WHEEL_SHA256
from tda_demo.support.errors import UserError
from tda_demo.support.files import DATA


def parse(content: Any) -> tuple[float, ...]:
    """Two numbers."""
    first, second = content["numbers"]
    return float(first), float(second)


TABLE = KeptTable("tables", "model", parse, lambda table: json.dumps({"numbers": table}))


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    """The folder of shipped tables, empty."""
    monkeypatch.setattr(tables, "DATA", tmp_path / "data")
    (tmp_path / "data" / "tables").mkdir(parents=True)
    return tmp_path / "data" / "tables"


def made() -> tuple[float, ...]:
    return 1.0, 2.0


def not_made() -> tuple[float, ...]:
    raise AssertionError("there is a table")


def test_a_table_is_made_once_and_then_read(shipped: Path, own_cache: Path) -> None:
    assert TABLE.get(made) == (1, 2) == TABLE.get(not_made)
    assert TABLE.path == own_cache / "tables" / "model.json"
    assert TABLE.path.read_text("utf-8") == '{"numbers": [1.0, 2.0]}'


def test_a_shipped_table_is_read_and_not_copied_and_a_kept_one_goes_before_it(shipped: Path) -> None:
    (shipped / "model.json").write_text('{"numbers": [3, 4]}', "utf-8")
    assert TABLE.get(not_made) == (3, 4) and not TABLE.path.exists()
    TABLE.save((5, 6))
    assert TABLE.get(not_made) == (5, 6)


def test_a_shipped_table_may_have_another_name(shipped: Path) -> None:
    (shipped / "other.json").write_text('{"numbers": [3, 4]}', "utf-8")
    assert dataclasses.replace(TABLE, shipped_name="other").get(not_made) == (3, 4)
    assert TABLE.get(made) == (1, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"numbers": [1,',
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"7",
        b"[]",
        b"{}",
        b'{"numbers": [1, 2, 3]}',
        b'{"numbers": ["one", 2]}',
        b'{"numbers": null}',
    ],
)
def test_a_damaged_table_and_one_of_another_shape_are_made_anew(shipped: Path, content: bytes) -> None:
    TABLE.save(made())
    TABLE.path.write_bytes(content)
    (shipped / "model.json").write_bytes(content)
    assert TABLE.get(lambda: (7, 8)) == (7, 8) == TABLE.get(not_made)


def test_a_damaged_table_gives_way_to_the_shipped_one(shipped: Path) -> None:
    TABLE.path.parent.mkdir(parents=True)
    TABLE.path.mkdir()  # cannot be read as a file
    (shipped / "model.json").write_text('{"numbers": [3, 4]}', "utf-8")
    assert TABLE.get(not_made) == (3, 4)


def test_a_table_that_cannot_be_written_is_an_error_that_names_the_file(shipped: Path, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be", "utf-8")
    with pytest.raises(UserError, match=r"Cannot write .*model\.json"):
        TABLE.get(made)


def test_what_is_unfinished_is_no_table_and_a_table_is_found_but_not_made(shipped: Path, own_cache: Path) -> None:
    assert TABLE.find() is None
    part = TABLE.unfinished("0123456789")
    part.save((9, 9))
    assert part.path == own_cache / "tables" / "model.01234567.unfinished.json"
    assert TABLE.find() is None and TABLE.unfinished("0123456789").find() == (9, 9)
    (shipped / "model.json").write_text('{"numbers": [3, 4]}', "utf-8")
    assert TABLE.find() == (3, 4) and TABLE.unfinished("0123456789").find() == (9, 9)
    TABLE.save((5, 6))
    assert TABLE.find() == (5, 6)
    other = dataclasses.replace(TABLE, name="other", shipped_name="model")  # a shipped table is not unfinished
    assert other.find() == (3, 4) and other.unfinished("0123456789").find() is None


def test_a_table_can_be_written_elsewhere(shipped: Path, tmp_path: Path) -> None:
    TABLE.save((1, 2), tmp_path / "elsewhere.json")
    assert json.loads((tmp_path / "elsewhere.json").read_text("utf-8")) == {"numbers": [1, 2]}
    assert not TABLE.path.exists()


def test_rows_are_json_and_numbers_keep_their_significant_digits() -> None:
    rows = [significant([1234567.8, 0.000123456, -2], 5), significant([], 5)]
    assert json_rows(rows) == "[\n[1234600.0, 0.00012346, -2.0],\n[]\n]"
    assert json.loads(json_rows(rows)) == rows


def shape_of(path: Path) -> tuple[int, int]:
    layers = json.loads(path.read_text("utf-8"))
    return len(layers), len(layers[0])


def described(lm: LoadedModel, path: Path) -> KeptTable[Any]:
    """How the package reads and writes the shipped file ``path``."""
    embedded = dataclasses.replace(lm, name=NAME, fingerprint=WHEEL_SHA256, precision="int8")
    deep: Any = dataclasses.replace(embedded, blocks=[SimpleNamespace(d_ff=1536)] * 30)
    weighted = path.stem.endswith("weighted")
    source = PASSAGES if PASSAGES.name in path.stem else ANSWERS
    if path.parent.name == "answers":
        return kept_answers(embedded)
    if path.parent.name == "sensitivity":
        return kept_sensitivity(deep, weighted, source)
    if path.parent.name == "priors":
        return kept_prior(deep, "strength-weighted" if weighted else "strength", source)
    if path.parent.name == "budgets":
        return kept_curve(embedded, METHODS[path.stem.split("-")[2]](), source)
    if "float32" in path.stem:
        return kept_thresholds(embedded, weighted, source)
    if path.stem.endswith("teal"):
        weights = (np.ones(7),) * 30
        return KeptTable("thresholds", path.stem, partial(channel_shares._parse, weights), channel_shares._text)
    return KeptTable("thresholds", path.stem, partial(quantiles._parse, shape_of(path)), quantiles._text)


FOLDERS = ("answers", "sensitivity", "priors", "thresholds", "budgets")
SHIPPED = sorted(path for folder in FOLDERS for path in (DATA / folder).iterdir())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_every_shipped_file_is_read_and_would_be_written_the_same(lm: LoadedModel, own_cache: Path, path: Path) -> None:
    table = described(lm, path)
    assert table.shipped_path == path
    assert table.text(table.get(pytest.fail)) == path.read_text("utf-8")


@pytest.mark.parametrize("content", ["[]", "{}", '{"values": [1]}', "[[1, 2], [3]]", '[{"magnitudes": 1}]', "[[[1]]]"])
def test_no_reader_takes_what_is_not_its_table(lm: LoadedModel, content: str) -> None:
    weights = tuple(np.ones(len(block.layer_linears)) for block in lm.blocks)
    readers = [
        kept_thresholds(lm, False, ANSWERS).parse,
        kept_sensitivity(lm, False, ANSWERS).parse,
        kept_prior(lm, "strength", ANSWERS).parse,
        kept_answers(lm).parse,
        kept_curve(lm, GRIFFIN()).parse,
        partial(channel_shares._parse, weights),
        partial(quantiles._parse, (len(lm.blocks), 101)),
    ]
    for read in readers:
        with pytest.raises(tables._UNREADABLE):
            read(json.loads(content))


@pytest.mark.parametrize(
    ("field", "value"), [("thresholds", [[0.1], [0.2]]), ("thresholds", []), ("targets", [0.1]), ("extra", 1)]
)
def test_thresholds_fit_their_targets(lm: LoadedModel, field: str, value: Any) -> None:
    path = next(path for path in SHIPPED if path.stem.endswith("float32-answers"))
    fields = json.loads(path.read_text("utf-8"))
    kept = kept_thresholds(lm, False, ANSWERS)
    assert kept.parse(fields).targets == tuple(fields["targets"])
    with pytest.raises(tables._UNREADABLE):
        kept.parse({**fields, field: value})


def test_passages_to_calibrate_on_and_held_out_ones_are_all_there_are_and_share_none() -> None:
    calibration, held_out = calibration_passages(), held_out_passages()
    assert (len(calibration.documents), len(held_out.documents)) == (48, 12)
    lines = [document.line for document in (*calibration.documents, *held_out.documents)]
    assert sorted(lines) == list(range(1, 61)) and not set(calibration.texts) & set(held_out.texts)
    assert calibration.name == "passages.jsonl" and calibration.sha256 != held_out.sha256
