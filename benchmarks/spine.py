"""The spine's claims, measured: equality with peers, independence of arms, start-up, the demo.

Usage: python benchmarks/spine.py [--skip-demo]; writes benchmarks/results/spine.json.
Peers run in the same process, on the same weights and data, in turn.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from measurements import row, write
from transformers import AutoModelForCausalLM

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step
from paretune.model.load import location
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import full_arm
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Span, resolve
from paretune.train.trainer import Trainer

BASE, CPU, BATCH, STEPS = Base(name="pocket"), torch.device("cpu"), 8, 50
RATES = (1e-3, 5e-3)
RANKS = (2, 8, 32)


def arm(**settings: Any) -> ArmConfig:
    """An arm with a constant rate."""
    schedule = {"shape": "constant", "warmup": "0%"}
    return ArmConfig.model_validate({"schedule": schedule, **settings})


def data(folder: Path) -> Blocks:
    """Real Python code as blocks of 128 tokens."""
    import inspect

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(location(BASE))
    code = "".join(inspect.getsource(module) for module in (inspect, subprocess, tempfile))
    tokens = tokenizer(code, verbose=False)["input_ids"]
    count = len(tokens) // 128
    np.save(folder / "tokens.npy", np.array(tokens[: count * 128], np.uint16).reshape(-1, 128))
    return Blocks(folder, "cpt")


def ours(arms: list[ArmConfig], blocks: Blocks, steps: int) -> tuple[dict[str, Any], float]:
    """Losses by arm id, and seconds."""
    full = arms[0].method == "full"
    trainee = full_arm(BASE, arms[0], CPU) if full else lora_cohort(BASE, arms, CPU)
    trainer = Trainer(trainee, blocks, BATCH)
    span = Span(BATCH * 128, 1)
    schedules = [resolve(a.schedule, span, total=steps, warmup_total=steps) for a in trainee.arms]
    started = time.perf_counter()
    for t in range(steps):
        trainer.step(t, schedules)
    seconds = time.perf_counter() - started
    curves = trainer.curve()
    losses = {
        a.id: np.array([step["loss"] for step in curve])
        for a, curve in zip(trainee.arms, curves, strict=True)
    }
    return losses, seconds


def theirs(one: ArmConfig, blocks: Blocks, steps: int) -> tuple[Any, float]:
    """The same arm in PEFT or plain transformers with torch.optim.AdamW."""
    model = AutoModelForCausalLM.from_pretrained(location(BASE), dtype=torch.float32)
    if one.method == "lora":
        start = lora_cohort(BASE, [one], CPU).flats[0].tensors(0)
        layers = sorted({name.rpartition(".")[0] for name in start})
        config = peft.LoraConfig(r=one.rank, lora_alpha=int(one.alpha or 0), target_modules=layers)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name in layers:
                module = model.get_submodule(f"base_model.model.{name}")
                module.lora_A["default"].weight.copy_(start[f"{name}.A"].T)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=one.learning_rate, weight_decay=0.0)
    losses = []
    started = time.perf_counter()
    for t in range(steps):
        ids = blocks.batch(rows_for_step(blocks.count, BATCH, t, 0)).input_ids
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return np.array(losses), time.perf_counter() - started


def parity(one: ArmConfig, blocks: Blocks, peer: str) -> dict[str, Any]:
    """Largest relative difference of a loss over 50 steps."""
    mine, _ = ours([one], blocks, STEPS)
    reference, _ = theirs(one, blocks, STEPS)
    worst = float(np.max(np.abs(mine[one.id] - reference) / reference))
    return row(
        f"losses of a {one.method} arm equal {peer}'s",
        f"pocket base, {STEPS} steps of {BATCH} x 128, float32",
        "largest relative difference",
        peer=peer,
        our_value=worst,
        goal="at most 1e-5",
    )


def independence(blocks: Blocks) -> dict[str, Any]:
    """Largest difference between an arm in a cohort of six and alone."""
    arms = [arm(method="lora", rank=r, learning_rate=v) for r in RANKS for v in RATES]
    together, _ = ours(arms, blocks, STEPS)
    worst = max(
        float(np.max(np.abs(together[a.id] - ours([a], blocks, STEPS)[0][a.id]))) for a in arms
    )
    return row(
        "an arm in a cohort equals the arm alone",
        "six LoRA arms, ranks 2, 8, 32 at two rates, 50 steps, CPU",
        "largest difference of a loss",
        our_value=worst,
        goal="0",
    )


def speed(blocks: Blocks) -> dict[str, Any]:
    """Tokens per second of six LoRA arms on a CPU; medians of three rounds, in turn."""
    arms = [arm(method="lora", rank=r, learning_rate=v) for r in RANKS for v in RATES]
    steps, mine, peers = 10, [], []
    for _ in range(3):
        mine.append(ours(arms, blocks, steps)[1])
        peers.append(sum(theirs(a, blocks, steps)[1] for a in arms))
    tokens = len(arms) * steps * BATCH * 128
    our_value, peer_value = tokens / float(np.median(mine)), tokens / float(np.median(peers))
    return row(
        "training six LoRA arms on a CPU",
        "pocket base, batch 8 x 128, AdamW",
        "tokens/s in all",
        peer="PEFT, one arm after another",
        peer_value=peer_value,
        our_value=our_value,
        ratio=our_value / peer_value,
        goal="no target; the cohort is for GPUs",
    )


def start_up() -> dict[str, Any]:
    """Seconds until --help is printed; median of five."""
    seconds = [timed([sys.executable, "-m", "paretune", "--help"]) for _ in range(5)]
    return row(
        "paretune --help",
        "a new process",
        "s",
        our_value=float(np.median(seconds)),
        goal="under 0.5",
    )


def demo() -> dict[str, Any]:
    """Seconds of the pocket study, from command to report."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "paretune", "demo", "--out", f"{folder}/study"]
        seconds = timed(command)
    return row(
        "paretune demo",
        "8 arms, 3 budgets, scoring and report",
        "s",
        our_value=seconds,
        goal="at most 240 on 2 cores",
    )


def timed(command: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    """Measure everything and write the rows."""
    with tempfile.TemporaryDirectory() as folder:
        blocks = data(Path(folder))
        lora = arm(method="lora", rank=8, learning_rate=5e-3)
        measurements: list[Callable[[], dict[str, Any]]] = [
            lambda: parity(lora, blocks, "PEFT"),
            lambda: parity(arm(method="full", learning_rate=1e-3), blocks, "transformers"),
            lambda: independence(blocks),
            lambda: speed(blocks),
            start_up,
        ]
        if "--skip-demo" not in sys.argv:
            measurements.append(demo)
        write("spine", [measure() for measure in measurements])


if __name__ == "__main__":
    main()
