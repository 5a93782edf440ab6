"""``pip install .`` without a checkout: the package, its data, the browser's files, the command ``tda-demo``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import tda_demo

ROOT = Path(tda_demo.__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "requirements.txt", "LICENSE", "tda_demo", "assets")


def run(*command: str, cwd: Path, **environment: str) -> str:
    """What ``command`` prints; it must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-deps", "--no-index", cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves its own folders where it builds and packs what lies in them."""
    sources, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources)
    pip("wheel", ".", "--no-build-isolation", "--wheel-dir", str(out), cwd=sources)
    (built,) = out.glob("tda_demo-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder it is installed into."""
    target = tmp_path_factory.mktemp("target")
    pip("install", str(wheel), "--no-compile", "--target", str(target), cwd=target)
    return target


def test_the_wheel_holds_the_package_and_what_the_browser_gets(wheel: Path) -> None:
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tda_demo").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    browser = {f"tda_demo/assets/{path.name}" for path in (ROOT / "assets").iterdir() if path.suffix != ".png"}
    packed = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == package | browser


def test_it_asks_for_what_requirements_txt_lists(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    lines = re.sub("#.*", "", (ROOT / "requirements.txt").read_text(encoding="utf-8")).splitlines()
    assert {Requirement(line) for line in metadata.get_all("Requires-Dist", [])} == {
        Requirement(line) for line in lines if line.strip()
    }


def test_the_command_and_the_module_do_the_same(installed: Path, tmp_path: Path) -> None:
    (command,) = (installed / "bin").glob("tda-demo*")
    here = {"cwd": tmp_path, "PYTHONPATH": str(installed)}
    as_command, as_module = (
        [run(*program, *arguments, **here) for arguments in (["methods"], ["--help"])]
        for program in ([sys.executable, str(command)], [sys.executable, "-m", "tda_demo"])
    )
    assert as_command[0] == as_module[0] and as_command[0].startswith("tda: ")
    assert as_command[1].replace("tda-demo", "python -m tda_demo", 1) == as_module[1]


def test_its_data_and_its_page_are_found(installed: Path, tmp_path: Path) -> None:
    code = """
import json, os
from tda_demo.calibration.documents import project_passages
from tda_demo.support.files import ASSETS, DATA
from tda_demo.theory.texts import histories
from tda_demo.ui.pareto.points import shipped_rows
from tda_demo.ui.page import make_page
made = {
    "folders": [str(ASSETS), str(DATA)],
    "texts": [len(project_passages()), len(histories())],
    "tables": [len([*(DATA / name).iterdir()]) for name in ("thresholds", "budgets")],
    "sweep": len(shipped_rows()),
    "styles": sorted(path.name for path in ASSETS.glob("*.css")),
    "page": type(make_page()).__name__,
}
print(json.dumps(made), flush=True)
os._exit(0)  # the page loads its model beside this
"""
    made = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()[-1])
    package, data = (installed / "tda_demo").resolve(), ROOT / "tda_demo" / "data"
    assert made["folders"] == [str(package / "assets"), str(package / "data")]
    assert made["texts"] == [60, 16]
    assert made["tables"] == [len([*(data / name).iterdir()]) for name in ("thresholds", "budgets")]
    assert made["sweep"] > 0
    assert made["styles"] == ["lab.css", "page.css", "pareto.css", "race.css"]
    assert made["page"] == "Blocks"
