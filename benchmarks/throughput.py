"""Training speed at the 30M shape on one GPU: a full arm, and sixteen LoRA arms of mixed ranks.

Usage: python benchmarks/throughput.py, on a machine with a GPU; writes
benchmarks/results/throughput.json. Random weights at the shape of english-30m, random tokens.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurements import row, write
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.data.blocks import Blocks
from paretune.model.load import load_shape
from paretune.model.shape import model_shape
from paretune.model.trainee import full_arm, lora_cohort
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Span, resolve
from paretune.train.trainer import Trainer

DEVICE = torch.device("cuda")
BATCH, LENGTH, VOCABULARY = 32, 512, 8192
SHAPE = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=8,
    num_attention_heads=8,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
)


def arm(**settings: Any) -> ArmConfig:
    """An arm with a constant rate."""
    return ArmConfig.model_validate({"schedule": "constant", **settings})


def measure(name: str, arms: list[ArmConfig], folder: Path, steps: int) -> list[dict[str, Any]]:
    """Tokens per second over some steps after three to warm up, and peak memory."""
    base, blocks = Base(name=str(folder)), Blocks(folder, "cpt")
    full = arms[0].method == "full"
    trainee = full_arm(base, arms[0], DEVICE) if full else lora_cohort(base, arms, DEVICE)
    trainer = Trainer(trainee, blocks, BATCH)
    trainer.fit_memory(model_shape(load_shape(base)))
    span = Span(BATCH * LENGTH, blocks.count // BATCH)
    schedules = [resolve(a.schedule, span, total=100, warmup_total=100) for a in trainee.arms]
    for t in range(3):
        trainer.step(t, schedules)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for t in range(3, 3 + steps):
        trainer.step(t, schedules)
    torch.cuda.synchronize()
    rate = steps * len(arms) * BATCH * LENGTH / (time.perf_counter() - started)
    device = torch.cuda.get_device_name(DEVICE)
    peak = torch.cuda.max_memory_allocated(DEVICE) / 2**30
    work, goal = "30M shape, batch 32 x 512", "no target in this version"
    return [
        row(name, work, "tokens/s in all", our_value=rate, goal=goal, device=device),
        row(f"{name}: memory", work, "GiB at the peak", our_value=peak, goal=goal, device=device),
    ]


def main() -> None:
    """Measure both and write the rows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        LlamaForCausalLM(SHAPE).save_pretrained(folder)
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (512, LENGTH), dtype=np.uint16)
        np.save(folder / "tokens.npy", tokens)
        full = [arm(method="full", learning_rate=1e-4)]
        lora = [
            arm(method="lora", rank=rank, learning_rate=rate)
            for rank in (4, 16, 64, 256)
            for rate in (3e-4, 1e-3, 3e-3, 1e-2)
        ]
        rows = measure("one full arm", full, folder, 20)
        torch.cuda.empty_cache()
        rows += measure("16 LoRA arms of ranks 4 to 256", lora, folder, 8)
    write("throughput", rows)


if __name__ == "__main__":
    main()
