"""Bytes and seconds in words."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes in the unit that reads best: ``1.5 GB`` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # else its three digits are 1000, which is one of the next unit
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds as ``45 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
