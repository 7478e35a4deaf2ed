"""Who works on what in a shared folder: runners with a heartbeat, and leases that only one holds.

The folder is the only shared state, so any number of processes on any number of machines may work
on one study. A lease is a file that exactly one process can create (a hard link, which is atomic
on NFS too); it is never deleted while it is the newest of its name, only followed by the next
generation, so two processes cannot both take over from a third that died.

Nothing here compares clocks of two machines, or trusts one that may jump: whether a runner on
another machine lives is judged by whether its heartbeat's counter moves, over the observer's own
monotonic clock.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paretune.errors import Fault
from paretune.files import make_folder, write_json

FOLDER = ".runners"
# Seconds without a heartbeat after which a runner on another machine counts as dead
STALE_SECONDS = float(os.environ.get("PARETUNE_STALE_SECONDS", "60"))


class Lost(Fault):
    """Another runner has taken over: this process stood still for so long that it looked dead."""


@dataclass(frozen=True)
class Process:
    """A process such that a recycled process number, a reboot or a container is told apart."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> Process:
        """The calling process."""
        return cls(*_place(), os.getpid(), _start_time(os.getpid()) or "")

    @property
    def here(self) -> bool:
        """Whether it is one of this machine's processes, as far as this process can see."""
        return (self.host, self.boot, self.namespace) == _place()

    def alive(self) -> bool:
        """Whether a process of this machine still runs."""
        return _start_time(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Leases:
    """One runner's view of a study's folder; use as a context, which gives everything back.

    Attributes:
        name: of this runner, unique for all time.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        self.process = Process.this()
        stamp = secrets.token_hex(4)
        self.name = f"{self.process.host}-{self.process.pid}-{stamp}"
        self._folder = folder / FOLDER
        self._about = about or {}
        self._held: dict[str, int] = {}
        self._seen: dict[str, tuple[str, float]] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Leases:
        make_folder(self._folder)
        self._bury()
        self._beat(0)
        write_json(self._record(self.name), {**asdict(self.process), **self._about})
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # Without its record a runner holds nothing, so this frees every lease at once
        with suppress(OSError):
            self._record(self.name).unlink(missing_ok=True)
            self._record(self.name, "beat").unlink(missing_ok=True)

    def take(self, names: Iterable[str]) -> bool:
        """Take all of ``names``, or none where a living runner holds one of them."""
        taken: list[str] = []
        for name in sorted(names):
            if not self._take(name):
                self.release(taken)
                return False
            taken.append(name)
        return True

    def release(self, names: Iterable[str]) -> None:
        """Give leases back that this runner holds."""
        for name in names:
            generation = self._held.pop(name, None)
            if generation is not None:
                write_json(self._lease(name, generation), {"runner": None})

    @contextmanager
    def holding(self, *names: str) -> Iterator[None]:
        """Hold leases that have been taken; they are given back at the end."""
        try:
            yield
        finally:
            with suppress(OSError):  # a full disk: the runner's end frees them all the same
                self.release(names)

    def check(self) -> None:
        """Call before writing what a lease covers.

        Raises:
            Lost: another runner holds one of this runner's leases by now.
        """
        newest = self._newest()
        for name, generation in self._held.items():
            if newest.get(name, generation) > generation:
                raise Lost(
                    f"{self._folder.parent}: this process stood still for so long that another "
                    f"one took over ({name}); what was finished stays, and that one goes on"
                )

    def check_of(self, runner: str, names: Iterable[str]) -> None:
        """:meth:`check` for a process that works under another one's leases.

        Raises:
            Lost: they are not that runner's by now.
        """
        newest = self._newest()
        for name in names:
            held = self._read(name, newest.get(name, 0)) or {}
            if held.get("runner") != runner:
                raise Lost(
                    f"{self._folder.parent}: another process took over ({name}); what was finished "
                    "stays, and that one goes on"
                )

    def holder(self, name: str) -> dict[str, Any] | None:
        """The living runner that holds ``name``, or None."""
        generation = self._newest().get(name)
        return None if generation is None else self._living(self._read(name, generation))

    def runners(self) -> list[dict[str, Any]]:
        """Every runner but this one that is not known to be dead."""
        names = [path.stem for path in self._folder.glob("*.runner")]
        found = [self._living({"runner": name}) for name in names if name != self.name]
        return [runner for runner in found if runner is not None]

    def _take(self, name: str) -> bool:
        while True:
            generation = self._newest().get(name, 0)
            if generation and self._living(self._read(name, generation)) is not None:
                return False
            if not self._create(name, generation + 1):
                continue  # another was faster; look who
            # A slower process may have found this generation's place free after it was cleared away
            if self._newest()[name] > generation + 1:
                self._lease(name, generation + 1).unlink(missing_ok=True)
                continue
            self._held[name] = generation + 1
            for old in range(max(1, generation - 8), generation + 1):
                self._lease(name, old).unlink(missing_ok=True)
            return True

    def _create(self, name: str, generation: int) -> bool:
        temporary = self._folder / f".{self.name}.{secrets.token_hex(4)}.tmp"
        temporary.write_text(json.dumps({"runner": self.name}))
        try:
            os.link(temporary, self._lease(name, generation))
        except FileExistsError:
            return False
        except PermissionError:  # a file system without hard links
            return _create(self._lease(name, generation), temporary.read_bytes())
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _bury(self) -> None:
        """Clear away the records of runners of this machine that have died."""
        for path in self._folder.glob("*.runner"):
            record = _read(path)
            process = _process(record)
            if process is not None and process.here and not process.alive():
                path.with_suffix(".beat").unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _newest(self) -> dict[str, int]:
        """The highest generation of every lease in the folder."""
        newest: dict[str, int] = {}
        for entry in os.listdir(self._folder):
            name, _, generation = entry.removesuffix(".lease").rpartition(".")
            if entry.endswith(".lease") and generation.isdigit():
                newest[name] = max(newest.get(name, 0), int(generation))
        return newest

    def _read(self, name: str, generation: int) -> dict[str, Any] | None:
        return _read(self._lease(name, generation))

    def _living(self, lease: dict[str, Any] | None) -> dict[str, Any] | None:
        """The record of a lease's runner if it may be alive.

        A lease or record that cannot be read belongs to nobody: both are written whole.
        """
        name = (lease or {}).get("runner")
        record = _read(self._record(name)) if name else None
        process = _process(record)
        if process is None:
            return None
        if process.here:
            return record if process.alive() else None
        beat, now = _text(self._record(str(name), "beat")), time.monotonic()
        seen, since = self._seen.get(str(name), ("", now))
        if beat != seen:
            seen, since = beat, now
        self._seen[str(name)] = (seen, since)
        return record if now - since < STALE_SECONDS else None

    def _keep_beating(self) -> None:
        count = 1
        while not self._over.wait(STALE_SECONDS / 8):
            # A full or slow disk: the others wait or take over; the next check() tells
            with suppress(OSError):
                self._beat(count)
            count += 1

    def _beat(self, count: int) -> None:
        self._record(self.name, "beat").write_text(f"{count}\n")

    def _record(self, runner: str, kind: str = "runner") -> Path:
        return self._folder / f"{runner}.{kind}"

    def _lease(self, name: str, generation: int) -> Path:
        return self._folder / f"{name}.{generation}.lease"


def _process(record: dict[str, Any] | None) -> Process | None:
    try:
        return Process(**{key: (record or {})[key] for key in Process.__annotations__})
    except KeyError:
        return None


def _create(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _place() -> tuple[str, str, str]:
    """Host name, boot and process namespace: together, where a process number means anything."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), _text(Path("/proc/sys/kernel/random/boot_id")).strip(), namespace


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None when there is none (or a zombie)."""
    fields = _text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(fields) > 19:
        return None if fields[0] in ("Z", "X") else fields[19]
    return None
