"""The threads of gloo, which must be at rest before the interpreter ends.

After an operation a thread of gloo gives back the operation's tensors, and for that it waits for
the interpreter's lock. One that asks for it while the interpreter is ending is ended by Python
inside a destructor, and C++ then aborts the process ("terminate called without an active
exception"; also pytorch/pytorch issue 190489). ``destroy_process_group`` does not join these
threads as long as a mesh or a sharded model knows the group.
"""

from __future__ import annotations

import time
from pathlib import Path

_TASKS = Path("/proc/self/task")
# More than the 5 ms after which a thread that waits for the interpreter's lock asks again
_PAUSE = 0.02


def rest(seconds: float = 30.0) -> None:
    """Wait until no thread of gloo has work left, at most so long.

    At rest is a thread that slept all through a pause in which this one left the lock to others.
    Where the system does not tell (it is not Linux), this is a pause alone.
    """
    deadline = time.monotonic() + seconds
    before = _threads()
    while time.monotonic() < deadline:
        time.sleep(_PAUSE)
        now = _threads()
        if now == before and all("(sleeping)" in thread for thread in now):
            return
        before = now


def _threads() -> list[str]:
    """State and number of context switches of each."""
    found = []
    for task in sorted(_TASKS.glob("*/status")):
        lines = task.read_text().splitlines()
        if lines[0].endswith("pt_gloo_runloop"):
            kept = ("State", "voluntary", "nonvoluntary")
            found.append(" ".join(line for line in lines if line.startswith(kept)))
    return found
