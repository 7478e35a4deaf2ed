"""How many cores there are to work on."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may use; those of the machine where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
