"""What a sharded cohort takes of each device: against counts by hand, and how it is chosen."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.model.shape import model_shape
from paretune.study.arms import ArmConfig
from paretune.study.memory import Workload
from paretune.study.plan import cohorts, make_plan
from paretune.study.shapes import Batch, Machine, ModelShape
from paretune.study.sharding import sharding

GIB = 2**30
H100 = Machine("H100", 80 * GIB, 790e12, 3.3e12, "cuda", devices=4)
FULL = ArmConfig.model_validate({"method": "full", "learning_rate": 1e-5})


@pytest.fixture(scope="module")
def thirteen() -> ModelShape:
    """Llama-2-13B's shape."""
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=5120,
        intermediate_size=13_824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return model_shape(LlamaForCausalLM(config))


def adapters(count: int) -> list[ArmConfig]:
    return [
        ArmConfig.model_validate({"method": "lora", "rank": 16, "learning_rate": 1e-4 * (1 + i)})
        for i in range(count)
    ]


def test_a_full_arm_divides_sixteen_bytes_a_parameter(thirteen: ModelShape) -> None:
    count = thirteen.parameters
    assert count == 13_015_864_320, "Llama-2-13B's own count"
    batch, trained = Batch(4, 1024), {FULL.id: count}
    four = sharding(thirteen, [FULL], trained, batch, "cuda", 4)
    assert (four.weights, four.gradients, four.states) == (count, count, 2 * count)
    # Two blocks, embedding and head in bf16; and the gradient of the largest in bf16 and float32
    block = 4 * 5120**2 + 3 * 5120 * 13_824
    outside = 2 * 32_000 * 5120 + (2 * 40 + 1) * 5120
    assert four.gathered == 2 * (2 * block + outside) + 6 * max(block, outside)
    assert four.host == 0
    # Recomputed: what enters each block, and one block's own; logits in bf16 with their gradient,
    # and the loss's in float32
    kept = 1024 * (40 * 5120 + 2 * thirteen.widest)
    assert four.activations == 2 * kept + 12 * 1024 * 32_000
    assert sharding(thirteen, [FULL], trained, batch, "cuda", 8).weights == count // 2
    off = sharding(thirteen, [FULL], trained, batch, "cuda", 4, offload=True)
    assert (off.weights, off.gradients, off.states, off.host) == (0, 0, 0, 16 * count)
    lion = FULL.model_copy(update={"optimizer": "lion"})
    assert sharding(thirteen, [lion], {lion.id: count}, batch, "cuda", 4).states == count


def test_a_lora_cohort_divides_its_base_and_keeps_its_adapters(thirteen: ModelShape) -> None:
    arms = adapters(3)
    trained = {arm.id: 62_000_000 for arm in arms}
    two = sharding(thirteen, arms, trained, Batch(4, 1024), "cuda", 2)
    # Masters and bf16 copies, gradients, two moments: whole on every device
    assert two.weights == thirteen.parameters + 6 * 3 * 62_000_000
    assert (two.gradients, two.states) == (4 * 186_000_000, 8 * 186_000_000)


def test_the_fewest_devices_that_have_room_are_taken(thirteen: ModelShape) -> None:
    trained = {FULL.id: thirteen.parameters}
    work = Workload(thirteen, Batch(4, 1024), H100)
    found = work.sharding([FULL], trained)
    assert found is not None
    assert found.devices == work.devices([FULL], trained) == 3
    assert found.memory <= 0.92 * H100.memory
    two = sharding(thirteen, [FULL], trained, Batch(4, 1024), "cuda", 2)
    assert two.memory > 0.92 * H100.memory, "recomputed, one row at a time"
    offloaded = Workload(thirteen, Batch(4, 1024), H100, offload=True).sharding([FULL], trained)
    assert offloaded is not None
    assert (offloaded.devices, offloaded.host) == (1, 16 * thirteen.parameters)
    small = Machine("small", 2 * GIB, 1e12, 1e11, "cuda")
    nowhere = Workload(thirteen, Batch(4, 1024), small).sharding([FULL], trained)
    assert nowhere is not None
    assert nowhere.devices == 0


def test_activations_are_kept_where_they_fit(thirteen: ModelShape) -> None:
    trained = {FULL.id: thirteen.parameters}
    few = Workload(thirteen, Batch(8, 1024), H100, devices_per_cohort=4).sharding([FULL], trained)
    many = Workload(thirteen, Batch(8, 1024), H100, devices_per_cohort=8).sharding([FULL], trained)
    assert few is not None
    assert many is not None
    assert not many.recompute
    assert many.rows == 1, "eight devices have a row each"
    whole = sharding(
        thirteen, [FULL], trained, Batch(8, 1024), "cuda", 4, rows=few.rows, recompute=few.recompute
    )
    assert few == whole


def test_adapters_over_a_base_that_is_sharded_anyway_train_together(thirteen: ModelShape) -> None:
    arms = adapters(5)
    trained = {arm.id: 62_000_000 for arm in arms}
    card = Machine("24 GB", 24 * 10**9, 150e12, 1e12, "cuda", devices=4)
    work = Workload(thirteen, Batch(4, 1024), card)
    groups = cohorts(arms, trained, work)
    assert len(groups[0]) > 1
    plan = make_plan(groups, trained, work, steps=10, budgets=1)
    for cohort in plan.cohorts:
        assert 1 < cohort.devices <= 4
        assert cohort.memory <= 0.92 * card.memory


def test_what_one_device_holds_is_not_sharded_unless_the_study_says_so(
    thirteen: ModelShape,
) -> None:
    (arm,) = adapters(1)
    trained = {arm.id: 62_000_000}
    plain = Workload(thirteen, Batch(4, 1024), H100)
    assert plain.sharding([arm], trained) is None
    assert plain.base_sharding() is None
    forced = Workload(thirteen, Batch(4, 1024), H100, devices_per_cohort=2)
    for found in (forced.sharding([arm], trained), forced.base_sharding()):
        assert found is not None
        assert found.devices == 2
    one = Workload(thirteen, Batch(4, 1024), H100, devices_per_cohort=1)
    assert one.sharding([arm], trained) is None
