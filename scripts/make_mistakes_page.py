"""Write docs/mistakes.md from the tables that the tests walk, so that the page cannot go stale."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mistakes.md"
HEAD = """\
# Mistakes and their messages

A mistake in a study file or in the data stops `paretune plan` and `paretune run` with exit code 2
and a message for each mistake: where it is, what is wrong, what to do. All mistakes that can be
known at that point are reported together. This page is made by `scripts/make_mistakes_page.py` from
the tables that the tests walk.
"""


def load(path: Path) -> ModuleType:
    """A test module, by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def study_files() -> str:
    """The table of malformed study files."""
    table = load(ROOT / "tests" / "study" / "test_mistakes.py")
    parts = [
        "\n## Study files\n\nEach case below changes this file; what is shown is the change.\n\n"
        f"```yaml\n{table.GOOD}```\n"
    ]
    for mistake in table.MISTAKES:
        snippet = mistake.snippet.rstrip("\n")
        lines = [line if len(line) <= 160 else line[:157] + "..." for line in snippet.split("\n")]
        shown = "\n".join(lines) or "(nothing)"
        messages = "\n".join(f"study.yaml, {message}" for message in mistake.messages)
        parts.append(f"\n**{mistake.name}**\n\n```yaml\n{shown}\n```\n\n```text\n{messages}\n```\n")
    return "".join(parts)


def page() -> str:
    """The whole page."""
    return HEAD + study_files()


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.relative_to(ROOT)} is written")
