"""The live view and the tracker read the ledger alone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from runner_helpers import small_study, study_text

from paretune.errors import UserError
from paretune.runner.leases import Leases
from paretune.runner.ledger import Ledger
from paretune.runner.run import run
from paretune.runner.status import status
from paretune.runner.tables import status_table
from paretune.runner.track import track
from paretune.runner.watch import look, picture, sparkline

RUNNING = re.compile(r"lora r4 lr 0.005\s+running\s+\d+%")
ARMS = "\n  - {method: lora, rank: [2, 4], learning_rate: 5e-3}\n"
# Beyond what anything here takes on a machine that does much else
PATIENCE = 600


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


def test_what_has_begun_and_is_held_by_no_process_is_stopped(done: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "out"))
    ledger = Ledger(folder)
    ledger.set_status(next(iter(ledger.arms())), state="running")
    assert sorted(view.state for view in look(folder)) == ["done", "stopped"]
    assert all(view.left is None or view.state == "running" for view in look(folder))
    assert status_table(status(folder)).endswith(
        "2 arms: 1 done, 1 stopped; the same `paretune run` goes on from there"
    )
    with Leases(folder) as leases:
        assert leases.take(ledger.arms())
        assert sorted(arm.state for arm in status(folder)) == ["done", "running"]


def test_sparkline() -> None:
    assert sparkline((3.0, 2.0, 1.0, 0.0), 4) == "█▆▃▁"
    assert sparkline((1.0, 1.0), 8) == "▁▁"
    assert sparkline((), 8) == ""


@pytest.mark.parametrize("width", [40, 67, 68, 69, 80, 90, 100, 200])
def test_a_narrow_terminal_gets_fewer_columns_but_whole(done: Path, width: int) -> None:
    from rich.console import Console

    console = Console(width=width, file=StringIO())
    console.print(picture(done, look(done), width))
    lines = console.file.getvalue().splitlines()[1:]
    assert "…" not in "".join(lines)
    assert [line.split()[:5] for line in lines[1:3]] == [
        ["lora", "r2", "lr", "0.005", "done"],
        ["lora", "r4", "lr", "0.005", "done"],
    ]
    assert lines[0].split()[:2] == ["arm", "state"]
    assert width < 200 or "memory" in lines[0]
    assert width > 40 or "memory" not in lines[0]


@pytest.mark.slow
def test_watch_on_a_running_study_in_a_real_terminal(tmp_path: Path) -> None:
    """In tmux: what a user sees while another process trains, and that it ends by itself."""
    if subprocess.run(["which", "tmux"], capture_output=True).returncode:
        pytest.skip("tmux is not installed")
    (tmp_path / "study.yaml").write_text(study_text(tmp_path, arms=ARMS, at="1ep", every=0.2))
    command = [sys.executable, "-m", "paretune"]
    trains = subprocess.Popen(
        [*command, "run", "study.yaml", "--out", "out", "--no-report"], cwd=tmp_path
    )
    # A server of its own, and the signs of the curves also where the locale has none
    tmux = ["tmux", "-u", "-S", str(tmp_path / "tmux")]
    try:
        # It stands still until it is watched, however slowly the watch starts
        halt_once_measured(trains, tmp_path / "out")
        plain = ["env", "-u", "COLUMNS", "-u", "LINES"]
        shown = " ".join(
            [*plain, *command, "watch", "out", "--every", "0.5", "&&", "echo", "ended-$?"]
        )
        subprocess.run(
            [*tmux, "new-session", "-d", "-x", "150", "-y", "20", "-c", str(tmp_path), shown
             + "; sleep 60"], check=True,
        )  # fmt: skip
        seen: list[str] = []
        deadline = time.monotonic() + PATIENCE
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
        trains.wait(timeout=PATIENCE)
    running = [picture for picture in seen if RUNNING.search(picture)]
    assert running, seen[-1:]
    whole = re.compile(r"running\s+\d+%.*\d\.\d{3}.*[▁▂▃▄▅▆▇█].*\d+\s+[\d.]+ (s|min).*[MG]B")
    assert any(whole.search(picture) for picture in running), running[-1]
    assert any("of training left" in picture for picture in running)
    assert "2 of 2 arms have ended" in seen[-1]


def halt_once_measured(trains: subprocess.Popen[bytes], folder: Path) -> None:
    """Stop a process once all arms have trained, with steps to go, and it has said how fast.

    It is looked at while it stands still: it cannot end between the look and the stop.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert trains.poll() is None
        if list(folder.glob("arms/*/train.jsonl")):
            trains.send_signal(signal.SIGSTOP)
            _, status = os.waitpid(trains.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), "it ended before it was looked at"
            if all(view.left and view.memory for view in look(folder)):
                return
            trains.send_signal(signal.SIGCONT)
        time.sleep(0.05)
    raise AssertionError("nothing was measured")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where W&B writes what it would send; its own process ends with the test."""
    wandb = pytest.importorskip("wandb")
    settings = {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}
    settings["_SERVICE_WAIT"] = str(PATIENCE)  # seconds until its own process runs
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield tmp_path
    wandb.teardown()


def test_tracking_sends_what_the_ledger_holds(done: Path, offline: Path) -> None:
    assert track(done) == 2
    wait_until_written(offline, runs=2)
    assert losses_sent(offline) == losses_kept(done)


@pytest.mark.slow
def test_tracking_follows_a_study_that_runs(tmp_path: Path, offline: Path) -> None:
    """Beside the process that trains; curves of both arms arrive while none has ended."""
    (tmp_path / "study.yaml").write_text(study_text(tmp_path, arms=ARMS, at="60ba", every=0.2))
    command = [sys.executable, "-m", "paretune"]
    trains = subprocess.Popen(
        [*command, "run", "study.yaml", "--out", "out", "--no-report"], cwd=tmp_path
    )
    try:
        halt_once_measured(trains, tmp_path / "out")
        sends = subprocess.Popen(
            [*command, "track", "out", "--follow", "--every", "0.2"],
            cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not losses_sent(offline):
            assert sends.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        early = len(losses_sent(offline))
    finally:
        trains.send_signal(signal.SIGCONT)
        assert trains.wait(timeout=PATIENCE) == 0
    assert sends.communicate(timeout=PATIENCE)[0] == "2 arms are sent\n"
    wait_until_written(offline, runs=2)
    assert losses_sent(offline) == losses_kept(tmp_path / "out")
    assert 0 < early < len(losses_kept(tmp_path / "out")) == 120


def wait_until_written(folder: Path, *, runs: int) -> None:
    """W&B's own process writes the last records shortly after a run's finish has returned."""
    deadline = time.monotonic() + PATIENCE
    while [record.HasField("exit") for record in sent(folder)].count(True) < runs:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def losses_sent(folder: Path) -> list[float]:
    """Read back from the files that W&B would send."""
    found: list[dict[str, Any]] = []
    for record in sent(folder):
        if record.HasField("history"):
            items = record.history.item
            found.append({item.key or item.nested_key[0]: item.value_json for item in items})
    return sorted(float(row["main/loss"]) for row in found if "main/loss" in row)


def sent(folder: Path) -> Iterator[Any]:
    """The records of all runs, of whatever kind."""
    from wandb.proto import wandb_internal_pb2

    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        for content in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            yield record


def losses_kept(folder: Path) -> list[float]:
    ledger = Ledger(folder)
    return sorted(row["loss"] for arm in ledger.arms() for row in ledger.curve(arm))


def test_a_tracker_that_refuses_is_quoted(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("No API key.\nMore of it.")

    tracker = ModuleType("wandb")
    tracker.init = refuse
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    with pytest.raises(UserError, match=r"^wandb does not take the study \(No API key\); log in"):
        track(done)


def test_tracking_with_a_package_whose_runs_have_no_summary(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trackio's: a run is what init returns, and has log and finish."""
    seen: dict[str, list[dict[str, Any]]] = {}

    class Run:
        def __init__(self, name: str) -> None:
            self.rows = seen.setdefault(name, [])

        def log(self, values: dict[str, Any]) -> None:
            self.rows.append(values)

        def finish(self) -> None:
            self.rows.append({})

    def init(project: str, name: str, group: str, config: dict[str, Any]) -> Run:
        return Run(name)

    tracker = ModuleType("trackio")
    monkeypatch.setattr(tracker, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    assert track(done, module="trackio") == 2
    ledger = Ledger(done)
    for arm_id, arm in ledger.arms().items():
        *rows, last = seen[arm.label]
        assert last == {}
        scores = {(row["metric"], row["tokens"], row["value"]) for row in ledger.scores(arm_id)}
        assert scores == {
            (metric, row["tokens"], row[metric])
            for row in rows
            for metric in row.keys() - {"tokens"}
            if "step" not in row
        }
        assert len(rows) == len(scores) + len(ledger.curve(arm_id))


def records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of seven bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if at + 7 + length > len(content):  # it is being written
            return
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""
