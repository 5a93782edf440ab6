"""What comes from outside, however odd, is answered in one sentence: settings, pipes, variables, forks."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import PROMPT

from tda_demo.methods import GRIFFIN, TDA, make_method
from tda_demo.model.loading import LoadedModel
from tda_demo.race import RaceSettings, race
from tda_demo.race.result import summary
from tda_demo.stats.metrics import Speedup
from tda_demo.support.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a program that refuses."""
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "value",
    [-(10**400), 10**400, -(10**5000), float("-inf"), float("nan"), 1e308, -1.0, tuple(range(-9999, 0))],
    ids=range(8),  # pytest cannot name the third
)
@pytest.mark.parametrize("name", ["cett", "prior", "exempt"])
def test_a_value_out_of_range_is_quoted_briefly(name: str, value: object) -> None:
    if name == "exempt" and not isinstance(value, tuple):
        value = (value,)
    if name != "cett" and value in (1e308, (1e308,)):
        pytest.skip("within the range")
    with pytest.raises(UserError) as raised:
        TDA(**{name: value})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("assignment", [f"cett={'9' * 5000}x", f"{'x' * 5000}=1", "y" * 5000, f"shape={'z' * 5000}"])
def test_so_is_what_is_no_value(assignment: str) -> None:
    with pytest.raises(UserError) as raised:
        make_method("tda", [assignment])
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("n", "low", "high", "said", "efficient"),
    [
        (90, 0.557, 1.350, "too noisy to tell, n = 90", False),
        (90, 1.04, 1.55, "n = 90;", False),
        (90, 0.87, 1.10, "undecided", False),
        (90, 0.8, 0.99, "slower than dense", True),
        (90, 1.01, 1.15, "n = 90;", True),
        (90, 0.9, 1.0, "undecided", False),
        (19, 1.2, 1.2, "too few steps to tell, n = 19", False),
    ],
)
def test_the_command_line_tells_what_the_page_tells(
    lm: LoadedModel, n: int, low: float, high: float, said: str, efficient: bool
) -> None:
    *_, finished = race(lm, GRIFFIN(keep=0.5), PROMPT, RaceSettings(8))
    median = (low + high) / 2
    speed = Speedup(median, low, high, n, 0, median)
    result = dataclasses.replace(finished.result, speedup=speed, efficiency=median / finished.result.byte_bound)
    (line,) = [line for line in summary(result).splitlines() if line.startswith("speedup")]
    assert said in line and ("efficiency" in line) is efficient and ("slower" in line) is (high < 1)
    assert (f"{median:.3f}" in line) is ("to tell" not in said)


def test_a_reader_who_has_had_enough_is_no_error() -> None:
    command = f"{sys.executable} -m tda_demo methods | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout[1:].strip() in ("0", "141")


class TestVariables:
    @pytest.mark.parametrize("port", ["abc", "0", "70000", "9" * 400, "-1", "7860.5"])
    def test_a_port_that_is_none_is_said(self, port: str) -> None:
        assert "GRADIO_SERVER_PORT" in refused(run("app.py", GRADIO_SERVER_PORT=port))

    def test_a_host_that_cannot_be_served_at_is_said(self) -> None:
        told = refused(run("app.py", GRADIO_SERVER_NAME="host.invalid", TDA_DEMO_CACHE="/nonexistent/cache"))
        assert "host.invalid" in told and "no free port" not in told

    def test_switched_off_compilation_is_said(self, monkeypatch: pytest.MonkeyPatch, lm: LoadedModel) -> None:
        monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
        with pytest.raises(UserError, match="NUMBA_DISABLE_JIT"):
            list(race(lm, GRIFFIN(), PROMPT, RaceSettings(2)))

    def test_threads_that_numba_does_not_have_are_said(self, tmp_path: Path) -> None:
        program = (
            "from tda_demo.support.errors import UserError\n"
            "from tda_demo.kernels.cpu import cores\n"
            "try:\n    cores(1).__enter__()\nexcept UserError as error:\n    print(error)\n"
        )
        done = run("-c", program, NUMBA_THREADING_LAYER="tbb")
        assert done.returncode == 0 and ("NUMBA_THREADING_LAYER" in done.stdout or done.stdout == ""), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_race_in_a_child_forked_after_one_is_refused_not_hung() -> None:
    program = """
import os, sys
sys.path.insert(0, "tests/helpers")
from tiny import tiny, PROMPT
from tda_demo.methods import GRIFFIN
from tda_demo.race import RaceSettings, race
from tda_demo.support.errors import UserError
lm = tiny()
list(race(lm, GRIFFIN(), PROMPT, RaceSettings(2)))
child = os.fork()
if child == 0:
    try:
        list(race(lm, GRIFFIN(), PROMPT, RaceSettings(2)))
    except UserError as error:
        os._exit(7 if "spawn" in str(error) else 8)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run("-W", "ignore", "-c", program)
    assert done.stdout.strip() == "7", done.stderr
