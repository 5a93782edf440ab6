"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tda_demo.__main__ import _parser

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = [part for part in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "Client(" not in part]  # of a page
COMMANDS = re.findall(r"^python -m tda_demo (.+)$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_library_runs(program: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 20, done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one(command: str) -> None:
    assert _parser().parse_args(shlex.split(command)).run


def test_there_are_some() -> None:
    assert len(PROGRAMS) == 1 and len(COMMANDS) > 10
