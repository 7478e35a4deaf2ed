"""Every kind of fault: what is done to a running or resting study before it is run again."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_lab.trial import Trial

KINDS: dict[str, Callable[[Trial], None]] = {}
WORDS: dict[str, str] = {}


def kind(name: str, words: str) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Register a fault under ``name``, with a description for the table."""

    def register(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
        KINDS[name], WORDS[name] = function, words
        return function

    return register


@kind("kill", "SIGKILL, one to three times")
def kill(trial: Trial) -> None:
    """Somewhere in a run, and again in the one that goes on."""
    for _ in range(trial.chance.randint(1, 3)):
        child = trial.run()
        trial.sleep()
        child.send(signal.SIGKILL)
        trial.expect(child, -signal.SIGKILL, 0)


@kind("term", "SIGTERM: state saved, exit code 75")
def term(trial: Trial) -> None:
    """Within the grace period."""
    child = trial.run()
    trial.sleep()
    child.send(signal.SIGTERM)
    # Before the handlers are set up, as while Python starts, a signal ends the process
    trial.expect(child, 75, 0, -signal.SIGTERM)


@kind("interrupt", "Ctrl-C, exit code 130")
def interrupt(trial: Trial) -> None:
    """Once; the step ends and the state is saved."""
    child = trial.run()
    trial.sleep()
    child.send(signal.SIGINT)
    trial.expect(child, 130, 0)


@kind("host memory", "an allocation of the process fails (RLIMIT_AS lowered while it runs)")
def host_memory(trial: Trial) -> None:
    """The limit is about what the process has mapped at that moment, or less."""
    child = trial.run()
    trial.sleep()
    if child.running():
        pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + trial.chance.randint(-64, 2) * 2**20
        resource.prlimit(child.pid, resource.RLIMIT_AS, (limit, limit))
    # A library may abort where it cannot allocate: then it is a kill
    trial.expect(child, 74, 0, -signal.SIGABRT, -signal.SIGSEGV)


@kind("device memory", "the device refuses memory at a random step (simulated: there is no GPU)")
def device_memory(trial: Trial) -> None:
    """A cohort is split and goes on; a single arm ends with one message."""
    at = trial.chance.randint(1, 25)

    def before() -> None:
        import torch

        from paretune.train.trainer import Trainer

        step, count = Trainer.step, [0]

        def refuse(self: Any, *args: Any) -> None:
            count[0] += 1
            if count[0] == at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            step(self, *args)

        Trainer.step = refuse  # type: ignore[method-assign, assignment]

    trial.expect(trial.run(before=before), 74, 0)


@kind("disk full", "a real file system (tmpfs) of too few bytes; enlarged afterwards")
def disk_full(trial: Trial) -> None:
    """Full anywhere between the first file and the last."""
    with trial.mounted("tmpfs", f"size={trial.chance.randint(64, trial.bytes // 1024)}k"):
        trial.expect(trial.run(), 74, 0)
        trial.shell("mount", "-o", "remount,size=512m", str(trial.out))
        trial.finish()


@kind("read-only", "the file system turns read-only while the study runs (remounted)")
def read_only(trial: Trial) -> None:
    """Turned back afterwards."""
    with trial.mounted("tmpfs", "size=512m"):
        child = trial.run()
        trial.sleep()
        deadline = time.monotonic() + 20
        while child.running() and time.monotonic() < deadline:
            done = subprocess.run(
                ["mount", "-o", "remount,ro", str(trial.out)], capture_output=True, check=False
            )
            if done.returncode == 0:
                break  # otherwise a file is open for writing just now
        trial.expect(child, 74, 0)
        trial.shell("mount", "-o", "remount,rw", str(trial.out))
        trial.finish()


@kind("slow disk", "a real file system (ext4) that stands still for up to a second, repeatedly")
def slow_disk(trial: Trial) -> None:
    """Frozen with fsfreeze."""
    image = trial.folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 * 2**20)
    trial.shell("mkfs.ext4", "-q", str(image))
    with trial.mounted("loop", str(image)):
        child = trial.run()
        for _ in range(3):
            trial.sleep(0.4)
            if not child.running():
                break
            trial.shell("fsfreeze", "-f", str(trial.out))
            try:
                time.sleep(trial.chance.uniform(0.1, 1.0))
            finally:
                trial.shell("fsfreeze", "-u", str(trial.out))
        trial.expect(child, 0)
        trial.finish()


@kind("damaged file", "a random file of a killed or ended study: bit flipped, torn, zeroed, gone")
def damaged_file(trial: Trial) -> None:
    """Any file in the folder but the leases, which are the next kinds' matter."""
    child = trial.run()
    if trial.chance.random() < 0.7:
        trial.sleep()
        child.send(signal.SIGKILL)
    trial.expect(child, -signal.SIGKILL, 0)
    files = [p for p in sorted(trial.out.rglob("*")) if p.is_file() and ".runners" not in p.parts]
    for path in trial.chance.sample(files, k=min(len(files), trial.chance.randint(1, 2))):
        trial.note(damage(path, trial))


def damage(path: Path, trial: Trial) -> str:
    """Damage a file in one way; says how."""
    content = bytearray(path.read_bytes())
    how = trial.chance.choice(["flip", "tear", "zero", "gone"])
    if how == "gone" or not content:
        path.unlink()
    elif how == "tear":
        path.write_bytes(content[: trial.chance.randrange(len(content))])
    else:
        at = trial.chance.randrange(len(content))
        if how == "flip":
            content[at] ^= 1 << trial.chance.randrange(8)
        else:
            content[at : at + 512] = bytes(len(content[at : at + 512]))
        path.write_bytes(content)
    return f"{how} {path.relative_to(trial.out)}"


