"""Write docs/mistakes.md from the tables that the tests walk, so that the page cannot go stale."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mistakes.md"
HEAD = """\
# Mistakes and their messages

A mistake in a study file or in the data stops `paretune plan` and `paretune run` with exit code 2
and one line for each mistake: where it is, what is wrong, what to do. What can be known from the
file is reported together, from top to bottom. Tests walk the tables of this page, which
`make docs` writes.

## Study files

Each case changes this file; what is shown is the lines that differ.

"""
LATE = """
## What only the base and the data reveal

`paretune plan` finds these too, one at a time, since each check needs the one before it. A message
that ends in `...` goes on with numbers of the data at hand.

"""
ROWS = """
## Rows of data

A row that cannot be used is counted, shown and skipped. When more than `training.max_bad_rows` (1%)
of the rows are such, the study stops and shows the first of them; each is called as below, after
the name of its file.
"""
FILES = """
## Files of data

"""


MODELS = """
## Models and adapters

`paretune spectrum` stops at a model that is damaged or is no finetune of the base. Each message
begins with the file or folder and names the tensor.

"""


def load(path: Path) -> ModuleType:
    """A test module, by its path."""
    sys.path.append(str(path.parent))  # for the helpers that it imports
    name = f"table_in_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def study_files() -> str:
    """Every malformed study file with its messages."""
    tests = load(ROOT / "tests" / "study" / "test_mistakes.py")
    parts = [f"```yaml\n{tests.GOOD}```\n"]
    for mistake in tests.MISTAKES:
        shown = change(tests.GOOD, mistake.text)
        messages = "\n".join(f"study.yaml, {message}" for message in mistake.messages)
        parts.append(
            f"\n### {mistake.name[:1].upper()}{mistake.name[1:]}\n\n"
            f"```yaml\n{shown}\n```\n\n```text\n{messages}\n```\n"
        )
    return "".join(parts)


def late() -> str:
    """Mistakes that need the base or the data, with their messages."""
    tests = load(ROOT / "tests" / "runner" / "test_late_mistakes.py")
    parts = [f"```yaml\n{tests.GOOD}```\n"]
    for name, _, new, message in tests.LATE:
        shown = f"study.yaml, {message}" + ("..." if message.endswith(" ") else "")
        parts.append(
            f"\n### {name[:1].upper()}{name[1:]}\n\n"
            f"```yaml\n{new.strip()}\n```\n\n```text\n{shown}\n```\n"
        )
    return LATE + "".join(parts)


def change(good: str, text: str) -> str:
    """The lines of a file that are not as in the good one, or those that it lacks."""
    if not text:
        return "# nothing at all"
    lines = list(difflib.ndiff(good.splitlines(), text.splitlines()))
    new = [line[2:] for line in lines if line.startswith("+ ")]
    shown = new or [f"# without: {line[2:].strip()}" for line in lines if line.startswith("- ")]
    return "\n".join(line if len(line) <= 120 else f"{line[:117]}..." for line in shown)


def data() -> str:
    """Rows and files that cannot be used, as tables."""
    tests = load(ROOT / "tests" / "data" / "test_bad_rows.py")
    rows = [("case", "row", "message")]
    rows += [(name, code(content), text) for name, content, text in tests.DOCUMENT_ROWS]
    rows += [(name, code(content), text) for name, content, text in tests.PAIR_ROWS]
    files = [("case", "file", "message")]
    files += [(name, f"`{file}`", text) for name, file, _, text in tests.FILES]
    return ROWS + "\n" + table(rows) + FILES + table(files)


def models() -> str:
    """Damaged and unfit models, as a table."""
    tests = load(ROOT / "tests" / "spectrum" / "test_damaged_models.py")
    lines = ["| case | message |", "|---|---|"]
    lines += [f"| {damage.name} | ...{damage.message}... |" for damage in tests.DAMAGES]
    return MODELS + "\n".join(lines) + "\n"


def code(content: bytes) -> str:
    """A row as inline code, cut where it is long."""
    text = content.decode("utf-8", "backslashreplace")
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def table(rows: list[tuple[str, str, str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|---|", *lines[1:]]) + "\n"


def page() -> str:
    """The whole page."""
    return HEAD + study_files() + late() + data() + models()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")
