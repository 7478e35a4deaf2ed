"""Started by torchrun: trains sharded, and writes losses; see test_sharded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from paretune.data.blocks import Blocks
from paretune.model.trainee import lora_cohort
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Span, resolve
from paretune.train.sharded import ShardedCohort, ShardedFull, process_group
from paretune.train.sharded_state import load_sharded, save_sharded


def main() -> None:
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    arms = [ArmConfig.model_validate(arm) for arm in given["arms"]]
    base, blocks = Base(name=given["base"]), Blocks(Path(given["blocks"]), "cpt")
    span = Span(given["batch"] * blocks.block_length, 1)
    with process_group("cpu") as device:
        losses: list[list[float]] = []
        settings = {"recompute": given["recompute"], "offload": given["offload"]}
        trainer: ShardedFull | ShardedCohort
        if arms[0].method == "full":
            trainer = ShardedFull(base, arms[0], blocks, given["batch"], device, **settings)
        else:
            cohort = lora_cohort(base, arms, device)
            trainer = ShardedCohort(cohort, blocks, given["batch"], **settings)
            arms = cohort.arms
        plans = [resolve(a.schedule, span, total=20, warmup_total=20) for a in arms]
        if given["load"]:
            load_sharded(Path(given["load"]), trainer)
        for t in range(given["first"], given["stop"]):
            if isinstance(trainer, ShardedFull):
                losses.append([trainer.step(t, plans[0])[0]])
            else:
                trainer.step(t, plans)
        if isinstance(trainer, ShardedCohort):
            curves = trainer.curve()
            losses = [[row["loss"] for row in rows] for rows in zip(*curves, strict=True)]
        if given["save"]:
            save_sharded(Path(given["save"]), trainer)
        if dist.get_rank() == 0:
            Path(given["out"]).write_text(json.dumps(losses))


main()
