"""Rows of LoRA arms in one cohort, beside PEFT with one arm after another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claims import CARD, DEVICE, clear
from cohort_models import NAMES, lora, token_blocks
from cohort_peers import peft_loop
from cohort_profile import profile
from cohort_run import CLAIMS, agree, beside, ours, predicted, trainer_of
from measurements import row

Rows = Iterator[dict[str, Any]]


def cohort_row(
    title: str,
    name: str,
    ranks: Sequence[int],
    batch: int,
    length: int,
    goal: float,
    *,
    memory_goal: float | None = None,
    peer_steps: int = 6,
) -> Rows:
    """LoRA arms in one cohort, beside PEFT with one arm (its rate does not depend on how many)."""
    name = CLAIMS.shape(name)
    batch, length = (2, 32) if CLAIMS.tiny else (batch, length)
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder), name, 64 * batch, length)
        arms = [lora(rank, 1e-4 * (1 + i / 100)) for i, rank in enumerate(ranks)]
        trainer = trainer_of(arms, name, blocks, batch)
        start = {k: v.clone() for k, v in trainer.trainee.flats[0].tensors(0).items()}
        first = trainer.trainee.arms[0]
        clear()
        mine = ours(trainer, name)
        where = profile(trainer) if DEVICE.type == "cuda" else ""
        del trainer
        many = "PEFT, one arm after another" if len(ranks) > 1 else "PEFT"
        peers = []
        # Users of transformers' Trainer have the loop under autocast if they say bf16=True
        for autocast, way in ((False, "bf16 base as it is"), (True, "under autocast")):
            clear()
            settings: dict[str, Any] = {"rate": first.learning_rate, "autocast": autocast}
            settings |= {"warm": 3, "steps": peer_steps}
            peer = peft_loop(name, first.rank or 1, start, blocks, batch, **settings)
            print(f"  PEFT, {way}: losses differ by {agree(mine, peer, 1e-2):.1e}", flush=True)
            peers.append((f"{many}, {way}", peer, batch * length))
        clear()
        work = f"rank {ranks[0]}, {len(ranks)} x {batch} x {length}"
        tokens = len(ranks) * batch * length
        goals = {"goal": goal, "memory_goal": memory_goal}
        yield from beside(
            title, name, work, mine, tokens, peers, length=length, where=where, **goals
        )


@CLAIMS
def lora_7b() -> Rows:
    """One arm on long rows."""
    return cohort_row("LoRA, one arm", "7b", [16], 1, 4096, 2.0, memory_goal=0.65)


@CLAIMS
def lora_3b() -> Rows:
    """Sixteen arms on short rows."""
    return cohort_row("LoRA, 16 arms", "3b", [32] * 16, 4, 256, 8)


@CLAIMS
def lora_1b() -> Rows:
    """Twelve arms, one row each."""
    return cohort_row("LoRA, 12 arms", "1b", [16] * 12, 1, 512, 15)


@CLAIMS
def lora_01b() -> Rows:
    """Twelve arms of a small base."""
    return cohort_row("LoRA, 12 arms", "0.1b", [16] * 12, 8, 512, 12)


@CLAIMS
def mixed_ranks() -> Rows:
    """Ranks 4 to 256 in one cohort beside twelve arms of their mean rank."""
    name = CLAIMS.shape("3b")
    batch, length = (2, 32) if CLAIMS.tiny else (4, 256)
    ranks = (2, 4, 8, 16) if CLAIMS.tiny else (4, 16, 64, 256)
    mean = sum(ranks) // len(ranks)
    mixed_arms = [lora(rank, rate) for rank in ranks for rate in (1e-4, 2e-4, 3e-4)]
    uniform_arms = [lora(mean, 1e-4 * (1 + i / 100)) for i in range(12)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder), name, 64 * batch, length)
        for arms in (mixed_arms, uniform_arms):
            trainer = trainer_of(arms, name, blocks, batch)
            clear()
            found.append(ours(trainer, name))
            del trainer
            clear()
    mixed, uniform = found
    title = f"ranks {', '.join(map(str, ranks))} x 3 rates in one cohort"
    work = f"{NAMES[name]}, 12 x {batch} x {length}"
    tokens = 12 * batch * length
    peer = f"twelve arms of the mean rank, {mean}"
    yield row(
        title,
        work,
        "tokens/s in all",
        our_value=tokens / mixed.seconds,
        peer=peer,
        peer_value=tokens / uniform.seconds,
        ratio=uniform.seconds / mixed.seconds,
        goal="at least 0.85 (at most 15% slower)",
        device=CARD,
    )
    yield row(
        f"{title}: memory",
        work,
        "GiB at the peak",
        our_value=mixed.memory / 2**30,
        peer=peer,
        peer_value=uniform.memory / 2**30,
        ratio=uniform.memory / mixed.memory if mixed.memory else None,
        goal="stated, not fixed",
        device=CARD,
    )
    yield from predicted(title, work, mixed)
    yield from predicted(peer, work, uniform)
