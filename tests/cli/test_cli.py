"""The command line as a user meets it: what it prints, its exit codes, and no traceback for bad input."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from plain import PLAIN_SETTINGS
from tiny import PROMPT, tiny

import tda_demo.model.loading
from tda_demo.__main__ import _parser, main
from tda_demo.decode.cpu import compile_ahead
from tda_demo.methods import Method, make_method
from tda_demo.support.errors import UserError


@pytest.fixture
def tiny_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any model asked for is the tiny one."""
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("w3 w4 w5 w6\nw7\n###\nw8 w9 w10 w11 w12\n", encoding="utf-8")
    return path


@pytest.mark.usefixtures("tiny_loads")
def test_race_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*PLAIN_SETTINGS, "--set", "cett=0.4", "--set", "online=true", "--max-new-tokens", "10", "--json", "-"]
    assert main(["race", PROMPT, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"]["cett"] == 0.4 and told["method"] == "tda"
    assert len(told["arms"]["sparse"]["step_ms"]) == told["arms"]["sparse"]["tokens"] - 1


@pytest.mark.usefixtures("tiny_loads")
def test_race_writes_json_and_prints_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "race.json"
    assert main(["race", PROMPT, "--set", "online=1", "--max-new-tokens", "8", "--json", str(path)]) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["model"] == "tiny-llama"
    assert [each.name for each in path.parent.iterdir()] == ["race.json"]
    assert main(["race", PROMPT, "--set", "online=1", "--max-new-tokens", "8"]) == 0
    assert "byte bound" in capsys.readouterr().out


def test_a_method_cannot_race_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "race",
                PROMPT,
                "--method",
                "griffin",
                "--set",
                "keep=0.4",
                "--rival",
                "griffin",
                "--rival-set",
                "keep=0.4",
            ]
        )
        == 2
    )
    assert "cannot race itself" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_loads")
def test_a_race_has_a_second_process_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, ...]] = []
    monkeypatch.setattr(compile_ahead, "compile_ahead", lambda *model: asked.append(model))
    assert main(["race", PROMPT, "--device", "cpu", "--max-new-tokens", "2"]) == 0
    assert asked == [(None, None, "cpu")]


