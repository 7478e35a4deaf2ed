"""The shape of the package: imports run down the layout, modules are small and documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "paretune"
MODULES = sorted(PACKAGE.rglob("*.py"))
# From the bottom up: a part may import what stands before it.
LAYERS = [
    ("cores", "errors", "version"),
    ("files",),
    ("study",),
    ("data",),
    ("model",),
    ("train",),
    ("evaluate",),
    ("spectrum",),
    ("analyse",),
    ("report",),
    ("runner",),
    ("pocket",),
    ("cli", "__init__", "__main__"),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {
    "altair",
    "datasets",
    "lm_eval",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "vl_convert",
}
MOST_LINES = 400


def part(module: Path) -> str:
    """The subpackage, or the module at the top, that a file belongs to."""
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import in a tree, wherever it stands, as its line and the module's whole name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "paretune":
                for alias in node.names:
                    yield node.lineno, f"paretune.{alias.name}"
            else:
                yield node.lineno, node.module


def at_import_time(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not in functions, nor for type checkers only."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def test_every_part_has_its_place() -> None:
    assert {part(module) for module in MODULES} <= set(LEVEL)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_the_layout(module: Path) -> None:
    tree = ast.parse(module.read_text())
    own = part(module)
    for node in ast.walk(tree):
        relative = isinstance(node, ast.ImportFrom) and node.level
        assert not relative, f"{module}:{node.lineno}: write the whole name"  # type: ignore[attr-defined]
    for line, name in imported(tree):
        parts = name.split(".")
        if parts[0] != "paretune" or len(parts) == 1:
            continue
        below = LEVEL[parts[1]] < LEVEL[own]
        same = parts[1] == own or (own in LAYERS[-1] and parts[1] in LAYERS[-1])
        assert below or same, f"{module}:{line}: {own} imports {name}, which stands above it"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_says_what_it_is_and_is_small(module: Path) -> None:
    text = module.read_text()
    assert len(text.splitlines()) <= MOST_LINES, f"{module}: more than {MOST_LINES} lines"
    if text.strip() or module.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), f"{module}: begin with a docstring"


LIGHT = [m for m in MODULES if part(m) in ("__init__", "cli", "errors", "files", "study")]


@pytest.mark.parametrize("module", LIGHT, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_where_they_are_used(module: Path) -> None:
    for statement in at_import_time(ast.parse(module.read_text())):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = {name.split(".")[0] for _, name in imported(statement)}
            assert not names & HEAVY, f"{module}:{statement.lineno}: import it in the function"


def test_help_loads_nothing_heavy() -> None:
    """What counts for speed: after importing the command line, none of them is in memory."""
    code = (
        "import sys, paretune, paretune.cli, paretune.study.yamlfile, paretune.study.recipes;"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_file_names_of_tests_are_unique() -> None:
    """Without packages among the tests, two files of one name would hide each other."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
