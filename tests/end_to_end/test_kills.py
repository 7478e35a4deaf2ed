"""Killing a study at random moments and running it again loses and changes nothing."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STUDY = """
name: killed
base: pocket
regime: cpt
target:
  data: {from: json, path: rows.jsonl}
  items: 16
source:
  self_probe: {samples: 4, tokens: 32}
  texts:
    - {name: prose, data: {from: pocket-prose}, metrics: [cloze], items: 8}
training: {block_length: 32, batch_size: 2}
defaults: {schedule: {shape: trapezoid, warmup: 4ba}}
arms:
  - {method: full, learning_rate: 1e-3}
  - {method: lora, rank: [2, 8], learning_rate: 5e-3, lora_dropout: 0.1}
budgets: {at: [10ba, 20ba, 40ba], mode: MODE}
repeat_best: {seeds: [1], per: [method]}
checkpoints: {every_seconds: 0.2}
"""


def rows() -> str:
    lines = []
    for i in range(120):
        body = "\\n".join(f"    value_{j} = {i} * {j} + {i * j}" for j in range(6))
        lines.append(f'{{"text": "def function_{i}(x):\\n{body}\\n"}}')
    return "\n".join(lines) + "\n"


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "paretune", "run", "study.yaml", "--out", out]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )


def finish(folder: Path, out: str) -> None:
    process = start(folder, out)
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors.decode()


def seconds_of_processor(pid: int) -> float:
    """What a process has used; other work on the machine does not lengthen it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_of_children() -> float:
    """The same of all that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kills"), [("hot", 12), ("cooldown", 8)])
def test_twenty_kills_change_nothing(tmp_path: Path, mode: str, kills: int) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("MODE", mode))
    (tmp_path / "rows.jsonl").write_text(rows())
    before = seconds_of_children()
    finish(tmp_path, "whole")
    whole = seconds_of_children() - before
    chance = random.Random(7)
    killed, studies = 0, 1
    while killed < kills:
        process = start(tmp_path, f"cut-{studies}")
        # Anywhere after the imports, which take about the first third
        at = chance.uniform(0.25, 0.8) * whole
        while process.poll() is None and seconds_of_processor(process.pid) < at:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            killed += 1
        else:
            studies += 1  # it was done before the blow: the next kills strike a new study
    for number in range(1, studies + 1):
        finish(tmp_path, f"cut-{number}")
        same(tmp_path / "whole", tmp_path / f"cut-{number}")


def same(whole: Path, cut: Path) -> None:
    """Results equal to the byte, the same training curves, and nothing half-written left."""
    assert (cut / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    assert not list(cut.rglob("*.tmp"))
    curves = [sorted((folder / "arms").glob("*/train.jsonl")) for folder in (whole, cut)]
    assert len(curves[0]) == 5
    for undisturbed, resumed in zip(*curves, strict=True):
        lines = [sorted(path.read_text().splitlines()) for path in (undisturbed, resumed)]
        assert lines[0] == lines[1]
