"""Compiled kernels are kept in files that know their content, and run where no file can be written."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numba
import pytest
from numba import extending, types
from numba.core import errors

from tda_demo.kernels.cpu.kept_code import forget_old_code

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import sys
from pathlib import Path
from tda_demo.kernels.cpu.kept_code import keep_code_in
sources, folder = map(Path, sys.argv[1:3])
keep_code_in(folder, sources)
sys.path.insert(0, str(sources))
from module import same
exec(sys.argv[3])
assert same(21) == 21
print("loaded" if sum(same.stats.cache_hits.values()) else "compiled")
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "sources").mkdir()
    code = "import numba\n@numba.njit(cache=True)\ndef same(x):\n    return x\n"
    (tmp_path / "sources" / "module.py").write_text(code)
    return tmp_path / "sources"


def run(sources: Path, folder: Path, before: str = "") -> str:
    """Whether a process of its own compiled the function, or loaded it; ``before`` that it runs a line."""
    command = [sys.executable, "-B", "-c", _PROGRAM, str(sources), str(folder), before]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_compiled_once_is_loaded_and_lies_where_it_should(sources: Path, tmp_path: Path) -> None:
    assert [run(sources, tmp_path / "kept") for _ in range(2)] == ["compiled", "loaded"]
    assert list((tmp_path / "kept").rglob("*.nbc")) and [path.name for path in sources.iterdir()] == ["module.py"]


@pytest.mark.parametrize("ending", ["nbc", "nbi"])
def test_a_flipped_bit_in_it_compiles_anew_and_mends_it(sources: Path, tmp_path: Path, ending: str) -> None:
    run(sources, tmp_path / "kept")
    (file,) = (tmp_path / "kept").rglob(f"*.{ending}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert [run(sources, tmp_path / "kept") for _ in range(2)] == ["compiled", "loaded"]


def test_code_kept_for_types_that_a_program_has_not_is_as_if_it_were_not_there(sources: Path, tmp_path: Path) -> None:
    (sources / "pairs.py").write_text("from typing import NamedTuple\nclass Pair(NamedTuple):\n    one: int\n")
    run(sources, tmp_path / "kept", "from pairs import Pair; same(Pair(1))")
    (sources / "pairs.py").unlink()
    assert [run(sources, tmp_path / "kept") for _ in range(2)] == ["compiled", "loaded"]


def test_where_no_file_can_be_written_it_is_compiled_in_memory(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert [run(sources, tmp_path / "file" / "kept") for _ in range(2)] == ["compiled", "compiled"]


def test_a_folder_named_for_numba_s_cache_is_kept_to(tmp_path: Path) -> None:
    program = "import numba, tda_demo.kernels.cpu; print(numba.config.CACHE_DIR)"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == str(tmp_path)


def test_code_of_older_sources_makes_way(tmp_path: Path) -> None:
    folders = [tmp_path / f"state{age}" for age in range(8)]
    for age, folder in enumerate(folders):
        folder.mkdir()
        (folder / "code.nbc").write_bytes(b"x")
        os.utime(folder, (1e9 - age, 1e9 - age))
    forget_old_code(folders[7])  # the oldest, in use now
    assert {folder.name for folder in tmp_path.iterdir()} == {"state0", "state1", "state2", "state7"}
    forget_old_code(tmp_path / "none" / "yet")


def looking(seen: list[bool]) -> Any:
    """A function for compiled code that notes, once, whether the collector is on when it is compiled."""

    @extending.intrinsic
    def look(_context):
        seen.append(gc.isenabled())
        return types.int64(), lambda context, _builder, _signature, _values: context.get_constant(types.int64, 7)

    return look


def test_the_collector_rests_while_functions_compile_that_call_one_another() -> None:
    seen: list[bool] = []
    first, second, third = (looking(seen) for _ in range(3))
    inner: Any = numba.njit(lambda: second())
    assert numba.njit(lambda: first() + inner() + third())() == 21
    assert len(seen) >= 3 and not any(seen)
    assert gc.isenabled()


def test_the_collector_is_back_after_a_function_that_does_not_compile() -> None:
    with pytest.raises(errors.TypingError):
        numba.njit(lambda: missing)()  # type: ignore[name-defined]  # noqa: F821
    assert gc.isenabled()


_SAVING = """
import sys, time
from pathlib import Path
from numba.core import caching
from tda_demo.kernels.cpu.kept_code import keep_code_in
folder, name, begin = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
keep_code_in(folder)
(folder / "sub").mkdir(parents=True, exist_ok=True)
index = caching.IndexDataCacheFile(str(folder / "sub"), "function", "stamp")
time.sleep(max(0, begin - time.time()))
for number in range(30):
    index.save((name, number), f"{name} {number}")
"""


def test_two_processes_that_keep_code_at_once_lose_and_confuse_nothing(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _SAVING, str(tmp_path)]
    begin = str(time.time() + 5)  # when both are there
    writers = [subprocess.Popen([*arguments, name, begin], cwd=ROOT) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    reading = _SAVING.rpartition("for")[0] + (
        "for name in 'ab':\n"
        "    for number in range(30):\n"
        "        assert index.load((name, number)) == f'{name} {number}', (name, number)\n"
    )
    subprocess.run([sys.executable, "-c", reading, str(tmp_path), "", "0"], cwd=ROOT, check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_process_that_was_forked_keeps_and_loads_code(sources: Path, tmp_path: Path) -> None:
    """From one that has imported everything and compiled nothing, as ZeroGPU forks for a call."""
    forking = "import os; child = os.fork(); child and sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    told = [run(sources, tmp_path / "kept", forking) for _ in range(2)]
    assert told == ["compiled", "loaded"]
