"""Sweeps, budgets and allocations on tiny models, against planted truths."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from little_text import DOCUMENTS
from model_files import write_model
from parity import stored
from plain import PLAIN_GRID, plain_tda
from tiny import tiny

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.calibration import answers
from tda_demo.calibration.documents import read_documents
from tda_demo.calibration.sources import ANSWERS, PASSAGES
from tda_demo.evaluate import EvaluationSettings, budget, evaluate
from tda_demo.evaluate import texts as scored_texts
from tda_demo.evaluate.bookkeeping import ALONE, Ledger, Shard
from tda_demo.evaluate.budget import QualityCurve
from tda_demo.evaluate.speed import SpeedSettings
from tda_demo.evaluate.sweep import grid, stream_sweep, sweep
from tda_demo.methods import CATS, GRIFFIN, TDA, TEAL, TT, CoreInfer, Sketch
from tda_demo.methods.base import Dial
from tda_demo.methods.settings import Range, setting
from tda_demo.model.loading import LoadedModel
from tda_demo.model.weights.embedded import WHEEL_SHA256
from tda_demo.support.errors import UserError
from tda_demo.support.files import DATA

SETTINGS = EvaluationSettings(20, 9)
METHODS = [plain_tda(cett=0.2, online=True), plain_tda(cett=0.5, online=True)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    random = np.random.default_rng(0)
    words = [" ".join(f"w{word}" for word in random.integers(5, 90, 35)) for _ in range(6)]
    path.write_text("\n###\n".join(words), encoding="utf-8")
    return path


def load(precision: str) -> LoadedModel:
    return stored(tiny(), precision)


def rows(texts: Path, **more: Any) -> list[Any]:
    return sweep(load, METHODS, ["float32", "int8"], lambda: read_documents(texts), "texts", SETTINGS, **more)


def test_rows_are_what_evaluate_finds_and_dense_rows_what_rounding_costs(texts: Path) -> None:
    found = rows(texts)
    assert [(row.method, row.precision) for row in found] == [
        (method, precision) for precision in ("float32", "int8") for method in ("dense", "tda", "tda")
    ]
    assert found[0].kl == 0 and found[0].byte_bound == 1
    assert 0 < found[3].kl < found[1].kl and found[3].step_bytes < found[0].step_bytes / 2
    assert found[3].perplexity_float32 == found[0].perplexity
    for row, method in zip(found[1:3], METHODS, strict=True):
        alone = evaluate(load("float32"), method, texts, SETTINGS).to_json()
        for name in ("kl", "kl_low", "kl_high"):
            assert getattr(row, name) == pytest.approx(alone[name], rel=1e-5)
        assert row.kl_low < row.kl < row.kl_high
        assert row.perplexity == pytest.approx(alone["perplexity"]["sparse"])
        assert row.byte_bound == pytest.approx(alone["byte_bound"])
        assert row.mlp_share == pytest.approx(1 - alone["sparsity"])


def test_a_sweep_that_was_killed_ends_the_same(texts: Path, tmp_path: Path) -> None:
    whole = rows(texts)
    out = tmp_path / "out" / "sweep.csv"
    kept: list[int] = []

    class Killed(Ledger):
        def put(self, name: str, record: Any) -> None:
            if len(kept) == 3:
                raise KeyboardInterrupt
            kept.append(1)
            super().put(name, record)

    with pytest.raises(KeyboardInterrupt):
        rows(texts, ledger=lambda key: Killed(out, key))
    kept[:] = [0, 0]  # one unit is left
    assert rows(texts, ledger=lambda key: Killed(out, key)) == whole


def test_times_are_of_every_row_and_kept(texts: Path, tmp_path: Path) -> None:
    def timed(shard: Shard = ALONE) -> list[Any]:
        speed = SpeedSettings(prompts=2, pairs=3, block=2, settle=1)
        out = tmp_path / "sweep.csv"
        read = functools.partial(read_documents, texts)
        return sweep(
            load,
            METHODS[:1],
            ["int8"],
            read,
            "t",
            SETTINGS,
            speed=speed,
            shard=shard,
            ledger=lambda key: Ledger(out, key),
        )

    found = timed()
    assert all(row.speedup_n == 6 and row.speedup_low <= row.speedup <= row.speedup_high for row in found)
    rates = [row.tokens_per_second / row.speedup for row in found]  # one dense rate, so that the rows compare
    assert rates[0] > 0 and rates == pytest.approx([rates[0]] * len(rates))
    assert timed() == found
    with pytest.raises(UserError, match="leave out --time"):
        timed(Shard(0, 2))


def test_a_row_is_told_as_soon_as_it_is_measured(texts: Path) -> None:
    speed = SpeedSettings(prompts=1, pairs=2, block=1, settle=1)
    told: list[tuple[int, int]] = []
    reference = load("float32")
    read = list(read_documents(texts))
    found = stream_sweep(
        reference, load("int8"), METHODS, read, "texts", SETTINGS, speed, lambda at: told.append((at.done, at.total))
    )
    first = next(found)
    before = len(told)
    everything = [first, *found]
    assert before < len(told) == told[0][1] and [done for done, _ in told] == list(range(len(told)))
    whole = [dataclasses.asdict(row) for row in rows(texts)[3:]]
    times = ("tokens_per_second", "speedup", "speedup_low", "speedup_high", "speedup_n")
    assert [{**dataclasses.asdict(row), **dict.fromkeys(times)} for row in everything] == whole


@pytest.mark.usefixtures("one_thread")
def test_two_processes_give_what_one_gives(texts: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    command = ["sweep", "--text", str(texts), "--model", str(model), "--threads", "1"]
    command += [
        "--grid",
        "cett=0.2,0.5",
        "--grid",
        "online=1",
        *PLAIN_GRID,
        "--precision",
        "float32",
        "--precision",
        "int8",
    ]
    command += ["--prompt-tokens", "20", "--score-tokens", "9", "--device", "cpu"]
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
    one, two = (tmp_path / name / "sweep.csv" for name in ("one", "two"))
    assert main([*command, "--out", str(one)]) == 0
    done = subprocess.run(
        [sys.executable, *launch, "--main_process_port=0", "-m", "tda_demo", *command, "--out", str(two)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [each.name for each in two.parent.iterdir()] == ["sweep.csv"]
    written = one.read_text(encoding="utf-8")
    assert two.read_text(encoding="utf-8") == written and written.count("\n") == 7


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_the_command_writes_a_tidy_table(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, precision, **_kwargs: load(precision))
    out = tmp_path / "out" / f"sweep.{ending}"
    options = [
        "--grid",
        "tda.cett=0.2,0.5",
        "--grid",
        "tda.online=true",
        *PLAIN_GRID,
        "--precision",
        "int8",
        "--text",
        str(texts),
    ]
    assert main(["sweep", *options, "--prompt-tokens", "20", "--score-tokens", "9", "--out", str(out)]) == 0
    assert [each.name for each in out.parent.iterdir()] == [out.name]
    table = getattr(pandas, f"read_{ending}")(out)
    assert list(table["method"]) == ["dense", "tda", "tda"] and set(table["precision"]) == {"int8"}
    assert list(table["kl"]) == pytest.approx([row.kl for row in rows(texts)[3:]], rel=1e-4)


@pytest.mark.parametrize(
    ("axes", "message"), [(["cett"], "not an axis"), (["magic.k=1"], "no method 'magic'"), (["k=1"], "no setting 'k'")]
)
def test_a_grid_that_is_none(axes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid("tda", axes)
    assert [method.settings()["cett"] for method in grid("tda", ["cett=0.1,0.2", "online=1,0"])] == [0.1, 0.1, 0.2, 0.2]


def test_a_table_of_unknown_kind_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--out", str(tmp_path / "sweep.xlsx")]) == 2
    assert "sweep.xlsx: a table is written as" in capsys.readouterr().err


@given(
    st.lists(st.floats(0.01, 3), min_size=2, max_size=8),
    st.floats(0, 20),
)
def test_a_budget_is_spent_and_not_exceeded(rises: list[float], most: float) -> None:
    kl = tuple(np.concatenate([[0], np.cumsum(rises)]).tolist())
    values = tuple(0.1 * step for step in range(len(kl)))
    whole = (1.0,) * len(kl)
    curve = QualityCurve("tda", "cett", values, kl, whole, whole, whole, "float32", "answers", 1, 1)
    found = curve.value_for_kl(most)
    assert np.interp(found, values, kl) == pytest.approx(min(most, kl[-1]), abs=1e-9)


def test_a_budget_below_nothing_is_refused() -> None:
    ends = ((0.0, 0.1), (0.0, 1.0), (1.0, 2.0), (1.0, 0.5), (1.0, 0.7))
    curve = QualityCurve("tda", "cett", *ends, "float32", "answers", 1, 1)
    for wrong in (-0.1, float("nan")):
        with pytest.raises(UserError, match="cannot be met"):
            curve.value_for_kl(wrong)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8), st.floats(0, 1), st.booleans())
def test_a_budget_of_bytes_is_met_where_the_method_can(falls: list[float], most: float, falling_dial: bool) -> None:
    share = (1 - np.concatenate([[0], np.cumsum(falls)]) / (2 * sum(falls))).tolist()  # from 1 to one half
    values = [0.1 * step for step in range(len(share))][:: -1 if falling_dial else 1]
    same, read = (1.0,) * len(share), tuple(share)
    curve = QualityCurve("m", "dial", tuple(values), (0.0,) * len(share), same, read, read, "float32", "answers", 1, 1)
    if most < 0.49:
        with pytest.raises(UserError, match="m reads 50 % of the MLP weight bytes at its sparsest"):
            curve.value_for_mlp_share(most)
    elif most > 0.51:
        assert curve.mlp_share_at(curve.value_for_mlp_share(most)) == pytest.approx(most, abs=1e-9)
    assert curve.value_for_mlp_share(1) == values[0]


def test_a_dial_of_whole_numbers_is_turned_towards_dense() -> None:
    @dataclasses.dataclass(frozen=True)
    class Every(TDA):
        dial = Dial("n", dense=1, sparsest=8)
        n: int = setting(2, "keep every n-th neuron", Range(1, 8))

    assert budget.with_dial_at(Every(), 3.7).settings()["n"] == 3
    Every.dial = Dial("n", dense=8, sparsest=1)
    assert budget.with_dial_at(Every(), 3.2).settings()["n"] == 4
    assert budget.with_dial_at(TDA(cett=0), 0.7).settings()["cett"] == 0.7


def test_a_curve_is_measured_on_calibration_text_once(
    lm: LoadedModel, own_cache: Path, monkeypatch: pytest.MonkeyPatch, little_text: None
) -> None:
    monkeypatch.setenv("TDA_DEMO_CACHE", str(own_cache))
    monkeypatch.setattr(answers, "project_passages", lambda held_out: [] if held_out else list(DOCUMENTS))
    found = budget.within(lm, plain_tda(online=True), kl=0.05)
    assert isinstance(found, TDA) and found.online and 0 < found.cett < 0.7
    measure = budget.measure_curve
    monkeypatch.setattr(budget, "measure_curve", None)
    curve = budget.quality_curve(lm, plain_tda(cett=0.1, online=True))  # the dial's own value does not matter
    assert curve.kl[0] == 0 and curve.documents == 4 and curve.mlp_share[0] == 1 > curve.mlp_share[-1]
    assert curve.source == "answers" and curve.scored_tokens == 4 * 12
    found = budget.within(lm, plain_tda(online=True), mlp_share=0.8)
    assert curve.mlp_share_at(found.settings()["cett"]) == pytest.approx(0.8)
    assert len(list((own_cache / "budgets").glob("[!.]*"))) == 1

    monkeypatch.setattr(budget, "measure_curve", measure)
    monkeypatch.setattr(scored_texts, "PROMPT_TOKENS", 20)
    monkeypatch.setattr(scored_texts, "SCORE_TOKENS", 9)
    other = budget.quality_curve(lm, plain_tda(online=True), PASSAGES)  # kept beside the answers'
    assert (other.source, other.documents, other.scored_tokens) == ("passages", 4, 4 * 9) and other.kl != curve.kl
    assert len(list((own_cache / "budgets").glob("[!.]*"))) == 2


SHIPPED = DATA / "budgets"
MLP_PART = 79_994_880 / 135_441_408  # of the weight bytes that a dense int8 step of the embedded model reads
SHIPPED_CURVES = (TDA, GRIFFIN, CoreInfer, CATS, TEAL, TT, Sketch)  # all that need no training


@pytest.mark.parametrize("path", sorted(SHIPPED.iterdir()), ids=lambda path: path.stem)
def test_a_shipped_curve_is_read(path: Path) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    curve = QualityCurve(**{key: tuple(value) if isinstance(value, list) else value for key, value in told.items()})
    assert curve.kl[0] == 0 and curve.documents == 16 and curve.source == ANSWERS.name
    assert curve.mlp_share[0] >= 1 and len(curve.mlp_share) == len(curve.kl) == len(curve.values)
    saved = 1 - np.array(curve.mlp_share)
    of_all = (1 - np.array(curve.step_share)) / np.where(saved == 0, 1, saved)  # the MLP's part of a step's bytes
    if curve.method == TEAL.name:  # which leaves out channels of the attention's matrices too
        assert (of_all[1:] > MLP_PART).all()
    else:
        assert np.allclose(of_all[saved != 0], MLP_PART, atol=1e-4)


def test_shipped_curves_are_those_that_are_looked_for(lm: LoadedModel) -> None:
    embedded = dataclasses.replace(lm, fingerprint=WHEEL_SHA256, precision="int8")
    wanted = {budget.kept_curve(embedded, method()).path.name for method in SHIPPED_CURVES}
    assert {path.name for path in SHIPPED.iterdir()} == wanted
