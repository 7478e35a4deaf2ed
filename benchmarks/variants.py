"""Variants of LoRA, several full arms, and quantised bases on one GPU: speed, memory, agreement.

Usage: python benchmarks/variants.py [--rows a,b] [--tiny] [--results DIR], on a machine with a GPU;
writes rows of variants.json. Models have real shapes and random weights. Peer
and ours run in turn in this process. ``--tiny`` runs the same code at a toy shape on any device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from claims import CARD, DEVICE, Claims, clear, wait
from cohort_models import NAMES, full, loading, lora, random_model, token_blocks
from cohort_peers import Timing, timed, transformers_loop
from measurements import row

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step
from paretune.model.full_cohort import full_cohort
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import Trainee, full_arm
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

CLAIMS = Claims("variants")
WARM, STEPS = 4, 8
# One arm of each variant, all in one cohort
MIXED: list[dict[str, Any]] = [
    {},
    {"dora": True},
    {"init": "pissa"},
    {"scaling": "rslora", "alpha": 16},
    {"loraplus_lr_ratio": 4},
    {"dora": True, "lora_dropout": 0.1},
    {"init": "pissa", "lora_dropout": 0.1},
    {"targets": "mlp"},
    {"dora": True, "init": "pissa", "scaling": "rslora", "alpha": 16},
]


def blocks_of(name: str, batch: int, length: int) -> Blocks:
    """Random tokens for a few steps."""
    return token_blocks(Path(tempfile.mkdtemp()), name, 16 * batch, 32 if CLAIMS.tiny else length)


def trained(
    arms: Sequence[ArmConfig], name: str, blocks: Blocks, batch: int, quantise: str | None = None
) -> tuple[Timing, int]:
    """Time whole steps of all arms; also the bytes in use before the first of them."""
    clear()
    with loading(name, DEVICE):
        base = Base.model_validate({"name": "random", "quantise": quantise})
        trainee: Trainee
        if arms[0].method == "lora":
            trainee = lora_cohort(base, arms, DEVICE, arms_per_pass=len(arms))
        elif len(arms) > 1:
            trainee = full_cohort(base, arms, DEVICE, arms_per_pass=len(arms))
        else:
            trainee = full_arm(base, arms[0], DEVICE)
    clear()
    held = torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0
    trainer = Trainer(trainee, blocks, batch)
    trainee.rows = batch
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0) for _ in trainee.arms]

    def step(t: int) -> torch.Tensor:
        trainer.step(t, always)
        return trainer._log.loss_K[-1].mean()

    done = timed(step, WARM, STEPS)
    done.losses = [float(loss[0]) for loss in trainer._log.loss_K]
    print(f"  {len(arms)} arms: {done.seconds * 1e3:.1f} ms a step", flush=True)
    return done, held


def speed(
    title: str, work: str, tokens: int, mine: Timing, peer: Timing, peer_name: str, **more: Any
) -> dict[str, Any]:
    """A row of tokens a second in all, from the tokens of one step of ours and of theirs."""
    rate = tokens / mine.seconds
    peer_rate = more["peer_tokens"] / peer.seconds
    return row(
        title,
        work,
        "tokens/s in all",
        our_value=rate,
        peer=peer_name,
        peer_value=peer_rate,
        ratio=rate / peer_rate,
        goal=more["goal"],
        device=CARD,
    )


def _several_full(name: str, count: int, goal: str, *, peer: bool) -> list[dict[str, Any]]:
    name, batch, length = CLAIMS.shape(name), 8, 512
    blocks = blocks_of(name, batch, length)
    tokens = batch * blocks.block_length
    together, _ = trained([full(1e-5 * (i + 1)) for i in range(count)], name, blocks, batch)
    alone, _ = trained([full(1e-5)], name, blocks, batch)
    worst = max(abs(a - b) / b for a, b in zip(together.losses, alone.losses, strict=True))
    assert worst < 0.01, f"losses differ by {worst:.2g}: {together.losses} and {alone.losses}"
    title, work = f"{count} full arms in one cohort", f"{NAMES[name]}, {count} x {batch} x {length}"
    rows = [
        speed(
            title,
            work,
            count * tokens,
            together,
            alone,
            "the same arms one after another, compiled and fused too",
            peer_tokens=tokens,
            goal=goal,
        )
    ]
    if peer:
        settings = {"rate": 1e-5, "warm": WARM, "steps": STEPS}
        theirs = transformers_loop(name, blocks, batch, **settings)
        print(f"  transformers: {theirs.seconds * 1e3:.1f} ms a step", flush=True)
        rows.append(
            speed(
                title,
                work,
                count * tokens,
                together,
                theirs,
                "transformers, one arm after another",
                peer_tokens=tokens,
                goal="at least 2 times",
            )
        )
    return rows


@CLAIMS
def full_cohort_01b() -> list[dict[str, Any]]:
    """Four full arms of a 0.1B base against one after another."""
    return _several_full("0.1b", 4, "stated, not fixed", peer=True)


@CLAIMS
def agreement() -> list[dict[str, Any]]:
    """Every variant in one compiled cohort on the GPU against float32 on the CPU, arm by arm."""
    base = Base(name="pocket")
    vocabulary = 2048
    arms = [lora(8, 2e-3, seed=i, **settings) for i, settings in enumerate(MIXED)]
    folder = Path(tempfile.mkdtemp())
    import numpy as np

    draw = np.random.default_rng(0)
    rows = np.zeros((64, 64), np.uint16)
    rows[:, 0] = draw.integers(0, vocabulary, 64)
    for position in range(1, 64):
        rows[:, position] = (rows[:, position - 1] * 5 + 7 + draw.integers(0, 3, 64)) % 500
    np.save(folder / "tokens.npy", rows)
    blocks = Blocks(folder, "cpt")
    steps = 4 if CLAIMS.tiny else 20
    losses = {}
    for device in (torch.device("cpu"), DEVICE):
        trainee = lora_cohort(base, arms, device)
        trainer = Trainer(trainee, blocks, 4)
        trainee.rows = 4
        always = [Resolved("constant", 0, 10**6, 10**6, 0.0) for _ in trainee.arms]
        for t in range(steps):
            trainer.step(t, always)
        losses[device.type] = {
            arm.id: [each["loss"] for each in curve]
            for arm, curve in zip(trainee.arms, trainer.curve(), strict=True)
        }
    worst = 0.0
    for arm in arms:
        pairs = list(zip(losses["cpu"][arm.id], losses[DEVICE.type][arm.id], strict=True))
        apart = max(abs(a - b) / a for a, b in pairs)
        worst = max(worst, apart)
        print(
            f"  {arm.family}: {pairs[-1][0]:.4f} {pairs[-1][1]:.4f} apart {apart:.2g}", flush=True
        )
    return [
        row(
            "bf16 compiled cohort against float32 on a CPU",
            f"pocket base, one cohort of {len(arms)} variants, {steps} steps",
            "largest relative difference of a loss",
            our_value=worst,
            goal="at most 0.02",
            device=CARD,
        )
    ]


def _peft_dora(name: str, blocks: Blocks, batch: int) -> Timing:
    clear()
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", use_dora=True)
    model = peft.get_peft_model(random_model(name, dtype, DEVICE), settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)

    def step(t: int) -> torch.Tensor:
        ids = blocks.batch(rows_for_step(blocks.count, batch, t, 0)).input_ids.to(DEVICE)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    done = timed(step, WARM, STEPS)
    wait()
    return done


@CLAIMS
def variants_1b() -> list[dict[str, Any]]:
    """Cohorts of twelve DoRA, PiSSA and mixed arms beside twelve plain ones."""
    name, batch, length, count = CLAIMS.shape("1b"), 1, 512, 12
    blocks = blocks_of(name, batch, length)
    tokens = count * batch * blocks.block_length
    rates = [1e-4 * (1 + i / 10) for i in range(count)]
    plain, _ = trained([lora(16, rate) for rate in rates], name, blocks, batch)
    work = f"{NAMES[name]}, r16, {count} x {batch} x {length}"
    peers = {"twelve plain LoRA arms in one cohort": (plain, tokens)}
    cohorts: dict[str, list[ArmConfig]] = {
        "12 DoRA arms": [lora(16, rate, dora=True) for rate in rates],
        "12 PiSSA arms": [lora(16, rate, init="pissa") for rate in rates],
        "12 arms of mixed variants": [
            lora(16, rate, **MIXED[i % len(MIXED)]) for i, rate in enumerate(rates)
        ],
    }
    rows = []
    for title, arms in cohorts.items():
        mine, _ = trained(arms, name, blocks, batch)
        if "DoRA" in title:
            theirs = _peft_dora(name, blocks, batch)
            peers["PEFT's DoRA, one arm after another"] = (theirs, tokens // count)
        for peer_name, (peer, peer_tokens) in list(peers.items()):
            rows.append(
                speed(
                    title,
                    work,
                    tokens,
                    mine,
                    peer,
                    peer_name,
                    peer_tokens=peer_tokens,
                    goal="stated, not fixed",
                )
            )
        peers.pop("PEFT's DoRA, one arm after another", None)
    return rows


@CLAIMS
def quantised_1b() -> list[dict[str, Any]]:
    """Twelve LoRA arms over a base in 4 and 8 bits: speed, and memory held between steps."""
    name, batch, length, count = CLAIMS.shape("1b"), 1, 512, 12
    blocks = blocks_of(name, batch, length)
    tokens = count * batch * blocks.block_length
    arms = [lora(16, 1e-4 * (1 + i / 10)) for i in range(count)]
    plain, held = trained(arms, name, blocks, batch)
    work = f"{NAMES[name]}, 12 LoRA arms r16, {batch} x {length} each"
    rows = []
    for kind in ("nf4", "int8"):
        mine, own = trained(arms, name, blocks, batch, kind)
        rows.append(
            speed(
                f"quantised base, {kind}",
                work,
                tokens,
                mine,
                plain,
                "the same over a bf16 base, compiled",
                peer_tokens=tokens,
                goal="stated, not fixed",
            )
        )
        rows.append(
            row(
                f"quantised base, {kind}: base and adapters",
                work,
                "GiB held",
                our_value=own / 2**30,
                peer="the same over a bf16 base",
                peer_value=held / 2**30,
                ratio=held / own if own else None,
                goal="stated, not fixed",
                device=CARD,
            )
        )
    return rows


@CLAIMS
def full_cohort_035b() -> list[dict[str, Any]]:
    """Where several full arms stop paying: a base three times as large."""
    return _several_full("0.35b", 4, "stated, not fixed", peer=False)


if __name__ == "__main__":
    CLAIMS.main(__doc__)
