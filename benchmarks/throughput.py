"""Training speed at the 30M shape on one GPU: a full arm, and sixteen LoRA arms of mixed ranks.

Usage: python benchmarks/throughput.py [--rows a,b] [--tiny] [--results DIR], on a machine with a
GPU; writes throughput.json. Random weights at the shape of english-30m, random tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import CARD, DEVICE, Claims, clear, wait
from measurements import row
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.data.blocks import Blocks
from paretune.model.load import load_shape
from paretune.model.lora_cohort import lora_cohort
from paretune.model.shape import model_shape
from paretune.model.trainee import full_arm
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Span, resolve
from paretune.train.trainer import Trainer

CLAIMS = Claims("throughput")
Rows = Iterator[dict[str, Any]]
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


def measure(name: str, arms: list[ArmConfig], steps: int) -> Rows:
    """Tokens per second over some steps after three to warm up, and peak memory."""
    batch, length, steps = (2, 16, 1) if CLAIMS.tiny else (BATCH, LENGTH, steps)
    arms = arms[:2] if CLAIMS.tiny else arms
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        LlamaForCausalLM(SHAPE).save_pretrained(folder)
        tokens = np.random.default_rng(0).integers(0, VOCABULARY, (512, length), dtype=np.uint16)
        np.save(folder / "tokens.npy", tokens)
        clear()
        base, blocks = Base(name=place), Blocks(folder, "cpt")
        full = arms[0].method == "full"
        trainee = full_arm(base, arms[0], DEVICE) if full else lora_cohort(base, arms, DEVICE)
        trainer = Trainer(trainee, blocks, batch)
        trainer.fit_memory(model_shape(load_shape(base)))
        span = Span(batch * length, blocks.count // batch)
        schedules = [resolve(a.schedule, span, total=100, warmup_total=100) for a in trainee.arms]
        for t in range(4):
            trainer.step(t, schedules)
        wait()
        started = time.perf_counter()
        for t in range(4, 4 + steps):
            trainer.step(t, schedules)
        wait()
        rate = steps * len(arms) * batch * length / (time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
    work, goal = f"30M shape, batch {BATCH} x {LENGTH}", "no target in this version"
    common: dict[str, Any] = {"goal": goal, "device": CARD}
    yield row(name, work, "tokens/s in all", our_value=rate, **common)
    yield row(f"{name}: memory", work, "GiB at the peak", our_value=peak, **common)


@CLAIMS
def one_full() -> Rows:
    """A full arm."""
    return measure("one full arm", [arm(method="full", learning_rate=1e-4)], 20)


@CLAIMS
def sixteen_lora() -> Rows:
    """Sixteen LoRA arms, four of each rank."""
    arms = [
        arm(method="lora", rank=rank, learning_rate=rate)
        for rank in (4, 16, 64, 256)
        for rate in (3e-4, 1e-3, 3e-3, 1e-2)
    ]
    return measure("16 LoRA arms of ranks 4 to 256", arms, 8)


if __name__ == "__main__":
    CLAIMS.main(__doc__)
