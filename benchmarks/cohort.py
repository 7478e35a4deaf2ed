"""Training speed and memory of cohorts on one GPU, each beside what users run today.

Usage: python benchmarks/cohort.py [--rows a,b] [--tiny] [--out FILE], on a machine with a GPU;
writes benchmarks/results/cohort.json. Models have real shapes and random weights. Each row runs the
peer and ours in turn in this process, on the same weights, tokens and initial adapters, and fails
if their losses differ. ``--tiny`` runs the same code at a toy shape on any device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cohort_instruct import packed, pairs, tokenizer, trl_loop
from cohort_models import (
    NAMES,
    clear,
    flops_per_token,
    full,
    loading,
    lora,
    shape_of,
    token_blocks,
)
from cohort_peers import Timing, peft_loop, timed, transformers_loop, wait
from cohort_profile import profile
from measurements import row, write
from torch._dynamo.utils import counters

from paretune.data.blocks import Blocks
from paretune.model.regions import Compiler
from paretune.model.trainee import Trainee, full_arm, lora_cohort
from paretune.study.arms import ArmConfig
from paretune.study.memory import Batch, cohort_bytes
from paretune.train.piece import PieceRunner
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CARD = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
LIMIT = 790e12
TINY = False
ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {}
DATA = Path(__file__).resolve().parents[2] / "shared"
PREDICTED: list[tuple[str, float, float]] = []
"""What was run, and its peak memory as predicted and as measured, in GiB."""


def claim(function: Callable[[], list[dict[str, Any]]]) -> Callable[[], list[dict[str, Any]]]:
    """Register a function that measures one row or a few."""
    ROWS[function.__name__] = function
    return function


def shape(name: str) -> str:
    """The shape, or the toy one in a dry run."""
    return "tiny" if TINY else name


def trainer_of(
    arms: Sequence[ArmConfig], name: str, blocks: Blocks, batch: int, *, backend: str | None = None
) -> Trainer:
    """A trainer whose pieces are as large as the memory model lets them be.

    Args:
        backend: ``none`` for eager code, without our attention or graphs.
    """
    with loading(name, DEVICE) as base:
        trainee: Trainee = (
            full_arm(base, arms[0], DEVICE)
            if arms[0].method == "full"
            else lora_cohort(base, arms, DEVICE, arms_per_pass=len(arms))
        )
    trainer = Trainer(trainee, blocks, batch)
    trainee.rows = batch
    trainer.fit_memory(shape_of(name))
    if backend:
        trainer.runner = PieceRunner(trainee, compiler=Compiler(backend))
        trainer._capacity = 0
    return trainer


def ours(trainer: Trainer, name: str, work: str, *, warm: int = 4, steps: int = 8) -> Timing:
    """Time whole steps of all arms; the losses are the first arm's.

    Raises:
        AssertionError: something was compiled after the second step.
    """
    arms = trainer.trainee.arms
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0) for _ in arms]
    started = time.perf_counter()
    trainer.step(0, always)
    wait(DEVICE)
    print(f"  first step {time.perf_counter() - started:.1f} s", flush=True)

    def step(t: int) -> torch.Tensor:
        trainer.step(t + 1, always)
        return trainer._log.loss_K[-1]

    step(0)
    compiled = counters["stats"]["unique_graphs"]
    done = timed(lambda t: step(t + 1)[0], DEVICE, warm - 2, steps)
    assert counters["stats"]["unique_graphs"] == compiled, "compiled again after the second step"
    trained = {arms[i].id: f.count for f in trainer.trainee.flats for i in f.arms}
    batch = Batch(trainer.batch_size, trainer.blocks.block_length)
    rows = trainer.trainee.rows
    expected = cohort_bytes(shape_of(name), arms, trained, batch, rows, "cuda") / 2**30
    PREDICTED.append((f"{name} {work}, {rows} rows", expected, done.memory / 2**30))
    print(f"  {rows} rows at a time; predicted {expected:.1f} GiB", flush=True)
    done.losses = [float(loss[0]) for loss in trainer._log.loss_K]
    return done


def agree(a: Timing, b: Timing, tolerance: float) -> float:
    """Largest relative difference of two runs' losses.

    Raises:
        AssertionError: it is above ``tolerance``.
    """
    pairs = zip(a.losses, b.losses, strict=False)
    worst = max(abs(x - y) / abs(y) for x, y in pairs)
    assert worst <= tolerance, f"losses differ by {worst:.2g}: {a.losses} and {b.losses}"
    return worst


def report(
    title: str,
    name: str,
    work: str,
    mine: Timing,
    tokens: int,
    *,
    goal: float | None,
    peer: Timing | None,
    peer_tokens: int = 0,
    peer_name: str | None = None,
    length: int,
    is_full: bool = False,
    memory_goal: float | None = None,
    where: str = "",
) -> list[dict[str, Any]]:
    """A row of tokens a second with its share of the limit, and one of memory."""
    rate = tokens / mine.seconds
    share = rate * flops_per_token(name, length, full=is_full) / LIMIT
    wanted = "stated, not fixed" if goal is None else f"at least {goal:g} times the peer"
    peer_rate = peer_tokens / peer.seconds if peer else None
    rows = [
        row(
            title,
            f"{NAMES[name]}, {work}",
            "tokens/s in all",
            our_value=rate,
            peer=peer_name,
            peer_value=peer_rate,
            ratio=rate / peer_rate if peer_rate else None,
            goal=wanted,
            device=CARD,
        )
    ]
    if where:
        rows.append(
            row(
                f"{title}: share of the limit",
                f"{NAMES[name]}, {work}; {6 if is_full else 4} N FLOPs a token at 790 TFLOP/s. "
                f"A step's time: {where}",
                "of the limit",
                our_value=share,
                goal="stated, not fixed",
                device=CARD,
            )
        )
    gib = mine.memory / 2**30
    peer_gib = peer.memory / 2**30 if peer else None
    rows.append(
        row(
            f"{title}: memory",
            f"{NAMES[name]}, {work}",
            "GiB at the peak",
            our_value=gib,
            peer=peer_name,
            peer_value=peer_gib,
            ratio=peer_gib / gib if peer_gib and gib else None,
            goal=f"at most {memory_goal:g} of the peer's" if memory_goal else "stated, not fixed",
            device=CARD,
        )
    )
    ratio = f"{rows[0]['ratio']:.2f}x" if peer_rate else ""
    print(
        f"  {rate:,.0f} tok/s, peer {peer_rate or 0:,.0f}, {ratio} {share:.0%} of limit; "
        f"{gib:.1f} GiB, peer {peer_gib or 0:.1f}; {where}",
        flush=True,
    )
    return rows


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
) -> list[dict[str, Any]]:
    """LoRA arms in one cohort, beside PEFT with one arm (its rate does not depend on how many)."""
    name = shape(name)
    batch, length = (2, 32) if TINY else (batch, length)
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder), name, 64 * batch, length)
        arms = [lora(rank, 1e-4 * (1 + i / 100)) for i, rank in enumerate(ranks)]
        trainer = trainer_of(arms, name, blocks, batch)
        start = {k: v.clone() for k, v in trainer.trainee.flats[0].tensors(0).items()}
        first = trainer.trainee.arms[0]
        clear(DEVICE)
        mine = ours(trainer, name, f"{len(ranks)} arms")
        where = profile(trainer) if DEVICE.type == "cuda" else ""
        del trainer
        peers = []
        for autocast in (False, True):
            clear(DEVICE)
            peers.append(
                peft_loop(
                    name,
                    first.rank or 1,
                    start,
                    blocks,
                    batch,
                    DEVICE,
                    rate=first.learning_rate,
                    autocast=autocast,
                    warm=3,
                    steps=peer_steps,
                )
            )
            print(f"  PEFT autocast={autocast}: {batch * length / peers[-1].seconds:,.0f} tok/s")
        clear(DEVICE)
        print(f"  losses differ by {max(agree(mine, peer, 1e-2) for peer in peers):.1e}")
        many = "PEFT, one arm after another" if len(ranks) > 1 else "PEFT"
        # Users of transformers' Trainer have the loop under autocast if they say bf16=True
        ways = [f"{many}, bf16 base as it is", f"{many}, under autocast"]
        faster, slower = sorted(zip(peers, ways, strict=True), key=lambda peer: peer[0].seconds)
        common: dict[str, Any] = {"goal": goal, "peer_tokens": batch * length, "length": length}
        work = f"rank {ranks[0]}, {len(ranks)} x {batch} x {length}"
        tokens = len(ranks) * batch * length
        rows = []
        for label, (peer, way) in ((title, faster), (f"{title}, the slower peer", slower)):
            rows += report(
                label,
                name,
                work,
                mine,
                tokens,
                peer=peer,
                peer_name=way,
                memory_goal=memory_goal,
                where=where if label == title else "",
                **common,
            )
        return rows


@claim
def lora_7b() -> list[dict[str, Any]]:
    """One arm on long rows."""
    return cohort_row("LoRA, one arm", "7b", [16], 1, 4096, 2.0, memory_goal=0.65)


@claim
def lora_3b() -> list[dict[str, Any]]:
    """Sixteen arms on short rows."""
    return cohort_row("LoRA, 16 arms", "3b", [32] * 16, 4, 256, 8)


@claim
def lora_1b() -> list[dict[str, Any]]:
    """Twelve arms, one row each."""
    return cohort_row("LoRA, 12 arms", "1b", [16] * 12, 1, 512, 15)


@claim
def lora_01b() -> list[dict[str, Any]]:
    """Twelve arms of a small base."""
    return cohort_row("LoRA, 12 arms", "0.1b", [16] * 12, 8, 512, 12)


@claim
def mixed_ranks() -> list[dict[str, Any]]:
    """Ranks 4 to 256 in one cohort beside twelve arms of their mean rank."""
    name = shape("3b")
    batch, length = (2, 32) if TINY else (4, 256)
    ranks = (2, 4, 8, 16) if TINY else (4, 16, 64, 256)
    mean = sum(ranks) // len(ranks)
    rates = [1e-4, 2e-4, 3e-4]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder), name, 64 * batch, length)
        for arms in ([(r, x) for r in ranks for x in rates], [(mean, i) for i in range(1, 13)]):
            chosen = [lora(rank, x if x < 1 else 1e-4 * (1 + x / 100)) for rank, x in arms]
            trainer = trainer_of(chosen, name, blocks, batch)
            clear(DEVICE)
            found.append(ours(trainer, name, "12 arms"))
            del trainer
            clear(DEVICE)
    mixed, uniform = found
    tokens = 12 * batch * length
    print(f"  {tokens / mixed.seconds:,.0f} tok/s mixed, {tokens / uniform.seconds:,.0f} uniform")
    return [
        row(
            "ranks 4, 16, 64, 256 x 3 rates in one cohort",
            f"{NAMES[name]}, 12 x {batch} x {length}",
            "tokens/s in all",
            our_value=tokens / mixed.seconds,
            peer=f"twelve arms of the mean rank, {mean}",
            peer_value=tokens / uniform.seconds,
            ratio=uniform.seconds / mixed.seconds,
            goal="at least 0.85 (at most 15% slower)",
            device=CARD,
        )
    ]


def full_row(title: str, name: str, goal: float | None, *, peer: bool) -> list[dict[str, Any]]:
    """One full arm, beside transformers under autocast."""
    name = shape(name)
    batch, length = (2, 32) if TINY else (1, 4096)
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder), name, 64 * batch, length)
        trainer = trainer_of([full()], name, blocks, batch)
        clear(DEVICE)
        mine = ours(trainer, name, "full")
        where = profile(trainer) if DEVICE.type == "cuda" else ""
        del trainer
        clear(DEVICE)
        theirs = None
        if peer:
            theirs = transformers_loop(name, blocks, batch, DEVICE, rate=1e-5, warm=3, steps=6)
            print(f"  losses differ by {agree(mine, theirs, 1e-2):.1e}")
        clear(DEVICE)
        return report(
            title,
            name,
            f"float32 masters, {batch} x {length}",
            mine,
            batch * length,
            goal=goal,
            peer=theirs,
            peer_tokens=batch * length,
            peer_name="transformers, autocast, fused AdamW" if peer else None,
            length=length,
            is_full=True,
            where=where,
        )


@claim
def full_3b() -> list[dict[str, Any]]:
    """Full finetuning where the peer fits."""
    return full_row("full finetuning", "3b", 1.4, peer=True)


@claim
def full_7b() -> list[dict[str, Any]]:
    """Full finetuning where a plain loop does not fit."""
    return full_row("full finetuning", "7b", None, peer=False)


def instruct_row(count: int, goal: float, folder: Path) -> list[dict[str, Any]]:
    """Arms on packed pairs, beside the faster of TRL's two ways."""
    name = shape("3b")
    batch, length, warm, steps = (2, 128, 2, 2) if TINY else (4, 1024, 3, 6)
    tokens = tokenizer(DATA / "models" / "english-30m")
    chosen = pairs(DATA / "data" / "instruct", 200 if TINY else 6000)
    blocks, fill = packed(folder / "rows", chosen, tokens, length)
    arms = [lora(16, 1e-4 * (1 + i / 100)) for i in range(count)]
    trainer = trainer_of(arms, name, blocks, batch)
    clear(DEVICE)
    mine = ours(trainer, name, f"{count} arms on pairs")
    where = profile(trainer) if DEVICE.type == "cuda" else ""
    del trainer
    ways = {"packed rows (bfd)": (True, batch), "padded, grouped by length": (False, batch * 12)}
    for way, (packing, rows) in ways.items() if not TRL else ():
        clear(DEVICE)
        try:
            TRL[way] = trl_loop(
                name,
                chosen,
                tokens,
                packing=packing,
                length=length,
                batch=rows,
                rank=16,
                rate=1e-4,
                device=DEVICE,
                folder=folder / "trl",
                warm=warm,
                steps=steps,
            )
            rate = TRL[way][1] / TRL[way][0].seconds
            print(f"  TRL, {way}: {rate:,.0f} tok/s, first loss {TRL[way][0].losses[0]:.3f}")
        except Exception:
            traceback.print_exc()
    clear(DEVICE)
    way, (peer, peer_tokens) = max(TRL.items(), key=lambda item: item[1][1] / item[1][0].seconds)
    print(f"  first losses {mine.losses[0]:.3f} and {peer.losses[0]:.3f}")
    assert abs(mine.losses[0] / peer.losses[0] - 1) < 0.02, "not the same loss on other batches"
    return report(
        f"LoRA on instruction pairs, {count} arm{'s' if count > 1 else ''}",
        name,
        f"rank 16, {count} x {batch} x {length}, {fill:.0%} of it text; text tokens count",
        mine,
        int(count * batch * length * fill),
        goal=goal,
        peer=peer,
        peer_tokens=int(peer_tokens),
        peer_name=f"TRL SFTTrainer with PEFT and Liger, {way}",
        length=length,
        where=where,
    )


