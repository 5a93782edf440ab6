"""Flipped bits in everything that is kept, kills in the middle of making it, and a disk with no room left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from served import ROOT


@dataclass(frozen=True)
class Row:
    """Of ``tried`` faults of a ``kind`` so many were noticed or recovered from, as they should be."""

    kind: str
    tried: int
    good: int


def flips(cache: Path, count: int, seed: int = 0) -> list[Row]:
    """Flips one bit at a time in files of ``cache``, a copy that may be spoilt, and puts it back; a row a folder.

    What an older version has kept without a sum is written again first, as it would be made now.
    """
    sys.path[:0] = [str(ROOT)]
    from tda_demo.model.weights.cache import MANIFEST, find_fault
    from tda_demo.support.kept import Damaged, read_kept, write_kept

    def noticed(path: Path) -> bool:
        if (path.parent / MANIFEST).exists():
            return bool(find_fault(path.parent))
        try:
            read_kept(path)
        except Damaged:
            return True
        return False

    draw, rows = random.Random(seed), []
    for folder in sorted(path for path in cache.iterdir() if path.is_dir()):
        whole = (folder / MANIFEST).exists() and not find_fault(folder)  # a look that writes sums where there are none
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        for path in [] if whole else files:
            write_kept(path, path.read_bytes())
        good = 0
        for at in range(count if files else 0):
            path = files[at % len(files)]
            place, bit = draw.randrange(path.stat().st_size), 1 << draw.randrange(8)
            if path.name == "content.json":  # what it says of when it last looked only has it look again
                place, bit = path.read_bytes().index(b"sha256") + 20, 1
            for turn in range(2):  # flip, and back
                with path.open("r+b") as file:
                    file.seek(place)
                    byte = file.read(1)[0]
                    file.seek(place)
                    file.write(bytes([byte ^ bit]))
                good += noticed(path) if turn == 0 else 0
            assert not noticed(path), f"{path} is as it was"
        if files:
            rows.append(Row(f"flipped bits in {folder.name}", count, good))
    return rows


COMMANDS = {
    "conversion and compilation": ("race", "the end", "--method", "griffin", "--max-new-tokens", "8"),
    "calibration": ("calibrate", "--method", "tda"),
    "training": ("train", "dejavu", "--set", "rank=4"),
    "sweep": ("sweep", "--method", "griffin", "--grid", "keep=0.5,0.8", "--documents", "2"),
}


def kills(folder: Path, count: int, seed: int = 0) -> Iterator[Row]:
    """Kills each command at random moments, then lets it end: the same files and the same words as without kills.

    Of a tiny model; times are left out of the comparison, being times.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
    from model_files import write_gguf

    gguf, draw = write_gguf(folder / "tiny.gguf"), random.Random(seed)
    for kind, command in COMMANDS.items():
        arguments = [*command, "--model", str(gguf), "--precision", "float32"]
        begin = time.monotonic()
        expected = _run(folder / f"whole-{kind}", arguments)
        seconds = time.monotonic() - begin
        for _ in range(count):
            _run(folder / f"killed-{kind}", arguments, kill_after=draw.uniform(0.3, 1.0) * seconds)
        same = _run(folder / f"killed-{kind}", arguments) == expected
        yield Row(f"kills during {kind}", count, count if same else 0)


def _run(cache: Path, arguments: list[str], kill_after: float | None = None) -> tuple[int, str]:
    """Exit status, and what was said and kept, less what differs between two runs of anything timed."""
    out = cache.with_suffix(".csv")
    extra = ["--out", str(out)] if arguments[0] == "sweep" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "tda_demo", *arguments, *extra],
        cwd=ROOT,
        env={**os.environ, "TDA_DEMO_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return process.returncode, _kept(cache) if kill_after is None else ""


def _kept(cache: Path) -> str:
    """Names of what is kept, and the numbers of its tables."""
    told = []
    for path in sorted(cache.rglob("*.json")):
        if path.name in ("content.json", "manifest.json") or path.name.startswith("."):
            continue
        told.append(f"{path.relative_to(cache)} {json.dumps(json.loads(path.read_text()), sort_keys=True)}")
    told += [str(path.relative_to(cache)) for path in sorted(cache.rglob("*.safetensors"))]
    return "\n".join(told)
