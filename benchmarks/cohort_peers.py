"""What users run today, timed on the same weights and tokens: PEFT and transformers, one arm."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import peft
import torch
from claims import DEVICE, wait
from cohort_models import random_model

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step


@dataclass
class Timing:
    """Steps that were run: seconds of one, peak memory and what was predicted of it in bytes."""

    seconds: float
    memory: int
    losses: list[float]
    note: str = ""
    predicted: float = 0.0


def timed(step: Callable[[int], torch.Tensor], warm: int, steps: int) -> Timing:
    """Time ``steps`` steps after ``warm``; losses are read at the end."""
    losses = [step(t) for t in range(warm)]
    wait()
    started = time.perf_counter()
    losses += [step(t) for t in range(warm, warm + steps)]
    wait()
    seconds = (time.perf_counter() - started) / steps
    memory = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
    return Timing(seconds, memory, [float(loss) for loss in losses])


def peft_loop(
    shape: str,
    rank: int,
    start: Mapping[str, torch.Tensor],
    blocks: Blocks,
    batch: int,
    *,
    rate: float,
    autocast: bool,
    warm: int,
    steps: int,
) -> Timing:
    """One LoRA arm over a bf16 base, eager: PEFT's own model, fused AdamW, clipping at 1.

    Args:
        start: our arm's initial factors, so that losses can be compared.
        autocast: as ``bf16=True`` of transformers' Trainer; adapters are float32 either way.
    """
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    base = random_model(shape, dtype, DEVICE)
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, value in start.items():
            layer, _, part = name.rpartition(".")
            module = model.get_submodule(f"base_model.model.{layer}")
            getattr(module, f"lora_{part}")["default"].weight.copy_(value.T)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return _loop(model, parameters, blocks, batch, rate, autocast, warm, steps)


def transformers_loop(
    shape: str,
    blocks: Blocks,
    batch: int,
    *,
    rate: float,
    warm: int,
    steps: int,
) -> Timing:
    """Full finetuning of float32 weights under autocast, as transformers' Trainer does it."""
    model = random_model(shape, torch.float32, DEVICE).requires_grad_(True)
    parameters = list(model.parameters())
    return _loop(model, parameters, blocks, batch, rate, True, warm, steps)


def _loop(
    model: Any,
    parameters: list[torch.Tensor],
    blocks: Blocks,
    batch: int,
    rate: float,
    autocast: bool,
    warm: int,
    steps: int,
) -> Timing:
    cuda = DEVICE.type == "cuda"
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=cuda)

    def step(t: int) -> torch.Tensor:
        rows = rows_for_step(blocks.count, batch, t, 0)
        ids = blocks.batch(rows).input_ids.to(DEVICE)
        with torch.autocast("cuda", torch.bfloat16) if autocast and cuda else nullcontext():
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return timed(step, warm, steps)
