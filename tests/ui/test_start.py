"""``python app.py`` where it cannot serve: one line on stderr and exit code 2."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from browser import ROOT


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def refused(*arguments: str) -> str:
    """What the program says before it ends with 2."""
    command = [sys.executable, "app.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done
    return done.stderr


def test_a_busy_port(busy: int) -> None:
    assert f"port {busy} of 127.0.0.1: Address already in use" in refused("--port", str(busy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "99999 is not a port"),
        (["--port", "web"], "invalid int value: 'web'"),
        (["--host", "nowhere.invalid"], "cannot be served at nowhere.invalid"),
        (["--prot", "7860"], "unrecognized arguments: --prot 7860"),
    ],
)
def test_what_it_cannot_use(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_imported_it_leaves_other_programs_arguments_alone() -> None:
    """As gradio's reloader does, which has arguments of its own."""
    code = "import sys; sys.argv = ['gradio', '--theirs']; import app; print(type(app.demo).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "Blocks\n"), done.stderr
