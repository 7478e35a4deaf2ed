"""Rows of full finetuning, beside transformers under autocast."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from claims import DEVICE, clear
from cohort_models import full, token_blocks
from cohort_peers import transformers_loop
from cohort_profile import profile
from cohort_run import CLAIMS, agree, beside, ours, trainer_of

Rows = Iterator[dict[str, Any]]


def full_row(title: str, name: str, goal: float | None, *, peer: bool) -> Rows:
    """One full arm, beside transformers where it fits."""
    name = CLAIMS.shape(name)
    batch, length = (2, 32) if CLAIMS.tiny else (1, 4096)
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder), name, 64 * batch, length)
        trainer = trainer_of([full()], name, blocks, batch)
        clear()
        mine = ours(trainer, name)
        where = profile(trainer) if DEVICE.type == "cuda" else ""
        del trainer
        clear()
        peers = []
        if peer:
            theirs = transformers_loop(name, blocks, batch, rate=1e-5, warm=3, steps=6)
            print(f"  losses differ by {agree(mine, theirs, 1e-2):.1e}", flush=True)
            peers = [("transformers, autocast, fused AdamW", theirs, batch * length)]
            clear()
        work = f"float32 masters, {batch} x {length}"
        more: dict[str, Any] = {"goal": goal, "length": length, "is_full": True, "where": where}
        yield from beside(title, name, work, mine, batch * length, peers, **more)


@CLAIMS
def full_3b() -> Rows:
    """Full finetuning where the peer fits."""
    return full_row("full finetuning", "3b", 1.4, peer=True)


@CLAIMS
def full_7b() -> Rows:
    """Full finetuning where a plain loop does not fit."""
    return full_row("full finetuning", "7b", None, peer=False)