TRL: dict[str, tuple[Timing, float]] = {}


@claim
def instruct_12() -> list[dict[str, Any]]:
    """Twelve arms on pairs."""
    with tempfile.TemporaryDirectory() as folder:
        return instruct_row(12, 8, Path(folder))


@claim
def instruct_1() -> list[dict[str, Any]]:
    """One arm on pairs."""
    with tempfile.TemporaryDirectory() as folder:
        return instruct_row(1, 1.7, Path(folder))


@claim
def rounding() -> list[dict[str, Any]]:
    """Losses of arms in a cohort, beside the same arms alone, compiled and eager, on real text."""
    name = shape("0.1b")
    batch, length, steps = (2, 64, 4) if TINY else (4, 512, 30)
    rates = [1e-4, 3e-4, 1e-3, 3e-3]
    arms = [lora(16, rate) for rate in rates]
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0)]
    with tempfile.TemporaryDirectory() as folder:
        tokens = tokenizer(DATA / "models" / "english-30m")
        chosen = pairs(DATA / "data" / "instruct", 400 if TINY else 4000)
        blocks, _ = packed(Path(folder), chosen, tokens, length)

        def losses(some: list[ArmConfig], backend: str | None) -> dict[str, torch.Tensor]:
            trainer = trainer_of(some, name, blocks, batch, backend=backend)
            for t in range(steps):
                trainer.step(t, always * len(some))
            found = torch.stack(trainer._log.loss_K).double().cpu()
            return {a.id: found[:, i] for i, a in enumerate(trainer.trainee.arms)}

        together = losses(arms, None)
        rows = []
        worst = 0.0
        for arm in arms:
            compiled = losses([arm], None)[arm.id]
            eager = losses([arm], "none")[arm.id]
            spread = float((compiled - eager).abs().max())
            apart = min(float((together[arm.id] - solo).abs().max()) for solo in (compiled, eager))
            worst = max(worst, apart / spread if spread else float(apart > 0))
            print(f"  {arm.label}: in cohort {apart:.2e}, eager against compiled {spread:.2e}")
            rows.append((apart, spread))
        clear(DEVICE)
        return [
            row(
                "losses in a cohort beside alone, bf16",
                f"{NAMES[name]}, 4 arms on instruction pairs, {steps} steps",
                "of the distance between two solo runs (eager, compiled), at most",
                our_value=worst,
                goal="at most 1",
                device=CARD,
            )
        ]


