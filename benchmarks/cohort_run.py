"""Our side of a row: a trainer at a real shape, its steps timed, and the rows made of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from claims import CARD, DEVICE, Claims, wait
from cohort_models import NAMES, flops_per_token, loading, shape_of
from cohort_peers import Timing, timed
from measurements import row
from torch._dynamo.utils import counters

from paretune.data.blocks import Blocks
from paretune.model.lora_cohort import lora_cohort
from paretune.model.regions import Compiler
from paretune.model.trainee import Trainee, full_arm
from paretune.study.arms import ArmConfig
from paretune.study.memory import cohort_bytes
from paretune.study.shapes import Batch
from paretune.train.piece import PieceRunner
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

CLAIMS = Claims("cohort")
LIMIT = 790e12
GIB = 2**30


def trainer_of(
    arms: Sequence[ArmConfig],
    name: str,
    blocks: Blocks,
    batch: int,
    *,
    compiler: Compiler | None = None,
) -> Trainer:
    """A trainer whose pieces are as large as the memory model lets them be.

    Args:
        compiler: in the place of the default; with backend ``none`` code is eager, without our
            attention or graphs.
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
    if compiler:
        trainer.runner = PieceRunner(trainee, compiler=compiler)
        trainer._capacity = blocks.most_segments() if trainer.runner.attends else 0
    return trainer


def ours(trainer: Trainer, name: str, *, warm: int = 4, steps: int = 8) -> Timing:
    """Time whole steps of all arms; the losses are the first arm's.

    Raises:
        AssertionError: something was compiled after the second step.
    """
    arms = trainer.trainee.arms
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0) for _ in arms]
    started = time.perf_counter()
    trainer.step(0, always)
    wait()
    print(f"  first step {time.perf_counter() - started:.1f} s", flush=True)

    def step(t: int) -> torch.Tensor:
        trainer.step(t + 1, always)
        return trainer._log.loss_K[-1]

    step(0)
    compiled = counters["stats"]["unique_graphs"]
    done = timed(lambda t: step(t + 1)[0], warm - 2, steps)
    assert counters["stats"]["unique_graphs"] == compiled, "compiled again after the second step"
    trained = {arms[i].id: f.count for f in trainer.trainee.flats for i in f.arms}
    batch = Batch(trainer.batch_size, trainer.blocks.block_length)
    rows = trainer.trainee.rows
    done.predicted = cohort_bytes(shape_of(name), arms, trained, batch, rows, "cuda")
    done.note = f"{rows} rows at a time"
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


def beside(
    title: str,
    name: str,
    work: str,
    mine: Timing,
    tokens: int,
    peers: Sequence[tuple[str, Timing, float]],
    *,
    length: int,
    goal: float | None = None,
    memory_goal: float | None = None,
    is_full: bool = False,
    where: str = "",
) -> Iterator[dict[str, Any]]:
    """Tokens a second and memory, beside each peer from the fastest on; the share of the limit.

    Args:
        tokens: of one of our steps.
        peers: name, timing and tokens of one step of each.
        goal: at least so many times the peer's tokens a second.
        memory_goal: at most this share of the peer's memory.
        where: where a step's time goes.
    """
    work = f"{NAMES[name]}, {work}"
    rate = tokens / mine.seconds
    speed: dict[str, Any] = {"our_value": rate, "device": CARD}
    stated = "stated, not fixed"
    speed["goal"] = f"at least {goal:g} times the peer" if goal else stated
    memory: dict[str, Any] = {"our_value": mine.memory / GIB, "device": CARD}
    memory["goal"] = f"at most {memory_goal:g} of the peer's" if memory_goal else stated
    print(f"  {rate:,.0f} tokens/s, {mine.memory / GIB:.1f} GiB, {mine.note}; {where}", flush=True)
    fastest_first = sorted(peers, key=lambda peer: peer[1].seconds / peer[2])
    for place, (peer, timing, peer_tokens) in enumerate(fastest_first):
        label = f"{title}, the slower peer" if place else title
        peer_rate = peer_tokens / timing.seconds
        rates = {"peer": peer, "peer_value": peer_rate, "ratio": rate / peer_rate}
        yield row(label, work, "tokens/s in all", **rates, **speed)
        held = {"peer": peer, "peer_value": timing.memory / GIB}
        held["ratio"] = timing.memory / mine.memory if mine.memory else None
        yield row(f"{label}: memory", work, "GiB at the peak", **held, **memory)
    if not peers:
        yield row(title, work, "tokens/s in all", **speed)
        yield row(f"{title}: memory", work, "GiB at the peak", **memory)
    if where:
        share = rate * flops_per_token(name, length, full=is_full) / LIMIT
        limit = f"{6 if is_full else 4} N FLOPs a token at 790 TFLOP/s"
        yield row(
            f"{title}: share of the limit",
            f"{work}; {limit}. A step's time: {where}",
            "of the limit",
            our_value=share,
            goal=stated,
            device=CARD,
        )
    yield from predicted(title, work, mine)


def predicted(title: str, work: str, mine: Timing) -> Iterator[dict[str, Any]]:
    """How far the peak that the memory model predicted lies from the measured one."""
    if mine.memory:
        yield row(
            f"{title}: predicted peak",
            f"{work}; {mine.predicted / GIB:.1f} GiB predicted, {mine.memory / GIB:.1f} measured, "
            f"{mine.note}",
            "relative error",
            our_value=abs(mine.predicted / mine.memory - 1),
            goal="at most 0.1",
            device=CARD,
        )