@kind("hub", "the hub drops, refuses or hangs in the middle of the stream (HTTP on the loopback)")
def hub(trial: Trial) -> None:
    """A few times, and it goes on at the row; or for good, until the next run."""
    mode = trial.chance.choice(["drop", "hang", "error"])
    times = trial.chance.choice([1, 2, 3, 99])
    plan = {"mode": mode, "times": times, "at": trial.chance.random()}
    trial.control.write_text(json.dumps(plan))
    trial.note(f"{mode} x{times}")
    child = trial.run(before=impatient)
    trial.expect(child, 0, 74) if times == 99 else trial.expect(child, 0)
    trial.control.write_text("")


def impatient() -> None:
    """Seconds instead of minutes, so that a trial does not take minutes."""
    from paretune.data import stream

    stream.PAUSES, stream.PATIENCE = (0.05, 0.1, 0.2, 0.2, 0.2), 1.0


@kind("data changed", "a row of the data changes between two runs: refused with the difference")
def data_changed(trial: Trial) -> None:
    """And put back."""
    _begin(trial)
    path = trial.folder / trial.chance.choice(["rows.jsonl", "heldout.jsonl"])
    _change(trial, path, path.read_text().replace("value_1 = ", "value_1 = 1", 1).encode())


@kind("base changed", "a bit of the base's weights changes between two runs: refused likewise")
def base_changed(trial: Trial) -> None:
    """And put back."""
    _begin(trial)
    path = trial.folder / "base" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[trial.chance.randrange(len(content) // 2, len(content))] ^= 1
    _change(trial, path, bytes(content))


def _begin(trial: Trial) -> None:
    child = trial.run()
    trial.until(lambda: (trial.out / "data" / "manifest.json").exists(), child)
    trial.sleep(0.5)
    child.send(signal.SIGKILL)
    trial.expect(child, -signal.SIGKILL, 0)


def _change(trial: Trial, path: Path, content: bytes) -> None:
    before = path.read_bytes()
    path.write_bytes(content)
    trial.refused(trial.run(), "changed since the study began")
    path.write_bytes(before)


@kind("clock", "the clock jumps by up to a year, forth and back, at every look (in the process)")
def clock(trial: Trial) -> None:
    """With a kill in between."""
    seed = trial.chance.random()

    def before() -> None:
        import random

        import paretune.runner.run
        import paretune.runner.study_folder

        chance, true = random.Random(seed), time.time
        time.time = lambda: true() + chance.uniform(-3e7, 3e7)

        class Jumping(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.fromtimestamp(time.time(), tz)

        paretune.runner.run.datetime = Jumping  # type: ignore[attr-defined, misc]
        paretune.runner.study_folder.datetime = Jumping  # type: ignore[attr-defined, misc]

    child = trial.run(before=before)
    trial.sleep()
    child.send(signal.SIGKILL)
    trial.expect(child, -signal.SIGKILL, 0)
    trial.expect(trial.run(before=before), 0)


@kind("two runners", "two or three processes on one folder, one of them killed")
def two_runners(trial: Trial) -> None:
    """They share the arms."""
    children = []
    for _ in range(trial.chance.randint(2, 3)):
        children.append(trial.run())
        time.sleep(trial.chance.uniform(0, 0.5))
    trial.sleep()
    children[0].send(signal.SIGKILL)
    trial.expect(children[0], -signal.SIGKILL, 0)
    for child in children[1:]:
        trial.expect(child, 0)


@kind("lost host", "a host is lost (its host name is another): its arms are taken over")
def lost_host(trial: Trial) -> None:
    """The other host can only see that the heartbeat has stopped."""
    far = trial.run(before=lambda: elsewhere("far"))
    trial.sleep()
    near = trial.run(before=lambda: elsewhere("near"))
    far.send(signal.SIGKILL)
    trial.expect(far, -signal.SIGKILL, 0)
    trial.expect(near, 0)


@kind("sleeper", "a process stands still until another host takes over, and then wakes up")
def sleeper(trial: Trial) -> None:
    """It must not write any more."""
    far = trial.run(before=lambda: elsewhere("far"))
    trial.sleep()
    asleep = far.send(signal.SIGSTOP)
    near = trial.run(before=lambda: elsewhere("near"))
    trial.sleep(2.5)
    if asleep:
        os.kill(far.pid, signal.SIGCONT)
    trial.expect(near, 0, 74)
    trial.expect(far, 0, 74)


def elsewhere(host: str) -> None:
    """Make this process one of another host, with a short time until the dead are known."""
    import paretune.runner.leases as leases

    ctypes.CDLL(None).unshare(0x04000000)  # CLONE_NEWUTS
    socket.sethostname(host)
    leases.STALE_SECONDS = 1.0


@kind("version", "the folder of a newer version is refused, of an older one brought up to date")
def version(trial: Trial) -> None:
    """Both on one folder: first the newer."""
    _begin(trial)
    kept = {name: (trial.out / name).read_bytes() for name in ("ledger.json", ".ledger.json")}
    _sealed(trial.out, format=3)
    trial.refused(trial.run(), "newer version")
    for name, content in kept.items():
        (trial.out / name).write_bytes(content)
    if trial.chance.random() < 0.5:
        for name in kept:
            (trial.out / name).unlink()
        for path in trial.out.glob("arms/*/*.json"):
            value = json.loads(path.read_text())
            value.pop("crc")
            path.write_text(json.dumps(value))
        cohorts = trial.out / "cohorts.json"
        if cohorts.exists():
            cohorts.write_text(json.dumps(json.loads(cohorts.read_text())["cohorts"]))
        shutil.rmtree(trial.out / "runs", ignore_errors=True)


def _sealed(out: Path, **changes: Any) -> None:
    from paretune.runner.ledger import Ledger

    Ledger(out).set_facts(**changes)