@pytest.mark.usefixtures("tiny_loads")
def test_race_has_a_rival(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "race.json"
    options = ["--method", "griffin", "--rival", "random", "--rival-set", "keep=0.8", "--max-new-tokens", "8"]
    assert main(["race", PROMPT, *options, "--json", str(path), "--report", str(tmp_path / "race.html")]) == 0
    told = json.loads(path.read_text(encoding="utf-8"))
    assert (told["method"], told["rival"]["method"], told["rival"]["settings"]["keep"]) == ("griffin", "random", 0.8)
    page = (tmp_path / "race.html").read_text(encoding="utf-8")
    assert "Its rival: random" in page and "griffin over random" in page
    for found in (told, told["rival"]):
        _, _, text = page.partition(f"<h3>{found['method']}</h3><pre>")
        assert len(text.partition("<b class")[0]) == found["quality"]["divergence_at"]
    assert told["quality"]["divergence_at"] != told["rival"]["quality"]["divergence_at"]
    assert main(["race", PROMPT, "--rival-set", "keep=0.4"]) == 2
    assert "name one with --rival" in capsys.readouterr().err

    for wrong, message in ((["--mlp-bytes", "60"], "from 0 to 1"), (["--kl", "-1"], "--kl is -1")):
        assert main(["race", PROMPT, *wrong]) == 2
        assert message in capsys.readouterr().err

    asked: list[tuple[str, float | None, float | None]] = []

    def within(_lm: object, method: Method, *, kl: float | None, mlp_share: float | None, report: object) -> Method:
        asked.append((method.name, kl, mlp_share))
        return method

    monkeypatch.setattr("tda_demo.evaluate.budget.within", within)
    assert main(["race", PROMPT, *options, "--mlp-bytes", "0.6"]) == 0
    assert asked == [("griffin", None, 0.6), ("random", None, 0.6)]
    assert "griffin over random" in capsys.readouterr().out
    assert main(["race", PROMPT, *options, "--kl", "0.2"]) == 0
    assert asked[2:] == [("griffin", 0.2, None), ("random", 0.2, None)]


@pytest.mark.usefixtures("tiny_loads")
def test_calibrate_reads_json_lines_too(own_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    lines = [{"text": "w3 w4 w5 w6 w7", "reference": "w9"}, {"text": "w8 w9 w10 w11 w12"}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert main(["calibrate", "--text", str(path)]) == 0
    (table,) = (own_cache / "thresholds").iterdir()
    told = json.loads(table.read_text(encoding="utf-8"))
    assert (told["data"], told["texts"], told["tokens"]) == ("texts.jsonl", 2, 10)


@pytest.mark.usefixtures("tiny_loads")
def test_calibrate_keeps_a_table_that_races_use(texts: Path, own_cache: Path, tmp_path: Path) -> None:
    assert main(["calibrate", "--text", str(texts)]) == 0
    (table,) = (own_cache / "thresholds").iterdir()
    told = json.loads(table.read_text(encoding="utf-8"))
    assert (told["model"], told["data"], told["texts"], told["tokens"]) == ("tiny-llama", "texts.txt", 2, 10)
    assert len(told["thresholds"]) == 3 and len(told["thresholds"][0]) == len(told["targets"])
    options = [*PLAIN_SETTINGS, "--set", "shape=uniform", "--max-new-tokens", "4", "--json", str(tmp_path / "r.json")]
    assert main(["race", PROMPT, *options]) == 0
    assert not (own_cache / "answers").exists()  # what is there need not be made


@pytest.mark.usefixtures("tiny_loads")
def test_calibrate_is_on_answers_or_on_passages(
    little_text: None, own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TDA_DEMO_CACHE", str(own_cache))
    for arguments, name, weighted in (
        ([], "answers", False),
        (["--on", "passages"], "passages", False),
        (["--on", "answers", "--weighted"], "answers", True),
    ):
        assert main(["calibrate", *arguments]) == 0
        told, _, rest = capsys.readouterr().out.rpartition(": 3 layers, ")
        table = json.loads(Path(told).read_text(encoding="utf-8"))
        assert (table["data"], table["weighted"]) == (name, weighted)
        assert rest.startswith(f"4 texts ({name}), ")
    assert len(list((own_cache / "thresholds").iterdir())) == 3


@pytest.mark.usefixtures("tiny_loads")
def test_allocate_tells_the_settings_that_spend_the_bytes(
    little_text: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "allocation.json"
    assert main(["allocate", "--share", "0.8", "--texts", "3", "--json", str(path)]) == 0
    told = capsys.readouterr().out.split()
    assert told[::2] == ["--set"] * 3 and told[1:4:2] == ["cett=0.25", "shape=uniform"]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["share"] == 0.8 and len(found["cett_per_layer"]) == len(found["kl_per_layer"]) == 3
    method = make_method("tda", told[1::2])
    assert method.settings()["scale"] == pytest.approx(found["settings"]["scale"], rel=1e-3)
    assert main(["allocate", "--share", "0.01", "--texts", "3"]) == 2
    assert "share of 0.01 of the neurons cannot be kept" in capsys.readouterr().err


def test_methods_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert "tda:" in told and all(f"  {name}=" in told for name in ("cett", "scale", "online", "exempt", "weighted"))
    assert all(f"  {name} " in told for name in ("shape=sensitivity", "prior=0.0", "first=0", "refresh=0", "rest=skip"))


@pytest.mark.usefixtures("tiny_loads")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["race", "   "], "The prompt is empty"),
        (["race", "w5 " * 300], "300 tokens long"),
        (["race", "w5", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["race", "w5", "--max-new-tokens", "-4"], "max_new_tokens is -4"),
        (["race", "w5", "--temperature", "nan"], "temperature is nan"),
        (["race", "w5", "--set", "cett=nan"], "cett is nan"),
        (["race", "w5", "--set", "cett=much"], "'much' is not a number"),
        (["race", "w5", "--set", "cett"], "'cett' is not a setting"),
        (["race", "w5", "--set", "certain=1"], "'tda' has no setting 'certain'"),
        (["race", "w5", "--set", "exempt=a"], "'a' is not a list of whole numbers"),
        (["race", "w5", "--set", "online=maybe"], "'maybe' is not true or false"),
        (["race", "w5", "--set", "shape=round"], "shape is round; it must be sensitivity or uniform."),
        (["race", "w5", "--method", "random", "--set", "rest=8bit"], "rest is 8bit; it must be skip or 4bit."),
        (["race", "w5", "--method", "prior", "--set", "rest="], "rest is ; it must be skip or 4bit."),
        (["race", "w5", "--set", "prior=inf"], "prior is inf; it must be a number 0 or more"),
        (["race", "w5", "--set", "first=1.5"], "'1.5' is not a whole number"),
        (["race", "w5", "--method", "random", "--set", "prior=2"], "'random' has no setting 'prior'"),
        (["race", "w5", "--method", "magic"], "There is no method 'magic'"),
        (["calibrate", "--text", "nowhere.txt"], "Cannot read nowhere.txt"),
        (["race", "w5", "--threads", "0"], "0 threads: this process may use 1 to"),
        (["race", "w5", "--threads", "4000"], "4000 threads"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and told.out == ""


@pytest.mark.usefixtures("tiny_loads")
def test_texts_that_cannot_be_calibrated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("###\n \n###\n", encoding="utf-8")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in ((empty, "holds no text"), (binary, "not UTF-8")):
        assert main(["calibrate", "--text", str(path)]) == 2
        assert message in capsys.readouterr().err


def test_unwritable_json_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())
    (tmp_path / "file").write_text("")
    options = ["--set", "cett=0", "--max-new-tokens", "4", "--json", str(tmp_path / "file" / "race.json")]
    assert main(["race", PROMPT, *options]) == 2
    assert "Cannot write" in capsys.readouterr().err


def test_a_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise UserError("There is no such model.")

    monkeypatch.setattr(tda_demo.model.loading, "load_model", fail)
    assert main(["race", "hello"]) == 2
    assert capsys.readouterr().err == "tda_demo: There is no such model.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["race"], "the following arguments are required: PROMPT"),
        (["rac", "w5"], "invalid choice: 'rac'"),
        (["race", "w5", "--max-new-tokens", "many"], "invalid int value: 'many'"),
        (["race", "w5", "--kl", "0.1", "--mlp-bytes", "0.5"], "--mlp-bytes: not allowed with argument --kl"),
        (["race", "w5", "--cett\n0.2"], "unrecognized arguments: --cett 0.2"),
        (["bench", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["calibrate", "--on", "songs"], "invalid choice: 'songs'"),
        (["allocate", "--texts", "few"], "invalid int value: 'few'"),
        (["train", "tda"], "invalid choice: 'tda'"),
        (["theory", "inertia", "--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    told = capsys.readouterr()
    assert exit_.value.code == 2 and told.out == ""
    assert message in told.err and "--help)" in told.err and told.err.count("\n") == 1


def actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of every command, with the command's name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions(command)
        else:
            yield parser.prog, action


def test_help_explains_every_argument() -> None:
    found = [(prog, action) for prog, action in actions(_parser()) if not prog.endswith("lm-eval")]
    assert len(found) > 50 and not [(prog, action.dest) for prog, action in found if not action.help]
