"""``python -m tda_demo theory``: what it prints, its JSON, and one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny

import tda_demo.model.loading
from tda_demo.__main__ import main


@pytest.fixture(autouse=True)
def tiny_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any model asked for is the tiny one."""
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    rows = [" ".join(f"w{3 + (start * 5 + step * (start + 2)) % 90}" for step in range(24)) for start in range(12)]
    path.write_text("\n###\n".join(rows), encoding="utf-8")
    return str(path)


SMALL = {
    "root-cause": ["--passages", "4", "--tokens", "8", "--twin-layers", "0"],
    "uncertainty": ["--sentences", "4", "--history", "5", "--keep", "0.4"],
    "inertia": ["--sequences", "8", "--length", "12", "--prompts", "4", "--tokens", "4"],
    "training": ["--steps", "1"],
}


@pytest.mark.parametrize("experiment", SMALL)
def test_json_holds_claim_verdict_and_tables(experiment: str, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--text", texts] if experiment in ("root-cause", "inertia") else []
    assert main(["theory", experiment, *SMALL[experiment], *text, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["experiment"] == experiment and told["complete"]
    assert told["claim"].count(". ") == 1 and told["prediction"] and isinstance(told["verdict"], str)
    assert all(check["verdict"] in told["verdict"] for check in told["checks"]) and len(told["checks"]) > 1
    assert all(len({len(column) for column in table["columns"].values()}) == 1 for table in told["tables"].values())


def test_json_lines_are_the_same_texts(tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "texts.jsonl"
    rows = Path(texts).read_text(encoding="utf-8").split("\n###\n")
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows), encoding="utf-8")
    told = []
    for file in (texts, str(path)):
        assert main(["theory", "root-cause", *SMALL["root-cause"], "--text", file, "--json", "-"]) == 0
        told.append(json.loads(capsys.readouterr().out)["tables"])
    assert told[0] == told[1]


def test_words_and_a_file(tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, report = tmp_path / "deep" / "cause.json", tmp_path / "cause.html"
    files = ["--json", str(path), "--report", str(report)]
    assert main(["theory", "root-cause", *SMALL["root-cause"], "--text", texts, *files]) == 0
    assert "E[dL/dp] &gt; 0 at positive p" in report.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8"))["settings"]["passages"] == 4
    told = capsys.readouterr().out
    assert "Claim: " in told and "holds in" in told and "of 3 layers" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["root-cause", "--passages", "2"], "passages is 2"),
        (["root-cause", "--text", "nowhere.txt"], "Cannot read nowhere.txt"),
        (["uncertainty", "--keep", "nan"], "keep is nan"),
        (["inertia"], "more than the 128"),
        (["inertia", "--tokens", "8", "--length", "90", "--text", "TEXTS"], "0 texts have 89 tokens or more"),
        (["inertia", "--sequences", "9"], "sequences is 9; it must be an even number"),
        (["training", "--steps", "0"], "steps is 0"),
        (["training", "--threads", "0"], "0 threads"),
        (["root-cause", "--seed", "-1"], "seed is -1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["theory", *(texts if argument == "TEXTS" else argument for argument in arguments)]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and told.out == ""
