"""The records of precisions and of storage formats: they agree, nothing else lists them, and a new one is two records.

The new one is made up here: it stores like int8 and is offered on a CPU only. It is one ``Precision`` and one
``Format``, put into the two registries; everything that a precision can do has to follow.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import write_model
from tiny import PROMPT, tiny

import tda_demo.bench.run
from tda_demo.__main__ import main
from tda_demo.bench import BenchSettings
from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.evaluate.sweep_table import SweepRow
from tda_demo.kernels.formats import FORMATS, INT8
from tda_demo.methods.teal import ChannelPolicy
from tda_demo.model import placement
from tda_demo.model.loading import LoadedModel, load_model
from tda_demo.model.precision import (
    PRECISIONS,
    REFERENCE,
    Device,
    available_precisions,
    choose_precision,
    default_precision,
    precision_of,
    precisions_on,
    round_weights,
)
from tda_demo.report import svg, sweep_report
from tda_demo.support.errors import UserError
from tda_demo.ui.models import Room, check_room
from tda_demo.ui.pareto import figures
from tda_demo.ui.pareto.points import SHIPPED, point
from tda_demo.ui.requests import AUTOMATIC, Offers

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "tda_demo"
TWIN = "int8twin"
# Where a precision may be named beside its records, and why.
NAMED_IN = {
    "model/precision.py": "the records of precisions",
    "kernels/formats.py": "the records of formats",
    "kernels/cpu/__init__.py": "the name of a module",
    "kernels/gpu/nf4.py": "bitsandbytes' own name of its 4-bit storage",
    "bench/random_model.py": "the precisions in which random weights are made",
    "bench/run.py": "the precision in which transformers is the rival of all rows",
}


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> str:
    record = dataclasses.replace(
        PRECISIONS["int8"], name=TWIN, symbol="cross", devices=("cpu",), default_on=(), bitsandbytes=None
    )
    monkeypatch.setitem(PRECISIONS, TWIN, record)
    monkeypatch.setitem(FORMATS, TWIN, dataclasses.replace(INT8, name=TWIN))
    return TWIN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny-llama")


def names_in(path: Path) -> Iterator[str]:
    """The precisions that stand as a text of their own in the source at ``path``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in PRECISIONS)


def test_precisions_are_named_in_their_records_and_few_other_files() -> None:
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if any(names_in(path))}
    assert found == set(NAMED_IN)


def test_the_records_need_no_torch() -> None:
    code = "import sys, tda_demo.model.precision, tda_demo.kernels.formats; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_device_has_one_default_and_the_reference(device: Device) -> None:
    defaults = [name for name, precision in PRECISIONS.items() if device in precision.default_on]
    assert [default_precision(device)] == defaults
    assert {REFERENCE, *defaults} <= {*precisions_on(device)} == {*available_precisions(device)}


def test_a_precision_of_a_cpu_has_a_format_of_its_name_and_bytes() -> None:
    assert list(FORMATS) == list(precisions_on("cpu"))
    for name in FORMATS:
        record, head = precision_of(name, "cpu"), FORMATS[precision_of(name, "cpu").head_format]
        columns = 4096
        one_scale = 4 * (FORMATS[name].scales == "row")  # too little to count, and not of a neuron's column
        of_a_neuron = 2 * FORMATS[name].row_bytes(columns) + FORMATS[name].column_bytes(columns)
        assert of_a_neuron == 3 * record.bytes_per_weight * columns + 2 * one_scale
        assert head.row_bytes(columns) >= FORMATS[name].row_bytes(columns)


def test_formats_whose_codes_share_a_type_agree_on_what_is_asked_of_codes(twin: str) -> None:
    facts: dict[Any, Any] = {}
    for each in FORMATS.values():
        ours = (each.scales, each.nibbles)
        assert facts.setdefault(each.code_type, ours) == ours
        assert each.encode(torch.ones(1, 64)).codes.dtype == each.code_type


def test_symbols_differ_and_are_drawn_by_the_page_and_by_reports() -> None:
    symbols = [precision.symbol for precision in PRECISIONS.values()]
    assert len(set(symbols)) == len(symbols)
    glyphs = next(
        line for line in (REPOSITORY / "assets" / "pareto.js").read_text("utf-8").splitlines() if "GLYPHS =" in line
    )
    for symbol in [*symbols, "cross"]:
        assert f"{symbol}:" in glyphs.replace('"', "") and svg.legend([svg.Series("", [], shape=symbol)])


