"""The speed table on a tiny model: which rows there are, and that their numbers follow from each other."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny import PROMPT, tiny

import tda_demo.bench.run
from tda_demo.__main__ import main
from tda_demo.bench import BenchRow, BenchSettings, bench
from tda_demo.bench.run import StockGenerate
from tda_demo.bench.table import markdown
from tda_demo.decode.arm import ArmDecoder
from tda_demo.model.loading import LoadedModel
from tda_demo.model.precision import round_weights


@pytest.fixture(autouse=True)
def tiny_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, precision: str, **__: object) -> LoadedModel:
        lm = tiny()
        round_weights(lm.model, precision)
        return dataclasses.replace(lm, precision=precision)

    monkeypatch.setattr(tda_demo.bench.run, "load_model", load)
    monkeypatch.setattr(tda_demo.bench.run, "_PROMPT", PROMPT)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[BenchRow]:
    """At two of the precisions: every other one takes compiling, and its kernels are tested elsewhere."""
    monkeypatch.setattr(tda_demo.bench.run, "available_precisions", lambda _: ("float32", "int8"))
    return bench(settings=BenchSettings(rounds=2, block=2, settle=1)).rows


def test_rows_of_every_engine_precision_and_keep(rows: list[BenchRow]) -> None:
    found = {(row.engine, row.precision, row.keep) for row in rows}
    assert {("transformers", "bfloat16", 1.0), ("transformers", "float32", 1.0)} <= found
    for precision in ("float32", "int8"):
        assert {("dense", precision, 1.0), ("in place", precision, 0.5)} <= found
        assert {("sparse", precision, keep) for keep in (0.75, 0.5, 0.3)} <= found


def test_numbers_follow_from_each_other(rows: list[BenchRow]) -> None:
    for row in rows:
        assert row.tokens_per_second == pytest.approx(1000 / row.ms_per_token)
        assert row.n == 2  # ratios: one a round
        if row.keep < 1:
            assert row.speedup and row.byte_bound and row.low and row.high and row.efficiency
            assert row.low <= row.speedup <= row.high
            assert row.efficiency == pytest.approx(row.speedup / row.byte_bound)
            assert row.byte_bound > 1
            assert row.method == "griffin"
    bounds = [row.byte_bound or 0 for row in rows if row.precision == "int8" and row.engine == "sparse"]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize(
    ("efficiency", "shown"), [(None, ""), (0.9, "0.90"), (1.02, "1.02"), (0.76, "0.76 !"), (1.48, "1.48 !")]
)
def test_an_efficiency_that_equal_kernels_do_not_have_is_marked(
    rows: list[BenchRow], efficiency: float | None, shown: str
) -> None:
    row = dataclasses.replace(rows[0], efficiency=efficiency)
    table = markdown([row], {"cpu": "a processor", "threads": 2, "torch": "2"}, 20.0)
    line = next(line for line in table.splitlines() if line.startswith(f"| {row.engine}"))
    assert f" {shown} |" in line
    assert ("efficiency outside 0.90 to 1.02" in table) == shown.endswith("!")


def test_decoders_give_one_time_a_token(lm: LoadedModel) -> None:
    ids = lm.prompt_ids(PROMPT)
    assert len(StockGenerate(lm.model, ids).times_ms(5)) == 5

    class Arm:
        weight_bytes, packing_ms, steps = 1, 0.0, 0

        def step(self, _token: int) -> torch.Tensor:
            self.steps += 1
            return torch.zeros(3)

        def activations(self) -> list[torch.Tensor]:
            return []

    made: list[Arm] = []

    def make() -> Arm:
        made.append(Arm())
        return made[-1]

    assert len(ArmDecoder(make, 0, room=3).times_ms(7)) == 7
    assert [arm.steps for arm in made] == [3, 3, 1]


def test_command_prints_rows_or_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BenchSettings, "__init__", lambda self: self.__dict__.update(rounds=1, block=1, settle=1))
    assert main(["bench", "--precision", "int8", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"engine", "precision", "method", "keep", "ms_per_token", "tokens_per_second"} <= told[0].keys()
    assert {"gb_per_second", "speedup", "byte_bound", "efficiency"} <= told[0].keys()
    assert {"transformers", "dense"} <= {row["engine"] for row in told}
    assert main(["bench", "--precision", "int8"]) == 0
    told = capsys.readouterr().out
    assert "| dense | int8 | 100% |" in told and "median of the ratios of 1 rounds" in told


@pytest.mark.parametrize(("options", "message"), [(["--precision", "int3"], "int3"), (["--device", "cuda"], "CPU")])
def test_bad_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
