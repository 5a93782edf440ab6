"""How the modules hang together, read from their source without running it.

An import inside a function counts like one at the top of the file. One under ``if TYPE_CHECKING:`` never runs, so the
search for circles is made once without those and once with them. That importing ``a.b`` also runs ``a/__init__.py`` is
left out, or every package that offers names of its modules would be a circle. Modules imported by a computed name, as
``tda_demo/__init__.py`` does it, are not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import tda_demo

PACKAGE = Path(tda_demo.__file__).parent
TESTS = next(folder for folder in Path(__file__).resolve().parents if folder.name == "tests")


@dataclass(frozen=True)
class Import:
    """``module`` as it would be written absolutely; ``at_run_time`` unless it serves the type checker alone."""

    module: str
    at_run_time: bool


class _Imports(ast.NodeVisitor):
    """Collects the imports of one module, called ``name``, among ``modules``."""

    def __init__(self, name: str, is_package: bool, modules: frozenset[str]) -> None:
        self.imports: set[Import] = set()
        self._package = name.split(".") if is_package else name.split(".")[:-1]
        self._modules = modules
        self._at_run_time = True

    def visit_Import(self, node: ast.Import) -> None:
        self._add(*(alias.name for alias in node.names))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self._package[: len(self._package) + 1 - node.level] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            member = f"{source}.{alias.name}"
            self._add(member if member in self._modules else source)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
            return
        before, self._at_run_time = self._at_run_time, False
        for statement in node.body:
            self.visit(statement)
        self._at_run_time = before
        for statement in node.orelse:
            self.visit(statement)

    def _add(self, *modules: str) -> None:
        self.imports |= {Import(module, self._at_run_time) for module in modules}


@cache
def imports() -> dict[str, frozenset[Import]]:
    """What every module of the package and ``app.py`` import, by module name."""
    files = {_module(path): path for path in sorted(PACKAGE.rglob("*.py"))} | {"app": PACKAGE.parent / "app.py"}
    known = frozenset(files)
    read = {}
    for name, path in files.items():
        visitor = _Imports(name, path.name == "__init__.py", known)
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        read[name] = frozenset(visitor.imports)
    return read


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The strongly connected sets of two or more nodes, and nodes that lead to themselves."""
    reached = {node: _reached(graph, node) for node in graph}
    return {
        frozenset(other for other in reached[node] if node in reached[other]) for node in graph if node in reached[node]
    }


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Every node that a way of one edge or more leads to from ``start``."""
    reached: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += graph[node]
    return reached


def importers(*packages: str) -> Iterator[str]:
    """Names of modules that import any of ``packages`` or a module within one, for the type checker or not."""
    for name, imported in imports().items():
        if any(f"{line.module}.".startswith(tuple(f"{package}." for package in packages)) for line in imported):
            yield name


def test_a_circle_is_seen_in_a_graph() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert circles(graph) == {frozenset("bc"), frozenset("e")}


def test_every_form_of_import_is_read() -> None:
    source = """
import os.path
from . import sibling, something
from .. import uncle
if TYPE_CHECKING:
    from ..uncle import Name
else:
    from .sibling import name
def late():
    from a.b.other import name
"""
    visitor = _Imports("a.b.c", False, frozenset({"a", "a.b", "a.b.c", "a.b.sibling", "a.b.other", "a.uncle"}))
    visitor.visit(ast.parse(source))
    at_run_time = {"os.path", "a.b.sibling", "a.b", "a.uncle", "a.b.other"}
    assert visitor.imports == {*(Import(module, True) for module in at_run_time), Import("a.uncle", False)}


def test_the_imports_of_the_package_were_read() -> None:
    assert Import("tda_demo.ui.page", True) in imports()["app"]
    assert "tda_demo.methods.tda" in {line.module for line in imports()["tda_demo.methods"]}


@pytest.mark.parametrize("types_too", [False, True], ids=["what runs", "what the type checker reads"])
def test_no_modules_import_each_other_in_a_circle(types_too: bool) -> None:
    graph = {
        name: {line.module for line in imported if (line.at_run_time or types_too) and line.module in imports()}
        for name, imported in imports().items()
    }
    assert circles(graph) == set()


def test_only_the_page_imports_gradio() -> None:
    within = ("tda_demo.ui.", "app.")
    assert [name for name in importers("gradio", "gradio_client") if not f"{name}.".startswith(within)] == []


def test_nothing_but_the_page_s_program_imports_the_page() -> None:
    assert [name for name in importers("tda_demo.ui") if not name.startswith("tda_demo.ui")] == ["app"]


def test_nothing_imports_from_the_tests() -> None:
    assert [*importers("tests", *(path.stem for path in TESTS.rglob("*.py") if path.stem != "__init__"))] == []
