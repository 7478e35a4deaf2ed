"""One process of sharded.py, started by torchrun: trains a full arm and writes what it measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cohort_models import BASE, config, random_model
from transformers import LlamaForCausalLM

from paretune.data.blocks import Blocks
from paretune.model import sharded
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.study.sharding import Sharding
from paretune.train.schedule import Resolved
from paretune.train.sharded import ShardedFull, process_group


def main() -> None:
    """Train, and write seconds a step, the peak of memory, and losses."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    plan = Sharding(**given["sharding"])
    arm = ArmConfig.model_validate(given["arm"])
    shape, always = given["shape"], [Resolved("constant", 0, 10**6, 10**6, 0.0)]
    with process_group(given["device"]) as device:

        def load(base: Base, on: torch.device, *, dtype: torch.dtype) -> Any:
            # Drawn on the device, where the run on one device draws them too
            return random_model(shape, dtype, device).cpu()

        def load_shape(base: Base) -> Any:
            with torch.device("meta"):
                return LlamaForCausalLM(config(shape))

        sharded.load_model, sharded.load_shape = load, load_shape
        trainee = sharded.sharded_full(
            BASE, arm, device, recompute=plan.recompute, offload=plan.offload
        )
        blocks = Blocks(Path(given["blocks"]), "cpt")
        trainer = ShardedFull(trainee, blocks, given["batch"], plan.rows, plan.memory)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        warm, steps = given["steps"]
        started = 0.0
        for t in range(warm + steps):
            if t == warm:
                dist.barrier()
                started = trainer.seconds_until_idle()
            trainer.step(t, always)
        seconds = (trainer.seconds_until_idle() - started) / steps
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        losses = [point["loss"] for point in trainer.curve()[0]]
        found = {"seconds": seconds, "peak": peak, "losses": losses}
        (Path(given["out"]) / f"{dist.get_rank()}.json").write_text(json.dumps(found))


main()
