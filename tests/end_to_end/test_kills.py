"""Killing a study at random moments and running the same command again loses and changes nothing."""

from __future__ import annotations

import os
import random
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
        lines.append('{"text": "def function_%d(x):\\n%s\\n"}' % (i, body))
    return "\n".join(lines) + "\n"


def start(folder: Path, out: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "paretune", "run", "study.yaml", "--out", out]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )


def finish(folder: Path, out: str) -> None:
    process = start(folder, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "kills"), [("hot", 12), ("cooldown", 8)])
def test_twenty_kills_change_nothing(tmp_path: Path, mode: str, kills: int) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("MODE", mode))
    (tmp_path / "rows.jsonl").write_text(rows())
    started = time.monotonic()
    finish(tmp_path, "whole")
    whole = time.monotonic() - started
    chance = random.Random(7)
    killed = 0
    for _ in range(3 * kills):
        process = start(tmp_path, "cut")
        # Imports take the first seconds; strike anywhere after them, so that some progress is made
        time.sleep(chance.uniform(0.25, 0.6) * whole)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        if killed == kills:
            break
        if process.returncode == 0:
            # It finished before the blow: take a part of it away again, as a crash would have
            arm = sorted((tmp_path / "cut" / "arms").iterdir())[chance.randrange(3)]
            (arm / "scores.jsonl").unlink()
            (arm / "status.json").unlink()
    assert killed == kills
    finish(tmp_path, "cut")
    expected = (tmp_path / "whole" / "results.csv").read_bytes()
    assert (tmp_path / "cut" / "results.csv").read_bytes() == expected
    assert not list((tmp_path / "cut").rglob("*.tmp"))
    curves = [sorted((tmp_path / out / "arms").glob("*/train.jsonl")) for out in ("whole", "cut")]
    for undisturbed, resumed in zip(*curves, strict=True):
        assert sorted(undisturbed.read_text().splitlines()) == sorted(
            resumed.read_text().splitlines()
        )
