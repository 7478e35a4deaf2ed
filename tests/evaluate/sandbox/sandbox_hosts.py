"""A host for hostile programs to attack, and what must not be left of them on it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hostile_programs import SECRET


@dataclass
class Host:
    """Things worth attacking, and the words that stand for them in the programs."""

    folder: Path
    words: dict[str, str]
    victim: subprocess.Popen[bytes]

    def intact(self) -> None:
        """Assert that nothing was changed, ended, or left behind."""
        assert self.folder.joinpath("scores.jsonl").read_text() == SECRET
        assert self.victim.poll() is None, "a process of the host was ended"
        marker = self.words["marker"]
        places = {self.folder, Path.cwd(), Path.home(), Path("/"), Path("/dev"), Path("/usr/lib")}
        places |= {Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")}
        left = [str(path) for place in places for path in place.glob(f"{marker}*")]
        assert left == []
        assert marker not in socket.gethostname()


@contextlib.contextmanager
def attacked(folder: Path) -> Iterator[Host]:
    """A host with a ledger, a secret in its environment, a process, and open sockets."""
    marker = f"hostile-{uuid.uuid4().hex[:12]}"
    canary = folder / "scores.jsonl"
    canary.write_text(SECRET)
    for path in (folder, canary):
        path.chmod(0o777)
    victim = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(3600)"], env={"TOKEN": SECRET}
    )
    with contextlib.ExitStack() as stack:
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        path = folder / "socket"
        unix.bind(str(path))
        unix.listen()
        path.chmod(0o777)
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{marker}")
        abstract.listen()
        words = {
            "marker": marker,
            "canary": str(canary),
            "pid": str(victim.pid),
            "port": str(tcp.getsockname()[1]),
            "socket": str(path),
        }
        yield Host(folder, words, victim)


def below(process: int) -> set[int]:
    """Processes of which ``process`` is an ancestor."""
    parent = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parent[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    level = {process}
    while level:
        level = {child for child, above in parent.items() if above in level}
        found |= level
    return found


def unprivileged() -> int:
    """Processes of the user that programs run as when Paretune runs as root."""
    from paretune.evaluate.sandbox.confined.warden import UNPRIVILEGED

    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                count += os.stat(entry).st_uid == UNPRIVILEGED
    return count
