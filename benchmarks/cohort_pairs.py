"""Rows of arms on instruction pairs of real lengths: speed beside TRL, and losses beside alone."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from claims import CARD, DEVICE, clear
from cohort_instruct import packed, pairs, tokenizer, trl_loop
from cohort_labels import WARM
from cohort_models import NAMES, lora
from cohort_peers import Timing
from cohort_profile import profile
from cohort_run import CLAIMS, beside, ours, trainer_of
from measurements import row

from paretune.data.rows import Pair
from paretune.model.regions import Compiler
from paretune.study.arms import ArmConfig
from paretune.train.schedule import Resolved

Rows = Iterator[dict[str, Any]]
GOALS = {12: 8.0, 1: 1.7}


@CLAIMS
def instruct() -> Rows:
    """Twelve arms, and one, on pairs; four rows of each in a step."""
    return on_pairs(2 if CLAIMS.tiny else 4)


@CLAIMS
def instruct_small() -> Rows:
    """The same with one row of each in a step: as many tokens as in lora_3b."""
    return on_pairs(1)


def on_pairs(batch: int) -> Rows:
    """Twelve arms, and one, on packed pairs, beside TRL's ways with one arm."""
    name, length = CLAIMS.shape("3b"), 128 if CLAIMS.tiny else 1024
    tokens = tokenizer(CLAIMS.shared / "models" / "english-30m")
    chosen = pairs(CLAIMS.shared / "data" / "instruct", 200 if CLAIMS.tiny else 6000)
    own: dict[int, tuple[Timing, str]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        blocks, fill = packed(folder / "rows", chosen, tokens, length)
        # Ours first: TRL leaves Liger's kernels in all Llama models of the process
        for count in GOALS:
            clear()
            arms = [lora(16, 1e-4 * (1 + i / 100)) for i in range(count)]
            trainer = trainer_of(arms, name, blocks, batch)
            mine = ours(trainer, name, warm=WARM)
            own[count] = mine, profile(trainer) if DEVICE.type == "cuda" else ""
            del trainer
        theirs = trl(name, chosen, tokens, folder / "trl", batch=batch, length=length)
    clear()
    peers = [(f"TRL SFTTrainer with PEFT and Liger, {way}", *found) for way, found in theirs]
    # Other batches than ours, from the same weights: the first losses are close
    first = {way: timing.losses[0] for way, (timing, _) in theirs}
    for count, goal in GOALS.items():
        mine, where = own[count]
        print(f"  first losses {mine.losses[0]:.3f} and {first}", flush=True)
        far = [way for way, loss in first.items() if abs(mine.losses[0] / loss - 1) >= 0.02]
        assert not far, f"not the same loss on other batches: {far}"
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


def trl(
    name: str, chosen: list[Pair], tokens: Any, folder: Path, *, batch: int, length: int
) -> list[tuple[str, tuple[Timing, float]]]:
    """Both of TRL's ways with one arm, each with the tokens of a step."""
    warm, steps = (2, 2) if CLAIMS.tiny else (3, 24 // batch)
    # Of padded batches the largest that fits: the first one holds the longest pairs
    ways = {"packed rows (bfd)": (True, [batch])}
    ways |= {"padded, grouped by length": (False, [6 * batch, 3 * batch])}
    settings: dict[str, Any] = {"length": length, "rank": 16, "rate": 1e-4}
    settings |= {"folder": folder, "warm": warm, "steps": steps}
    done = []
    for way, (packing, sizes) in ways.items():
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
                done.append((f"{way}, {size} a batch", found))
                print(f"  TRL, {way}: {found[1] / found[0].seconds:,.0f} tokens/s", flush=True)
                break
    return done


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

        def losses(
            some: list[ArmConfig], compiler: Compiler | None = None, rows: int = batch
        ) -> dict[str, torch.Tensor]:
            trainer = trainer_of(some, name, blocks, batch, compiler=compiler)
            trainer.trainee.rows = rows
            for t in range(steps):
                trainer.step(t, always * len(some))
            found = torch.stack(trainer._log.loss_K).double().cpu()
            return {a.id: found[:, i] for i, a in enumerate(trainer.trainee.arms)}

        together = losses(arms)
        two, three, squares, own_squares = [], [], 0.0, 0.0
        for arm in arms:
            cohort = together[arm.id]
            eager = losses([arm], Compiler("none"))[arm.id]
            compiled = losses([arm])[arm.id]
            halves = losses([arm], rows=batch // 2)[arm.id]
            two.append(apart(cohort, eager, compiled))
            three.append(apart(cohort, eager, compiled, halves))
            print(f"  {arm.label}: {two[-1]:.2f} of two runs' spread, {three[-1]:.2f} of three's")
            squares += float((cohort - compiled).square().mean())
            own_squares += float((eager - compiled).square().mean())
    work = f"{NAMES[name]}, {len(arms)} arms on instruction pairs, {steps} steps"
    ways = ("eager, compiled", two), ("eager, compiled, compiled in two pieces", three)
    for runs, ratios in ways:
        yield row(
            f"losses in a cohort beside alone, bf16: arms within the spread of runs ({runs})",
            f"{work}; largest distance of each arm: {', '.join(f'{r:.2f}' for r in ratios)}",
            f"arms of {len(arms)}",
            our_value=sum(ratio <= 1 for ratio in ratios),
            goal="all",
            device=CARD,
        )
    yield row(
        "losses in a cohort beside alone, bf16: all arms and steps, root of the mean square",
        work,
        "of the distance between two solo runs (eager, compiled)",
        our_value=(squares / own_squares) ** 0.5 if own_squares else float(squares > 0),
        goal="at most 1",
        device=CARD,
    )


def apart(found: torch.Tensor, *alone: torch.Tensor) -> float:
    """Largest distance of losses from the nearest of solo runs, as a share of their own largest."""
    spread = max(float((a - b).abs().max()) for a, b in combinations(alone, 2))
    nearest = min(float((found - each).abs().max()) for each in alone)
    return nearest / spread if spread else float(nearest > 0)
