"""Sharded training (FSDP2) at real shapes: tokens a second, memory of each device, and losses.

Usage: python benchmarks/sharded.py [--rows a,b] [--tiny] [--results DIR], on a machine with one GPU
(plan_13b, lora_13b) or with several (full_3b, full_13b: over all of them); writes sharded.json.
Models have random weights. Beside a 3B full arm stands the same arm on one GPU, on the same weights
and tokens, and the row fails if their losses differ. ``--tiny`` runs the same code at a toy shape,
on a CPU as two processes over gloo.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from claims import CARD, DEVICE, Claims, Rows, clear
from cohort_models import NAMES, full, lora, shape_of, token_blocks
from cohort_run import ours, trainer_of
from measurements import row

from paretune.runner.device import measure
from paretune.runner.sharding import parts
from paretune.study.arms import ArmConfig
from paretune.study.memory import Workload
from paretune.study.shapes import Batch, Machine
from paretune.study.sharding import Sharding
from paretune.study.units import size

CLAIMS = Claims("sharded")
GIB = 2**30
WARM, STEPS = 4, 8
# What is planned for where there is no GPU
H200 = Machine("NVIDIA H200", 141 * 10**9, 790e12, 4.3e12, "cuda")


def machine() -> Machine:
    """The GPUs here, or one that is not here."""
    return measure(DEVICE) if DEVICE.type == "cuda" else H200


@CLAIMS
def plan_13b() -> Rows:
    """A full arm that one device has no room for, and how many have."""
    shape, arm = shape_of("13b"), full()
    load = Workload(shape, Batch(4, 1024), machine())
    found = load.sharding([arm], {arm.id: shape.parameters})
    assert found is not None, "one device has room for it"
    yield row(
        "A 13B full arm is planned",
        f"{NAMES['13b']}, 4 x 1024; refused on one {load.machine.name}, each of "
        f"{found.devices} holds {size(found.memory)}: {parts(found)}",
        "devices",
        our_value=found.devices,
        goal="2 H200, 3 H100",
        device=load.machine.name,
    )


@CLAIMS
def lora_13b() -> Rows:
    """A LoRA cohort over a 13B base on one device."""
    name, batch, length = CLAIMS.shape("13b"), 4, 64 if CLAIMS.tiny else 1024
    arms = [lora(16, rate) for rate in (1e-4, 2e-4, 3e-4, 4e-4)]
    with tempfile.TemporaryDirectory() as folder:
        blocks = token_blocks(Path(folder) / "blocks", name, 64, length)
        done = ours(trainer_of(arms, name, blocks, batch), name, warm=WARM, steps=STEPS)
    work = f"{NAMES[name]}, rank 16, {len(arms)} x {batch} x {length}; {done.note}"
    tokens = len(arms) * batch * length
    yield row(
        "A LoRA cohort over a 13B base on one device", work, "tokens/s",
        our_value=tokens / done.seconds, goal="it runs", device=CARD,
    )  # fmt: skip
    if DEVICE.type == "cuda":
        yield row(
            "Memory of a LoRA cohort over a 13B base", work, "GiB at the peak",
            peer="the plan", peer_value=done.predicted / GIB, our_value=done.memory / GIB,
            goal="the plan within 10%", device=CARD,
        )  # fmt: skip


@CLAIMS
def full_3b() -> Rows:
    """A 3B full arm over all GPUs, beside the same on one."""
    yield from _full("3b", alone=True)


@CLAIMS
def full_13b() -> Rows:
    """A 13B full arm over all GPUs."""
    yield from _full("13b", alone=False)


def _full(shape: str, *, alone: bool) -> Rows:
    name, batch, length = CLAIMS.shape(shape), 8, 64 if CLAIMS.tiny else 1024
    count = torch.cuda.device_count() if DEVICE.type == "cuda" else 2
    assert count > 1, "needs several GPUs"
    device = f"{count} x {CARD}"
    load = Workload(shape_of(name), Batch(batch, length), machine(), devices_per_cohort=count)
    arm = full()
    found = load.sharding([arm], {arm.id: load.shape.parameters})
    assert found is not None
    assert found.devices, "no room"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        blocks = token_blocks(folder / "blocks", name, 64, length)
        one: Any = None
        if alone:
            one = ours(trainer_of([arm], name, blocks, batch), name, warm=WARM, steps=STEPS)
            clear()
        ranks = _processes(folder, name, arm, batch, found)
    work = f"{NAMES[name]}, {batch} x {length}, {count} devices; {found.rows} rows at a time"
    work += ", recomputed" if found.recompute else ""
    seconds = ranks[0]["seconds"]
    yield row(
        f"Full finetuning, sharded over {count} devices", work, "tokens/s",
        peer="one device" if one else None,
        peer_value=batch * length / one.seconds if one else None,
        our_value=batch * length / seconds,
        ratio=one.seconds / seconds if one else None,
        goal=f"{0.7 * count:.1f} times one" if one else "it runs", device=device,
    )  # fmt: skip
    if DEVICE.type == "cuda":
        yield row(
            f"Memory of each of {count} devices", work, "GiB at the peak",
            peer="the plan", peer_value=found.memory / GIB,
            our_value=max(rank["peak"] for rank in ranks) / GIB,
            goal="the plan within 15%", device=device,
        )  # fmt: skip
    if one:
        losses = list(zip(ranks[0]["losses"], one.losses, strict=False))
        worst = max(abs(a - b) / b for a, b in losses)
        assert worst <= (1e-5 if DEVICE.type == "cpu" else 2e-2), losses
        yield row(
            f"Losses over {count} devices", f"{work}; {len(losses)} steps",
            "largest relative difference", peer="one device", peer_value=0.0, our_value=worst,
            goal="1e-5 in float32, 0.02 in bf16", device=device,
        )  # fmt: skip


def _processes(
    folder: Path, name: str, arm: ArmConfig, batch: int, found: Sharding
) -> list[dict[str, Any]]:
    """Train in as many processes as there are devices; what each measured."""
    given = {
        "shape": name, "arm": arm.record(), "batch": batch, "device": DEVICE.type,
        "sharding": asdict(found), "steps": [WARM, STEPS], "blocks": str(folder / "blocks"),
        "out": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
    command += ["127.0.0.1", "--nproc-per-node", str(found.devices)]
    command += [str(Path(__file__).with_name("sharded_process.py")), json.dumps(given)]
    env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **os.environ}
    subprocess.run(command, env=env, check=True)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(found.devices)]


if __name__ == "__main__":
    CLAIMS.main(__doc__)
