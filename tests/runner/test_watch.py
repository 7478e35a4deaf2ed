"""The live view and the tracker read the ledger alone."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runner_helpers import small_study, study_text

from paretune.runner.ledger import Ledger
from paretune.runner.run import run
from paretune.runner.track import track
from paretune.runner.watch import look, sparkline

RUNNING = re.compile(r"lora r4 lr 0.005\s+running\s+\d+%")
ARMS = "\n  - {method: lora, rank: [2, 4], learning_rate: 5e-3}\n"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    run(small_study(folder, arms=ARMS, at="5ba, 10ba"), folder / "out", report=False)
    return folder / "out"


def test_what_is_seen_of_a_finished_study(done: Path) -> None:
    for view in look(done):
        curve = Ledger(done).curve(view.arm)
        assert (view.state, view.share, view.scored) == ("done", 1.0, (320, 640))
        assert view.loss == pytest.approx(sum(row["loss"] for row in curve) / 10)
        assert view.rate is not None
        assert view.rate == pytest.approx(640 / Ledger(done).status(view.arm)["seconds"])
        assert view.memory is not None
        assert view.memory > 50e6
        assert (view.left, view.worker) == (None, "")


def test_sparkline() -> None:
    assert sparkline((3.0, 2.0, 1.0, 0.0), 4) == "█▆▃▁"
    assert sparkline((1.0, 1.0), 8) == "▁▁"
    assert sparkline((), 8) == ""


@pytest.mark.slow
def test_watch_on_a_running_study_in_a_real_terminal(tmp_path: Path) -> None:
    """In tmux: what a user sees while another process trains, and that it ends by itself."""
    if subprocess.run(["which", "tmux"], capture_output=True).returncode:
        pytest.skip("tmux is not installed")
    (tmp_path / "study.yaml").write_text(study_text(tmp_path, arms=ARMS, at="3ep", every=0.2))
    command = [sys.executable, "-m", "paretune"]
    trains = subprocess.Popen(
        [*command, "run", "study.yaml", "--out", "out", "--no-report"], cwd=tmp_path
    )
    # A server of its own, and the signs of the curves also where the locale has none
    tmux = ["tmux", "-u", "-S", str(tmp_path / "tmux")]
    try:
        deadline = time.monotonic() + 200
        while not _all_measured(tmp_path / "out"):
            assert trains.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # It stands still until it is watched, however slowly the watch starts
        trains.send_signal(signal.SIGSTOP)
        plain = ["env", "-u", "COLUMNS", "-u", "LINES"]
        shown = " ".join(
            [*plain, *command, "watch", "out", "--every", "0.5", "&&", "echo", "ended-$?"]
        )
        subprocess.run(
            [*tmux, "new-session", "-d", "-x", "150", "-y", "20", "-c", str(tmp_path), shown
             + "; sleep 60"], check=True,
        )  # fmt: skip
        seen: list[str] = []
        while time.monotonic() < deadline:
            done = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True)
            seen.append(done.stdout)
            if RUNNING.search(done.stdout):
                trains.send_signal(signal.SIGCONT)
            if "ended-0" in done.stdout:
                break
            time.sleep(0.3)
    finally:
        trains.send_signal(signal.SIGCONT)
        subprocess.run([*tmux, "kill-server"], check=False)
        trains.wait(timeout=200)
    running = [picture for picture in seen if RUNNING.search(picture)]
    assert running, seen[-1:]
    assert re.search(
        r"running\s+\d+%.*\d\.\d{3}.*[▁▂▃▄▅▆▇█].*\d+\s+[\d.]+ (s|min).*MB", running[-1]
    )
    assert "of training left" in running[-1]
    assert "2 of 2 arms have ended" in seen[-1]


def _all_measured(folder: Path) -> bool:
    """Every arm has trained, and its process has said how fast and with how much memory."""
    if not list(folder.glob("arms/*/train.jsonl")):
        return False
    return all(view.left is not None and view.memory for view in look(folder))


def test_tracking_sends_what_the_ledger_holds(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, read back from the file that W&B would send."""
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert track(done) == 2
    found: list[dict[str, Any]] = []
    for path in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        for content in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.HasField("history"):
                items = record.history.item
                found.append({item.key or item.nested_key[0]: item.value_json for item in items})
    losses = sorted(float(row["main/loss"]) for row in found)
    ledger = Ledger(done)
    kept = [row["loss"] for arm in ledger.arms() for row in ledger.curve(arm)]
    assert losses == sorted(kept)


def records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
