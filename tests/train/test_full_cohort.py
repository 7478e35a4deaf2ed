"""Several full arms in one cohort equal each arm alone, and plain transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from plain_loop import on_blocks, plain_losses
from torch._dynamo.utils import counters
from train_helpers import BATCH, CPU, arm, equal_each_alone, train
from transformers import AutoModelForCausalLM

from paretune.data.blocks import Blocks
from paretune.model.full_cohort import full_cohort
from paretune.model.regions import Compiler
from paretune.study.config import Base
from paretune.study.memory import SHARE, Workload, cohort_bytes
from paretune.study.plan import SMALL_BASE, cohorts
from paretune.study.shapes import Batch, Machine, ModelShape
from paretune.train.piece import PieceRunner
from paretune.train.schedule import Span, resolve
from paretune.train.trainer import Trainer

ARMS = [
    arm(method="full", learning_rate=3e-3, weight_decay=0.1),
    arm(method="full", learning_rate=1e-3, seed=2),
    arm(method="full", learning_rate=1e-4, optimizer="lion"),
    arm(method="full", learning_rate=1e-2, clip=0.1),
]


@pytest.mark.parametrize("arms_per_pass", [1, 3])
@pytest.mark.parametrize("which", ["tiny_base", "tiny_gpt2"])
def test_full_arms_in_a_cohort_equal_each_alone(
    which: str, arms_per_pass: int, text_blocks: Blocks, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    equal_each_alone(base, ARMS, text_blocks, 15, arms_per_pass=arms_per_pass, tolerance=1e-4)


@pytest.mark.parametrize("which", ["tiny_base", "tiny_gpt2"])
def test_full_arms_in_one_pass_equal_transformers(
    which: str, text_blocks: Blocks, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    cosine = {"schedule": {"shape": "cosine", "warmup": "10%"}, "weight_decay": 0.1}
    rates = (3e-3, 1e-3)
    arms = [arm(method="full", learning_rate=rate, **cosine) for rate in rates]
    _, losses = train(base, arms, text_blocks, 50, arms_per_pass=2)
    for one, rate in zip(arms, rates, strict=True):
        model = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32).eval()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1)
        expected = plain_losses(on_blocks(model, text_blocks), optimizer, 50, cosine=True)
        np.testing.assert_allclose(losses[one.id], expected, rtol=1e-5)
        assert expected[-1] < 0.95 * expected[0], "means little if nothing is learned"


def test_a_diverging_full_arm_hurts_nobody(tiny_base: Base, text_blocks: Blocks) -> None:
    wild = arm(method="full", learning_rate=1e4)
    together, losses = train(tiny_base, [*ARMS[:2], wild], text_blocks, 30, arms_per_pass=3)
    position = [a.id for a in together.trainee.arms].index(wild.id)
    assert set(together.divergence.verdicts()) == {position}
    for one in ARMS[:2]:
        _, own = train(tiny_base, [one], text_blocks, 30)
        np.testing.assert_allclose(losses[one.id], own[one.id], rtol=1e-5)


def test_a_restart_gives_the_bases_weights_again(tiny_base: Base, text_blocks: Blocks) -> None:
    trainer, _ = train(tiny_base, ARMS, text_blocks, 3, arms_per_pass=4)
    trainer.restart()
    model = AutoModelForCausalLM.from_pretrained(tiny_base.name, dtype=torch.float32)
    for position in range(len(ARMS)):
        for name, value in model.named_parameters():
            assert torch.equal(trainer.weights(position)[name], value.detach())
    view = trainer.trainee.view(trainer.trainee.passes[0])
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        for logits in view.logits(ids):
            torch.testing.assert_close(logits, model.eval()(ids).logits)


def test_compiled_full_cohort_equals_eager_and_is_compiled_once(
    tiny_base: Base, text_blocks: Blocks
) -> None:
    arms = [one for one in ARMS if one.optimizer == "adamw"]

    def losses(backend: str) -> np.ndarray:
        trainer = Trainer(full_cohort(tiny_base, arms, CPU, arms_per_pass=3), text_blocks, BATCH)
        trainer.runner = PieceRunner(trainer.trainee, compiler=Compiler(backend))
        span = Span(BATCH * text_blocks.block_length, text_blocks.count // BATCH)
        schedules = [resolve(a.schedule, span, total=5, warmup_total=5) for a in arms]
        for t in range(5):
            trainer.step(t, schedules)
        return np.array([[row["loss"] for row in rows] for rows in trainer.curve()])

    eager = losses("none")
    torch._dynamo.reset()
    counters.clear()
    np.testing.assert_allclose(losses("aot_eager"), eager, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1, "one graph for all blocks and all steps"
    assert not counters["graph_break"]


def test_full_arms_share_a_cohort_where_it_pays_and_fits() -> None:
    arms = [arm(method="full", learning_rate=rate) for rate in (1e-4, 2e-4, 3e-4, 4e-4)]
    dropped = arm(method="full", attention_dropout=0.1)
    trained = {one.id: 100_000_000 for one in [*arms, dropped]}
    shape = ModelShape(100_000_000, 80_000_000, 32_000, 512, 84, 12, 60_000, 100_000, 8_000, 6_144)
    batch = Batch(4, 256)
    room = cohort_bytes(shape, arms[:3], trained, batch, 1, "cuda") / SHARE["cuda"]
    gpu = Machine("a GPU for three", int(room) + 1, 1e14, kind="cuda")

    def groups(sizes: dict[str, int], **settings: Any) -> list[int]:
        work = Workload(shape, batch, gpu, **settings)
        return [len(group) for group in cohorts([*arms, dropped], sizes, work)]

    assert groups(trained) == [1, 1, 1, 1, 1], "not where the base cannot carry them"
    assert groups(trained, full_together=True) == [3, 1, 1]
    large = dict.fromkeys(trained, SMALL_BASE + 1)
    assert groups(large, full_together=True) == [1, 1, 1, 1, 1], "one arm fills the device"
