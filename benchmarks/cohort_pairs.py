"""Rows of arms on instruction pairs of real lengths: speed beside TRL, and losses beside alone."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from claims import CARD, DEVICE, clear
from cohort_instruct import packed, pairs, tokenizer, trl_loop
from cohort_models import NAMES, lora
from cohort_peers import Timing
from cohort_profile import profile
from cohort_run import CLAIMS, beside, ours, trainer_of
from measurements import row

from paretune.model.regions import Compiler
from paretune.study.arms import ArmConfig
from paretune.train.schedule import Resolved

Rows = Iterator[dict[str, Any]]
TRL: dict[str, tuple[Timing, float]] = {}
"""TRL's ways that were timed, with the tokens of a step: of one arm, so once is enough."""


def instruct_row(count: int, goal: float) -> Rows:
    """Arms on packed pairs, beside both of TRL's ways."""
    name = CLAIMS.shape("3b")
    batch, length, warm, steps = (2, 128, 2, 2) if CLAIMS.tiny else (4, 1024, 3, 6)
    tokens = tokenizer(CLAIMS.shared / "models" / "english-30m")
    chosen = pairs(CLAIMS.shared / "data" / "instruct", 200 if CLAIMS.tiny else 6000)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        blocks, fill = packed(folder / "rows", chosen, tokens, length)
        arms = [lora(16, 1e-4 * (1 + i / 100)) for i in range(count)]
        trainer = trainer_of(arms, name, blocks, batch)
        clear()
        mine = ours(trainer, name)
        where = profile(trainer) if DEVICE.type == "cuda" else ""
        del trainer
        # Of padded batches the largest that fits: the first one holds the longest pairs
        ways = {"packed rows (bfd)": (True, [batch])}
        ways |= {"padded, grouped by length": (False, [12 * batch, 6 * batch, 3 * batch])}
        for way, (packing, sizes) in ways.items() if not TRL else ():
            settings: dict[str, Any] = {"length": length, "rank": 16, "rate": 1e-4}
            settings |= {"folder": folder / "trl", "warm": warm, "steps": steps}
            for size in sizes:
                clear()
                try:
                    found = trl_loop(name, chosen, tokens, packing=packing, batch=size, **settings)
                except torch.OutOfMemoryError:
                    print(f"  TRL, {way}: {size} rows do not fit", flush=True)
                except Exception:  # the other way is the peer then
                    traceback.print_exc()
                    break
                else:
                    timing, peer_tokens = TRL[f"{way}, {size} a batch"] = found
                    print(f"  TRL, {way}: {peer_tokens / timing.seconds:,.0f} tokens/s", flush=True)
                    break
    clear()
    # Other batches than ours, from the same weights: the first losses are close
    first = {way: timing.losses[0] for way, (timing, _) in TRL.items()}
    print(f"  first losses {mine.losses[0]:.3f} and {first}", flush=True)
    far = [way for way, loss in first.items() if abs(mine.losses[0] / loss - 1) >= 0.02]
    assert not far, f"not the same loss on other batches: {far}"
    peers = [
        (f"TRL SFTTrainer with PEFT and Liger, {way}", timing, peer_tokens)
        for way, (timing, peer_tokens) in TRL.items()
    ]
    yield from beside(
        f"LoRA on instruction pairs, {count} arm{'s' if count > 1 else ''}",
        name,
        f"rank 16, {count} x {batch} x {length}; {fill:.0%} of it text, and text tokens count",
        mine,
        int(count * batch * length * fill),
        peers,
        goal=goal,
        length=length,
        where=where,
    )


@CLAIMS
def instruct_12() -> Rows:
    """Twelve arms on pairs."""
    return instruct_row(12, 8)


@CLAIMS
def instruct_1() -> Rows:
    """One arm on pairs."""
    return instruct_row(1, 1.7)


@CLAIMS
def rounding() -> Rows:
    """Losses of arms in a cohort, beside the same arms alone, compiled and eager, on real text."""
    name = CLAIMS.shape("0.1b")
    batch, length, steps = (2, 64, 4) if CLAIMS.tiny else (4, 512, 30)
    arms = [lora(16, rate) for rate in (1e-4, 3e-4, 1e-3, 3e-3)]
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        tokens = tokenizer(CLAIMS.shared / "models" / "english-30m")
        instruct = CLAIMS.shared / "data" / "instruct"
        chosen = pairs(instruct, 400 if CLAIMS.tiny else 4000)
        blocks, _ = packed(Path(folder), chosen, tokens, length)

        def losses(some: list[ArmConfig], compiler: Compiler | None) -> dict[str, torch.Tensor]:
            trainer = trainer_of(some, name, blocks, batch, compiler=compiler)
            for t in range(steps):
                trainer.step(t, always * len(some))
            found = torch.stack(trainer._log.loss_K).double().cpu()
            return {a.id: found[:, i] for i, a in enumerate(trainer.trainee.arms)}

        together = losses(arms, None)
        worst = 0.0
        for arm in arms:
            compiled = losses([arm], None)[arm.id]
            eager = losses([arm], Compiler("none"))[arm.id]
            spread = float((compiled - eager).abs().max())
            apart = min(float((together[arm.id] - solo).abs().max()) for solo in (compiled, eager))
            worst = max(worst, apart / spread if spread else float(apart > 0))
            print(f"  {arm.label}: in cohort {apart:.2e}, eager against compiled {spread:.2e}")
    yield row(
        "losses in a cohort beside alone, bf16",
        f"{NAMES[name]}, 4 arms on instruction pairs, {steps} steps",
        "of the distance between two solo runs (eager, compiled), at most",
        our_value=worst,
        goal="at most 1",
        device=CARD,
    )
