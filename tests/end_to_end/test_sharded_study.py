"""A study whose cohorts are sharded is the study without: curves, scores, checkpoints, states."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import paretune
from paretune.analyse.results import tidy

pytestmark = pytest.mark.slow

CPT = """
name: sharded
base: pocket
regime: cpt
target:
  data: {from: json, path: rows.jsonl}
  items: 4
  metrics: [bits_per_byte, kl]
source:
  self_probe: {samples: 4, tokens: 16}
  texts:
    - {name: prose, data: {from: pocket-prose}, metrics: [cloze], items: 4}
training: {block_length: 32, batch_size: 3%s}
defaults: {schedule: {shape: trapezoid, warmup: 2ba}}
arms:%s
budgets: {at: [%s], mode: %s}
checkpoints: {every_seconds: 0.2}
"""
EVERY = """
  - {method: full, learning_rate: 1e-3, weight_decay: 0.1}
  - {method: full, learning_rate: 1e-4, optimizer: lion}
  - {method: lora, rank: 2, learning_rate: 5e-3, lora_dropout: 0.1}
  - {method: lora, rank: 4, learning_rate: 1e38}
"""
# Rates at which rounding does not grow over many steps
STEADY = """
  - {method: full, learning_rate: 2e-5}
  - {method: lora, rank: 2, learning_rate: 1e-3, lora_dropout: 0.1}
"""
IFT = """
name: sharded-pairs
base: pocket
regime: ift
target:
  data: {from: arithmetic, count: 60}
  heldout: 20%%
  metrics: [bits_per_byte, exact_match]
  samples: {count: 2, temperature: 1.0, pass_at: [1]}
  items: 4
  answer_tokens: 6
training: {block_length: 96, batch_size: 4%s}
arms:
  - {method: lora, rank: 4, learning_rate: 5e-3}
budgets: {at: [6ba]}
"""


def write_rows(folder: Path) -> None:
    lines = []
    for i in range(120):
        body = "\\n".join(f"    value_{j} = {i} * {j} + {i * j}" for j in range(6))
        lines.append(f'{{"text": "def function_{i}(x):\\n{body}\\n"}}')
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def start(folder: Path, text: str, out: str) -> subprocess.Popen[str]:
    (folder / f"{out}.yaml").write_text(text)
    command = [sys.executable, "-m", "paretune", "run", f"{out}.yaml", "--out", out, "--no-report"]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    return out


def same(folder: Path, one: str, other: str) -> None:
    """Scores, curves and checkpoints of two runs of a study, to 1e-5."""
    first, second = (paretune.load(folder / name) for name in (one, other))
    keys = ["arm", "tokens", "metric"]
    a, b = (tidy(record).sort_values(keys).reset_index(drop=True) for record in (first, second))
    assert a[keys].equals(b[keys])
    assert len(a) > 4
    np.testing.assert_allclose(a.value, b.value, atol=1e-5, rtol=1e-5)
    for status in paretune.status(folder / one):
        x, y = first.curve(status.arm), second.curve(status.arm)
        assert list(x.step) == list(y.step)
        assert list(x.leg) == list(y.leg)
        np.testing.assert_allclose(x.loss.dropna(), y.loss.dropna(), atol=1e-5, rtol=1e-5)
    states = [
        {status.arm: (status.state, status.reason) for status in paretune.status(folder / name)}
        for name in (one, other)
    ]
    assert states[0] == states[1]
    files = sorted((folder / one / "arms").glob("*/checkpoints/*/*.safetensors"))
    assert files
    for path in files:
        mine = load_file(path)
        others = load_file(folder / other / path.relative_to(folder / one))
        assert mine.keys() == others.keys()
        for name, value in mine.items():
            # On the mean: where a gradient is all rounding, its sign is Lion's whole step
            assert float((value - others[name]).abs().mean()) < 1e-5, name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies that were run by one process each."""
    folder = tmp_path_factory.mktemp("sharded")
    write_rows(folder)
    finish(start(folder, CPT % ("", EVERY, "4ba, 8ba", "cooldown"), "plain"))
    return folder


def test_two_processes_give_the_study_of_one(folder: Path) -> None:
    """Adapters and full arms, AdamW and Lion, branches that cool down, an arm that diverges."""
    text = CPT % (", devices_per_cohort: 2", EVERY, "4ba, 8ba", "cooldown")
    said = finish(start(folder, text, "two"))
    assert "sharded over 2 cpu devices" in said
    same(folder, "plain", "two")
    diverged = [s for s in paretune.status(folder / "two") if s.state == "diverged"]
    assert [arm.label for arm in diverged] == ["lora r4 lr 1e+38"]


def test_answers_are_generated_by_all_processes(folder: Path) -> None:
    finish(start(folder, IFT % "", "pairs"))
    finish(start(folder, IFT % ", devices_per_cohort: 2", "pairs-two"))
    same(folder, "pairs", "pairs-two")


def ranks(folder: Path, out: str) -> dict[int, int]:
    """The processes of a study's cohort at work: process number by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            given = b" ".join(words)
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"paretune.runner.rank" in words and f'"{out}"'.encode() in given:
            number = [v for v in environment if v.startswith(b"RANK=")]
            if number:
                found[int(number[0][5:])] = int(entry.name)
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until_saved(folder: Path, out: str, process: subprocess.Popen[str], method: str) -> None:
    """Wait until a cohort has saved a state and is at work."""
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if ranks(folder, out) and list((folder / out).glob(f"arms/{method}*/resume/*.sha256")):
            return
        time.sleep(0.05)
    raise AssertionError("nothing was saved")


AT = "30ba, 80ba"


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with time to be killed in, run by one process."""
    folder = tmp_path_factory.mktemp("killed")
    write_rows(folder)
    finish(start(folder, CPT % ("", STEADY, AT, "hot"), "whole"))
    return folder


def sharded(devices: str) -> str:
    return CPT % (f", devices_per_cohort: {devices}", STEADY, AT, "hot")


def test_killed_and_resumed_over_another_number_of_processes(long: Path) -> None:
    """SIGKILL of a process, of the launcher, and of the command; SIGTERM; three, offloaded."""
    process = start(long, sharded("2"), "cut")
    until_saved(long, "cut", process, "lora")
    os.kill(ranks(long, "cut")[1], signal.SIGKILL)
    until_saved(long, "cut", process, "full")
    first = ranks(long, "cut")
    os.kill(parent(first[0]), signal.SIGKILL)
    while (
        not (working := ranks(long, "cut"))
        or working.keys() != first.keys()
        or (working[0] == first[0])
    ):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    said, _ = process.communicate()
    assert said.count("; starting it again") == 2, said
    deadline = time.monotonic() + 120
    while any(alive(pid) for pid in working.values()):
        assert time.monotonic() < deadline, "they end with the command"
        time.sleep(0.1)
    process = start(long, sharded("2"), "cut")
    (curve,) = (long / "cut").glob("arms/full*/train.jsonl")
    before = curve.stat().st_size
    while curve.stat().st_size <= before:
        assert process.poll() is None, "it trains on"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    finish(start(long, sharded("3, offload: true"), "cut"))
    same(long, "whole", "cut")


def test_a_state_of_two_processes_serves_one(long: Path) -> None:
    process = start(long, sharded("2"), "to-one")
    until_saved(long, "to-one", process, "full")
    process.kill()
    process.communicate()
    saved = list((long / "to-one").glob("arms/full*/resume/*.shards/*.safetensors"))
    assert saved, "several processes wrote it"
    finish(start(long, CPT % ("", STEADY, AT, "hot"), "to-one"))
    same(long, "whole", "to-one")
