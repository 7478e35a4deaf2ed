"""Started by torchrun: trains sharded, and writes losses; see test_sharded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paretune.data.blocks import Blocks
from paretune.model.sharded import sharded_cohort, sharded_full
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Span, resolve
from paretune.train.sharded import ShardedCohort, ShardedFull, process_group
from paretune.train.state import intact, save_state, shards_of


def main() -> None:
    given: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    arms = [ArmConfig.model_validate(arm) for arm in given["arms"]]
    base, blocks = Base(name=given["base"]), Blocks(Path(given["blocks"]), "cpt")
    span = Span(given["batch"] * blocks.block_length, 1)
    with process_group("cpu") as device:
        settings = {"recompute": given["recompute"], "offload": given["offload"]}
        trainer: ShardedFull | ShardedCohort
        if arms[0].method == "full":
            trainee = sharded_full(base, arms[0], device, **settings)
            trainer = ShardedFull(trainee, blocks, given["batch"], given["rows"])
        else:
            trainee = sharded_cohort(base, arms, device, **settings)
            trainer = ShardedCohort(trainee, blocks, given["batch"])
        plans = [resolve(a.schedule, span, total=20, warmup_total=20) for a in trainee.arms]
        for position, arm in enumerate(trainee.arms):
            if given["load"]:
                folder = Path(given["load"]) / arm.id
                assert intact(folder, "main", given["first"])
                trainer.resume(position, folder, "main", given["first"])
        for t in range(given["first"], given["stop"]):
            trainer.step(t, plans)
        losses = [[row["loss"] for row in rows] for rows in zip(*trainer.curve(), strict=True)]
        for position, arm in enumerate(trainee.arms):
            if given["save"]:
                folder = Path(given["save"]) / arm.id
                sums = trainer.save_shards(position, shards_of(folder, "main", given["stop"]))
                if dist.get_rank() == 0:
                    tensors, watch = trainer.state(position)
                    save_state(folder, "main", given["stop"], tensors, watch, shards=sums)
        weights = [trainer.weights(position) for position in range(len(trainee.arms))]
        if dist.get_rank() == 0:
            Path(given["out"]).write_text(json.dumps(losses))
            torch.save(weights, given["out"] + ".weights")


main()
