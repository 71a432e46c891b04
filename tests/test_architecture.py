"""The house: who may import whom, how large a room may be, and what never comes in."""

import ast
import statistics
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "recbole_ssd"
FILES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT = {
    "ops": {"ops"},
    "layers": {"ops", "layers"},
    "model": {"ops", "layers", "model"},
    "data": {"ops", "data"},
}
MAY_USE_COMPARISON = {"comparison", "command_line.py"}


def _imported(file: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            here = ("recbole_ssd", *file.relative_to(PACKAGE).parts)[: -node.level] if node.level else ()
            module = ".".join([*here, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room):
    for file in (PACKAGE / room).rglob("*.py"):
        ours = {name.split(".")[1] for name in _imported(file) if name.startswith("recbole_ssd.")}
        assert ours <= MAY_IMPORT[room], file


def test_a_comparison_is_known_to_the_command_line_alone():
    users = {
        file.relative_to(PACKAGE).parts[0]
        for file in FILES
        if any(name.startswith("recbole_ssd.comparison") for name in _imported(file))
    }
    assert users == MAY_USE_COMPARISON


def test_ops_know_nothing_of_recbole():
    for file in (PACKAGE / "ops").rglob("*.py"):
        assert not {name for name in _imported(file) if name.split(".")[0] == "recbole"}, file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_obeys_the_house_rules(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not {name for name in _imported(file) if name.startswith(("recbole.quick_start", "ray"))}
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), "a file opens with what it is for"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and ast.unparse(node.type) not in ("Exception", "BaseException")
        if isinstance(node, ast.FunctionDef):
            assert _code_lines(node) < 40, f"{node.name} is long"
        assert not (isinstance(node, ast.ImportFrom) and node.names[0].name == "*")


def _code_lines(function: ast.FunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_files_are_small():
    lengths = [len(file.read_text(encoding="utf-8").splitlines()) for file in FILES]
    assert statistics.median(lengths) < 150


def test_sys_argv_is_read_by_the_command_line_alone():
    readers = set()
    for file in FILES:
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        readers |= {file.name for node in nodes if isinstance(node, ast.Attribute) and node.attr == "argv"}
    assert readers == {"command_line.py", "result.py"}  # result.py stores it as the record of a run
