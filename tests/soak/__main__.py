"""``python -m tests.soak [PART ...]``: the page and the command under what they should withstand, as one table.

Not part of the tests: it takes from minutes to an hour, on a quiet machine. Every figure is of this run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import damage
import fuzz
import hangups
import payloads
import visitors
import worst
from served import ROOT, page

sys.path.insert(0, str(ROOT))

Line = tuple[str, str, str]  # what, the figure, n


def of_hangups(n: int, work: Path) -> Iterator[Line]:
    with page(work / "page.log") as served:
        rows = list(hangups.run(served, max(1, n)))
    for route, of_route in groupby(rows, lambda row: row.route):
        seconds = [row.seconds for row in of_route]
        yield f"model free after: {route}", f"{max(seconds):.1f} s at most", str(len(seconds))


def of_worst(n: int, work: Path) -> Iterator[Line]:
    with page(work / "page.log") as served:
        for _ in worst.run(served):  # what is compiled once is compiled now
            pass
        for row in worst.run(served):
            told = f"{row.seconds:.1f} s, {row.above / 1e6:.0f} MB above idle" if row.status == 200 else "refused"
            yield f"within caps: {row.request}", told, "1"


def of_requests(n: int, work: Path) -> Iterator[Line]:
    with page(work / "page.log") as served:
        row = fuzz.requests(served, n or 1000)
        scripts = list(fuzz.scripts(served))
    yield "tracebacks in odd requests", str(row.tracebacks), f"{row.tried:,}"
    yield "script payloads answered other than as JSON text", str(len(scripts)), str(4 * len(fuzz.SCRIPTS))


def of_scripts(n: int, work: Path) -> Iterator[Line]:
    with page(work / "page.log") as served:
        for row in payloads.run(served, work):
            yield f"script payloads through {row.way}", f"{row.executed} executed", str(row.tried)


def of_commands(n: int, work: Path) -> Iterator[Line]:
    row = fuzz.command_lines(n or 1000)
    yield "tracebacks in odd command lines", str(row.tracebacks), f"{row.tried:,}"


def of_ggufs(n: int, work: Path) -> Iterator[Line]:
    os.environ["TDA_DEMO_CACHE"] = str(work / "cache")
    row = fuzz.ggufs(work, n or 300)
    yield "tracebacks in mutated GGUF files", str(row.tracebacks), f"{row.tried:,}"


def of_flips(n: int, work: Path) -> Iterator[Line]:
    from tda_demo.support.files import cache_root

    kept = [path for path in cache_root().iterdir() if path.is_dir() and path.name != "compiled"]
    for path in kept:
        shutil.copytree(path, work / "cache" / path.name)
    newest = max((cache_root() / "compiled").iterdir(), key=lambda path: path.stat().st_mtime)
    shutil.copytree(newest, work / "cache" / "compiled")
    for row in damage.flips(work / "cache", n or 25):
        yield row.kind, f"{row.good} noticed", str(row.tried)


def of_kills(n: int, work: Path) -> Iterator[Line]:
    for row in damage.kills(work, n or 13):
        yield row.kind, f"{row.good} recovered, results equal", str(row.tried)


def of_memory(n: int, work: Path) -> Iterator[Line]:
    with page(work / "page.log") as served:
        found = visitors.run(served, n or 200)
    at = [place for place in (20, 50, 100, 200) if place <= len(found.after)]
    told = ", ".join(f"{found.after[place - 1] / 1e9:.2f} after {place}" for place in at)
    yield "memory of the page in GB", f"{found.idle / 1e9:.2f} idle, {told}", str(len(found.after))


PARTS: dict[str, Callable[[int, Path], Iterator[Line]]] = {
    "hangups": of_hangups,
    "worst": of_worst,
    "requests": of_requests,
    "scripts": of_scripts,
    "commands": of_commands,
    "ggufs": of_ggufs,
    "flips": of_flips,
    "kills": of_kills,
    "memory": of_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--n", type=int, default=0, help="how often; default: each part's own")
    options = parser.parse_args()
    print("| what | measured | n |\n| --- | --- | --- |", flush=True)
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="soak-") as work:
            for what, measured, n in PARTS[name](options.n, Path(work)):
                print(f"| {what} | {measured} | {n} |", flush=True)


if __name__ == "__main__":
    main()
