"""Arms that cannot be sharded, and machines with too few devices, are refused with the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from runner_helpers import study_text

from paretune import UserError
from paretune.runner.sharding import check_sharding
from paretune.study.arms import ArmConfig
from paretune.study.config import Study
from paretune.study.memory import Workload
from paretune.study.shapes import Batch, Machine, ModelShape
from paretune.study.yamlfile import parse_study

# About Llama-2-13B's
SHAPE = ModelShape(
    parameters=13_000_000_000,
    matrices=12_700_000_000,
    vocabulary=32_000,
    width=5120,
    layers=280,
    blocks=40,
    outputs=2_000_000,
    kept=4_000_000,
    widest=100_000,
    attended=204_800,
)


def of(folder: Path, arms: str) -> tuple[Study, list[list[ArmConfig]], dict[str, int]]:
    study = parse_study(study_text(folder, arms=arms), "study.yaml")
    trained = {
        arm.id: SHAPE.parameters if arm.method == "full" else 60_000_000 for arm in study.arms
    }
    return study, [[arm] for arm in study.arms], trained


def gpus(count: int, memory: float = 141e9) -> Workload:
    machine = Machine("H200", int(memory), 790e12, 4.3e12, "cuda", devices=count)
    return Workload(SHAPE, Batch(4, 1024), machine)


def test_too_few_devices(tmp_path: Path) -> None:
    study, groups, trained = of(tmp_path, "\n  - {method: full, learning_rate: 1e-5}\n")
    check_sharding(study, groups, trained, gpus(2))
    check_sharding(study, groups, trained, gpus(1), planning=True)
    with pytest.raises(UserError) as caught:
        check_sharding(study, groups, trained, gpus(1))
    text = str(caught.value)
    assert text.startswith("study.yaml, line 14: arms[0].method: H200 has 141 GB, and this takes 2")
    assert "weights 26 GB, gradients 26 GB, optimizer states 52 GB" in text
    assert "There is 1 here" in text
    with pytest.raises(UserError, match=r"no number of devices like H200 has room.*smaller blocks"):
        check_sharding(study, groups, trained, gpus(8, memory=2e9))


@pytest.mark.parametrize(
    ("setting", "name"),
    [("dora: true", "DoRA"), ("bias: all", "training biases"), ("init: pissa", "PiSSA")],
)
def test_variants_that_need_whole_weights(tmp_path: Path, setting: str, name: str) -> None:
    arms = f"\n  - {{method: lora, rank: 4, learning_rate: 1e-3, {setting}}}\n"
    study, groups, trained = of(tmp_path, arms)
    check_sharding(study, groups, trained, gpus(4))
    message = rf"arms\[0\]\.{setting.split(':')[0]}: {name} needs? whole weights, and one device "
    for planning in (False, True):
        with pytest.raises(UserError, match=message):
            check_sharding(study, groups, trained, gpus(4, memory=24e9), planning=planning)
