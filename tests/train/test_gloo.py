"""A process of torchrun ends in order, also where gloo's threads are late."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("gloo_program.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="threads are starved as Linux can")
def test_no_thread_of_gloo_holds_a_tensor_beyond_the_process_group() -> None:
    """One that did would abort the process when the interpreter ends under it.

    Without the wait, five of six such processes held one.
    """
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env={**os.environ, **alone, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 0