def test_a_new_precision_loads_and_races_on_the_compiled_step(
    twin: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm, like = (load_model(str(folder), device="cpu", precision=precision) for precision in (twin, "int8"))
    assert lm.precision == twin and type(engine_for(lm)) is CpuStepEngine
    assert all(torch.equal(a, b) for a, b in zip(lm.model.parameters(), like.model.parameters(), strict=True))
    assert step_bytes(lm).dense == step_bytes(like).dense
    told = {}
    for precision in (twin, "int8"):
        options = ["--model", str(folder), "--device", "cpu", "--precision", precision, "--max-new-tokens", "6"]
        assert main(["race", PROMPT, "--method", "griffin", *options, "--json", "-"]) == 0
        told[precision] = json.loads(capsys.readouterr().out)
    ours, theirs = told.values()
    assert (ours["precision"], ours["byte_bound"]) == (twin, theirs["byte_bound"]) and ours["byte_bound"] > 1
    assert ours["arms"]["sparse"]["tokens"] == theirs["arms"]["sparse"]["tokens"]
    assert ours["arms"]["dense"]["weight_bytes"] == theirs["arms"]["dense"]["weight_bytes"]
    assert ours["quality"] == theirs["quality"]


def test_a_new_precision_is_stored_by_channel_where_its_format_can_be(twin: str, lm: LoadedModel) -> None:
    limits = [torch.zeros(7).numpy()] * len(lm.blocks)

    def rule(precision: str) -> ChannelPolicy:
        return ChannelPolicy(dataclasses.replace(lm, precision=precision), limits)

    assert rule(twin).has_kernel and not rule("nf4").has_kernel
    assert rule(twin).channel_bytes == rule("int8").channel_bytes


def test_a_new_precision_is_offered_where_it_says(twin: str) -> None:
    assert twin in available_precisions("cpu") and twin not in available_precisions("cuda")
    assert choose_precision(twin, torch.device("cpu")) == twin
    with pytest.raises(UserError, match="'int8twin' is not a precision on cuda: use float32, bfloat16, int8 or nf4"):
        choose_precision(twin, torch.device("cuda"))
    with pytest.raises(UserError, match="use float32, bfloat16, int8, q4, nf4 or int8twin"):
        choose_precision("int3", torch.device("cpu"))
    assert Offers().precisions == (AUTOMATIC, twin, "nf4", "q4", "int8", "bfloat16", "float32")
    assert Offers().precision(twin) == twin and twin not in Offers(device="cuda").precisions
    with pytest.raises(UserError, match="in int8twin needs about"):
        check_room("Qwen/Qwen3-8B", twin, "cpu", Room(4e9, "memory"))


def test_a_new_precision_of_a_gpu_is_spread_by_its_bytes(
    twin: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = placement._parameters(folder)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (1.5 * parameters, 1.5 * parameters))
    assert placement.automatic_device_map(folder, twin, torch.device("cuda")) is None
    assert placement.automatic_device_map(folder, "bfloat16", torch.device("cuda")) == "auto"


def test_a_new_precision_is_an_argument_of_the_commands(
    twin: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        main(["race", "--help"])
    assert f"nf4 or {twin}; default: int8 on a CPU, bfloat16 on a GPU" in " ".join(capsys.readouterr().out.split())

    def load(*_: object, precision: str, **__: object) -> LoadedModel:
        lm = tiny()
        round_weights(lm.model, precision)
        return dataclasses.replace(lm, precision=precision)

    monkeypatch.setattr(tda_demo.bench.run, "load_model", load)
    monkeypatch.setattr(tda_demo.bench.run, "_PROMPT", PROMPT)
    monkeypatch.setattr(BenchSettings, "__init__", lambda self: self.__dict__.update(rounds=1, block=1, settle=1))
    assert main(["bench", "--precision", twin, "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["engine"], row["precision"]) for row in rows} >= {("dense", twin), ("transformers", "bfloat16")}


def test_a_new_precision_has_its_symbol_in_plots(twin: str) -> None:
    texts = dict.fromkeys(("model", "text", "tokens_sha256", "machine", "torch", "date"), "x")
    fields = {
        **dict.fromkeys(SweepRow.__annotations__, 1.0),
        **texts,
        "settings": "{}",
        "method": "tda",
        "precision": twin,
    }
    value = figures.plot_value([point(SHIPPED, fields), point(SHIPPED, {**fields, "precision": "unheard of"})])
    assert value is not None
    assert [entry["symbol"] for entry in value["legend"]["precision"]] == ["cross", "circle"]
    cross = svg.legend([svg.Series("", [], "currentColor", shape="cross")]).split('d="')[1].split('"')[0]
    assert cross in sweep_report([fields])