def predictions() -> list[dict[str, Any]]:
    """How far predicted peak memory lies from measured, over all that was run."""
    if not PREDICTED or DEVICE.type == "cpu":
        return []
    for what, expected, measured in PREDICTED:
        print(f"  {what}: predicted {expected:.1f}, measured {measured:.1f} GiB")
    worst = max(PREDICTED, key=lambda p: abs(p[1] / p[2] - 1))
    return [
        row(
            "peak memory predicted before training",
            f"{len(PREDICTED)} configurations; the farthest: {worst[0]}",
            "relative error at most",
            our_value=max(abs(e / m - 1) for _, e, m in PREDICTED),
            goal="at most 0.1",
            device=CARD,
        )
    ]


def main() -> None:
    """Measure the chosen rows; one that fails is reported and the rest go on."""
    global DATA, TINY
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--tiny", action="store_true", help="a toy shape, to try the script")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder shared")
    parser.add_argument("--out", type=Path, help="write the rows here instead")
    options = parser.parse_args()
    TINY, DATA = options.tiny, options.data
    # What a row keeps of the command is what decides its numbers
    sys.argv[1:] = ["--rows", options.rows]
    rows: list[dict[str, Any]] = []
    for name in options.rows.split(","):
        print(f"{name}:", flush=True)
        started = time.perf_counter()
        try:
            rows += ROWS[name]()
        except Exception:
            traceback.print_exc()
        clear(DEVICE)
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
        if options.out:
            options.out.write_text(json.dumps(rows, indent=2))
    rows += predictions()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2))
    else:
        write("cohort", rows)


if __name__ == "__main__":
    main()
