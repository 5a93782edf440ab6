"""Requests, command lines and GGUF files that nobody sensible sends: how many end in a traceback of ours."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from served import RACE_INPUTS, ROOT, Page, race_body

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2.5, 1e308, -1e308, 10**400, -(10**400), 2**63, "", " ", "0.2", "nan", "inf"),
    *("\x00", "\ud83d", "🏁" * 50, "a" * 9000, [], {}, [[]], [0], ["x"], [10**400], {"a": 1}, {"cett": [1]}),
    *({"scale": 3}, {"exempt": -(10**400)}, {"exempt": "-1"}, {"scale": [1] * 30}, {"": ""}, {"cett": None}),
    *({"cett": "nan"}, {"prior": 10**400}, {"rest": []}, {"shape": {}}, "tda", "sketch", "no such method"),
)
SCRIPTS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "{{7*7}}",
    "${alert(1)}",
    "</textarea><svg onload=alert(1)>",
)


@dataclass(frozen=True)
class Row:
    """``tried`` things of a ``kind``, after which ``tracebacks`` were found in what was said."""

    kind: str
    tried: int
    tracebacks: int


def requests(page: Page, count: int, seed: int = 0) -> Row:
    """Races with odd values, and every handler of the page with odd values in the place of its own."""
    draw = random.Random(seed)
    handlers = [handler for handler in page.config()["dependencies"] if handler["backend_fn"]]
    before = page.tracebacks

    def one(_: int) -> None:
        path, body = _request(draw, handlers)
        with suppress(OSError):  # the page hung up, or took its time: what counts is what it logged
            page.post(path, body, timeout=60)

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(one, range(count)))
    return Row("requests", count, page.tracebacks - before)


def _request(draw: random.Random, handlers: list[dict[str, Any]]) -> tuple[str, Any]:
    match draw.randrange(4):
        case 0:  # one value of a race is odd
            return "run/race", race_body("Hello", **{draw.choice(RACE_INPUTS[1:]): draw.choice(ODD)})
        case 1:  # all of them are
            body = race_body("Hello")
            return "run/race", {**body, "data": [draw.choice(ODD) for _ in body["data"]]}
        case 2:  # a handler of the page
            handler = draw.choice(handlers)
            data = [draw.choice(ODD) for _ in handler["inputs"]]
            return "run/predict", {"data": data, "fn_index": handler["id"], "session_hash": f"fuzz{draw.random()}"}
        case _:  # a body that is none, or another
            bodies: tuple[Any, ...] = (b"", b"{", b"[]", b"null", b"[" * 5000, {"data": draw.choice(ODD)}, b"\xff\xfe")
            return draw.choice(("run/race", "queue/join", "call/race", "cancel", "reset")), draw.choice(bodies)


def command_lines(count: int, seed: int = 0) -> Row:
    """Commands with odd arguments, most of which are refused before a model is loaded; all in one process."""
    program = "import sys; sys.path[:0] = ['tests/soak', '.']; import fuzz; fuzz.run_commands(*map(int, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(count), str(seed)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    failed = int(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else count
    return Row("command lines", count, failed)


def run_commands(count: int, seed: int) -> None:
    """Prints how many of ``count`` commands raised anything but an exit."""
    from tda_demo.__main__ import main

    draw, failed = random.Random(seed), 0
    for _ in range(count):
        try:
            main(_command(draw))
        except SystemExit:
            pass
        except Exception as error:
            failed += 1
            print(type(error).__name__, error, file=sys.stderr)
    print(f"\n{failed}")


def _command(draw: random.Random) -> list[str]:
    words = (*(str(value)[:200].replace("\x00", "") for value in ODD if str(value)), *SCRIPTS)
    names = ("race", "evaluate", "sweep", "calibrate", "train", "allocate", "presets", "theory", "methods", "nonsense")
    options = (
        *("--set", "--method", "--preset", "--rival", "--kl", "--mlp-bytes", "--max-new-tokens", "--temperature"),
        *("--top-p", "--seed", "--precision", "--device", "--threads", "--text", "--share", "--grid"),
    )
    chosen = [draw.choice(names), draw.choice(words), "--model", "/nonexistent/model.gguf"]
    for _ in range(draw.randrange(1, 4)):
        option, word = draw.choice(options), draw.choice(words)
        chosen += [option, f"{draw.choice(('cett', 'exempt', 'scale', 'keep'))}={word}" if option == "--set" else word]
    return chosen


def ggufs(folder: Path, count: int, seed: int = 0) -> Row:
    """A tiny GGUF file with bytes changed or cut off, loaded."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
    from model_files import write_gguf

    from tda_demo.model.loading import load_model
    from tda_demo.support.errors import UserError

    content = write_gguf(folder / "whole.gguf").read_bytes()
    draw, failed = random.Random(seed), 0
    for at in range(count):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 4, 64))):
            changed[draw.randrange(draw.choice((64, 4096, len(changed))))] = draw.randrange(256)
        path = folder / f"{at}.gguf"
        path.write_bytes(changed[: draw.randrange(len(changed))] if draw.random() < 0.2 else changed)
        try:
            load_model(str(path), precision="float32").prompt_ids("the end")
        except UserError:
            pass
        except Exception as error:
            failed += 1
            print("GGUF", at, type(error).__name__, error, file=sys.stderr)
        path.unlink()
    return Row("mutated GGUF files", count, failed)


def scripts(page: Page) -> Iterator[str]:
    """Answers and refusals that hold a script payload other than as JSON text."""
    for payload in SCRIPTS:
        for wishes in ({"prompt": payload}, {"method": payload}, {"settings": {payload: payload}}, {"model": payload}):
            body = race_body(**{"prompt": "Hello", **wishes})
            status, answer = page.post("run/race", body)
            try:
                json.loads(answer)
            except ValueError:
                yield f"{payload} in {sorted(wishes)}: status {status} is no JSON"
