"""FSDP2 over gloo: two processes train as one does, and their state serves one and four."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paretune.data.blocks import Blocks
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import full_arm
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Span, resolve
from paretune.train.trainer import Trainer

PROGRAM = Path(__file__).with_name("sharded_program.py")
STEPS, HALF, BATCH = 12, 6, 6
SCHEDULE = {"shape": "constant", "warmup": "10%"}
FULL = [{"method": "full", "learning_rate": 3e-3, "weight_decay": 0.1, "schedule": SCHEDULE}]
LORA = [
    {
        "method": "lora",
        "rank": rank,
        "learning_rate": 1e-2,
        "lora_dropout": 0.1,
        "schedule": SCHEDULE,
    }
    for rank in (2, 4)
]


def alone(base: Base, arms: list[dict[str, Any]], blocks: Blocks) -> np.ndarray:
    """Losses [steps, arms] of the ordinary trainer in this process."""
    configs = [ArmConfig.model_validate(arm) for arm in arms]
    cpu = torch.device("cpu")
    full = configs[0].method == "full"
    trainee = full_arm(base, configs[0], cpu) if full else lora_cohort(base, configs, cpu)
    trainer = Trainer(trainee, blocks, BATCH)
    span = Span(BATCH * blocks.block_length, 1)
    plans = [resolve(a.schedule, span, total=20, warmup_total=20) for a in trainee.arms]
    for t in range(STEPS):
        trainer.step(t, plans)
    return np.array([[row["loss"] for row in rows] for rows in trainer.curve()]).T


def together(
    tmp_path: Path, base: Base, arms: list[dict[str, Any]], blocks: Blocks, processes: int,
    first: int, stop: int, *, load: str = "", save: str = "", **settings: bool,
) -> np.ndarray:  # fmt: skip
    """The same losses by ``processes`` processes that torchrun starts."""
    given = {
        "arms": arms, "base": base.name, "batch": BATCH,
        "blocks": str(Path(blocks._tokens.filename).parent),
        "first": first, "stop": stop, "load": load, "save": save, "out": str(tmp_path / "losses"),
        "recompute": False, "offload": False, "rows": None, **settings,
    }  # fmt: skip
    (tmp_path / "given.json").write_text(json.dumps(given))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr"]
    command += ["127.0.0.1", "--nproc-per-node", str(processes), str(PROGRAM)]
    done = subprocess.run(
        [*command, str(tmp_path / "given.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[:6000]
    return np.array(json.loads((tmp_path / "losses").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("arms", [FULL, LORA], ids=["full", "lora"])
def test_two_processes_train_as_one_and_their_state_serves_one_and_four(
    tmp_path: Path, tiny_base: Base, text_blocks: Blocks, arms: list[dict[str, Any]]
) -> None:
    expected = alone(tiny_base, arms, text_blocks)
    state = str(tmp_path / "state")
    half = together(tmp_path, tiny_base, arms, text_blocks, 2, 0, HALF, save=state)
    np.testing.assert_allclose(half, expected[:HALF], atol=1e-5)
    assert expected[0].mean() - expected[-1].mean() > 0.1, "it does learn"
    for processes in (1, 4):
        rest = together(tmp_path, tiny_base, arms, text_blocks, processes, HALF, STEPS, load=state)
        np.testing.assert_allclose(rest, expected[HALF:], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arms", [FULL, LORA], ids=["full", "lora"])
def test_recomputed_activations_and_offloaded_states_change_nothing(
    tmp_path: Path, tiny_base: Base, text_blocks: Blocks, arms: list[dict[str, Any]]
) -> None:
    expected = alone(tiny_base, arms, text_blocks)[:4]
    settings = {"recompute": True, "offload": True}
    found = together(tmp_path, tiny_base, arms, text_blocks, 2, 0, 4, **settings)
    np.testing.assert_allclose(found, expected, atol=1e-5)
