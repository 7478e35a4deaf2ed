"""Every command and every line of Python that the README prints, run in a fresh clone."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_study_file_shown_is_valid() -> None:
    from paretune import parse_study

    (text,) = blocks("yaml")
    study = parse_study(text, "README.md")
    assert len(study.arms) == 2 + 4 + 2


def test_files_that_the_readme_names_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_every_command_works_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "paretune"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    shown = [
        line[2:] for block in blocks("console") for line in block.splitlines() if line[:2] == "$ "
    ]
    assert len(shown) >= 9
    (python,) = blocks("python")
    script = "\n".join(["set -euo pipefail", *shown, "python - <<'END'", python, "END"])
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        ["bash", "-c", script], cwd=clone, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, textwrap.shorten(done.stdout + done.stderr, 4000)
    assert (clone / "pocket-study" / "report.html").stat().st_size > 100_000
    assert (clone / "my-adapter" / "adapter_model.safetensors").exists()
    assert (clone / "my-model" / "config.json").exists()
    assert "full-lr" in done.stdout
