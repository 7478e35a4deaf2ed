"""Instruction pairs of real lengths: our packed rows, and TRL's SFTTrainer with PEFT."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import torch
from claims import DEVICE, wait
from cohort_models import random_model
from cohort_peers import Timing

from paretune.data.blocks import Blocks
from paretune.data.pack import pack_pairs
from paretune.data.rows import Pair, RowCounts
from paretune.data.template import encode_pairs

FILES = ("nl2bash", "codegen_gpteacher")


def tokenizer(folder: Path) -> Any:
    """The tokenizer of english-30m; its 8,192 tokens are tokens of every shape here."""
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    end = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    found.eos_token = found.pad_token = end if isinstance(end, str) else end["content"]
    return found


def pairs(folder: Path, most: int) -> list[Pair]:
    """Prompts and responses of both files, in turn."""
    found = []
    for name in FILES:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for _, line in zip(range(most // 2), file, strict=False)]
        found.append([(row["prompt"], row["response"]) for row in rows])
    mixed = [pair for both in zip(*found, strict=False) for pair in both]
    return [Pair(str(i), str(i), prompt, response) for i, (prompt, response) in enumerate(mixed)]


def packed(folder: Path, chosen: list[Pair], tokens: Any, length: int) -> tuple[Blocks, float]:
    """Our rows of pairs, and the share of their positions that is text."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = RowCounts("pairs", 0.5)
    total = pack_pairs(chosen, tokens, "plain", folder, block_length=length, counts=counts)
    return Blocks(folder, "ift"), total["tokens"] / (total["blocks"] * length)


def trl_loop(
    shape: str,
    chosen: list[Pair],
    tokens: Any,
    *,
    packing: bool,
    length: int,
    batch: int,
    rank: int,
    rate: float,
    folder: Path,
    warm: int,
    steps: int,
) -> tuple[Timing, float]:
    """TRL's SFTTrainer: Liger's kernels, fused AdamW, bf16, no checkpointing; tokens a step too.

    Args:
        packing: best-fit rows without padding (TRL's ``bfd``), else padded batches of pairs of
            similar length.
        batch: rows, or pairs, in a batch.
    """
    import peft
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    cuda = DEVICE.type == "cuda"
    rows = []
    for prompt, response in encode_pairs(chosen, tokens, "plain"):
        if len(prompt) + len(response) <= length:
            mask = [0] * len(prompt) + [1] * len(response)
            rows.append({"input_ids": [*prompt, *response], "completion_mask": mask})
    dtype = torch.bfloat16 if cuda else torch.float32
    counted: list[int] = []
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if len(times) in (warm - 1, warm + steps - 1):
                wait()
            times.append(time.perf_counter())

    settings = SFTConfig(
        output_dir=str(folder),
        bf16=cuda,
        use_cpu=not cuda,
        packing=packing,
        max_length=length,
        use_liger_kernel=cuda,
        per_device_train_batch_size=batch,
        gradient_checkpointing=False,
        max_steps=warm + steps,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        learning_rate=rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="random" if packing else "group_by_length",
        disable_tqdm=True,
        seed=0,
    )
    trainer = SFTTrainer(
        model=random_model(shape, dtype, DEVICE),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokens,
        peft_config=peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
        callbacks=[Clock()],
    )
    collate = trainer.data_collator

    def counting(examples: Any) -> Any:
        out = collate(examples)
        mask = out.get("attention_mask")
        counted.append(int(mask.sum() if mask is not None else out["input_ids"].numel()))
        return out

    trainer.data_collator = counting
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = (times[warm + steps - 1] - times[warm - 1]) / steps
    memory = torch.cuda.max_memory_allocated() if cuda else 0
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return Timing(seconds, memory, losses), sum(counted[warm : warm + steps]) / steps
