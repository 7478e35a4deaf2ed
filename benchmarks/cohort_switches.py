"""Rows of the compiled blocks without what is on by default, each beside the default."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claims import CARD, DEVICE, clear
from cohort_models import NAMES, full, lora, token_blocks
from cohort_peers import Timing
from cohort_run import CLAIMS, GIB, agree, ours, trainer_of
from measurements import row

from paretune.model.regions import Compiler
from paretune.study.arms import ArmConfig

Rows = Iterator[dict[str, Any]]
BACKEND = "inductor" if DEVICE.type == "cuda" else "none"
SWITCHES = {
    "without merged products": Compiler(BACKEND, merge=False),
    "without recomputed activations": Compiler(BACKEND, recompute=False),
    "without both": Compiler(BACKEND, merge=False, recompute=False),
}


def switched(title: str, name: str, arms: Sequence[ArmConfig], batch: int, length: int) -> Rows:
    """Steps by default, and without each switch: tokens a second and memory."""
    name = CLAIMS.shape(name)
    batch, length = (2, 32) if CLAIMS.tiny else (batch, length)
    work = f"{NAMES[name]}, {len(arms)} x {batch} x {length}"
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder), name, 64 * batch, length)

        def run(compiler: Compiler | None) -> Timing:
            clear()
            return ours(trainer_of(arms, name, blocks, batch, compiler=compiler), name)

        plain = run(None)
        tokens = len(arms) * batch * length
        for words, compiler in SWITCHES.items():
            try:
                timing = run(compiler)
                print(f"  {words}: losses differ by {agree(timing, plain, 1e-2):.1e}", flush=True)
            except Exception:  # a switch that fails is no reason to leave out the next
                traceback.print_exc()
                continue
            common: dict[str, Any] = {"peer": "the default", "goal": "stated, not fixed"}
            yield row(
                f"{title}, {words}",
                work,
                "tokens/s in all",
                our_value=tokens / timing.seconds,
                peer_value=tokens / plain.seconds,
                ratio=plain.seconds / timing.seconds,
                device=CARD,
                **common,
            )
            yield row(
                f"{title}, {words}: memory",
                work,
                "GiB at the peak",
                our_value=timing.memory / GIB,
                peer_value=plain.memory / GIB,
                ratio=plain.memory / timing.memory if timing.memory else None,
                device=CARD,
                **common,
            )


@CLAIMS
def switches_7b() -> Rows:
    """One arm of 7B, without merged products, recomputed activations, and both."""
    return switched("LoRA, one arm", "7b", [lora(16)], 1, 4096)


@CLAIMS
def switches_3b() -> Rows:
    """Sixteen arms of 3B, without the same."""
    arms = [lora(32, 1e-4 * (1 + i / 100)) for i in range(16)]
    return switched("LoRA, 16 arms", "3b", arms, 4, 256)


@CLAIMS
def switches_full() -> Rows:
    """Full finetuning of 3B, without the same."""
    return switched("full finetuning", "3b", [full()], 1, 4096)
