"""The memory and time model: its terms against counts by hand, and how cohorts are sized by it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from paretune.model.layers import linear_layers
from paretune.model.shape import model_shape
from paretune.study.arms import ArmConfig
from paretune.study.memory import Workload, cohort_bytes, rows_that_fit
from paretune.study.plan import cohorts, make_plan
from paretune.study.shapes import Batch, Machine, ModelShape

GIB = 2**30
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cohort.json"
H200 = Machine("H200", 140 * GIB, 790e12, 4.3e12, "cuda")


def llama(width: int, inner: int, blocks: int, kv_heads: int, tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=width // 128,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def lora(rank: int, rate: float) -> ArmConfig:
    return ArmConfig.model_validate({"method": "lora", "rank": rank, "learning_rate": rate})


def test_shape_counts_what_the_backward_pass_needs() -> None:
    model = llama(3072, 8192, 28, 8, tied=True)
    shape = model_shape(model)
    matrices = 3072 * (3072 + 1024 + 1024 + 3072) + 3 * 3072 * 8192
    assert shape.matrices == 28 * matrices
    assert shape.parameters == 28 * (matrices + 2 * 3072) + 128_256 * 3072 + 3072
    # Outputs of q, k, v, o, gate, up, down; inputs of q (k and v share it), o, gate (and up), down
    outputs = 3072 + 2 * 1024 + 3072 + 2 * 8192 + 3072
    assert shape.outputs == 28 * outputs
    assert shape.kept == 28 * (outputs + 3 * 3072 + 8192)
    assert shape.widest * 28 == shape.kept
    assert (shape.layers, shape.blocks) == (28 * 7, 28)
    assert shape.attended == 28 * 3072


def test_shape_of_a_model_of_another_family() -> None:
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=100))
    shape = model_shape(model)
    # c_attn (64 to 192), c_proj, c_fc (64 to 256), c_proj (256 to 64): no input is shared
    assert shape.kept == 3 * ((192 + 64 + 256 + 64) + (64 + 64 + 64 + 256))
    assert shape.matrices == 3 * (64 * 192 + 64 * 64 + 2 * 64 * 256)


def test_a_model_of_one_layer_is_one_block() -> None:
    """Nothing repeats in it; it can be planned, and sharded, all the same."""
    shape = model_shape(llama(256, 512, 1, 2, tied=True))
    assert (shape.blocks, shape.attended, shape.widest) == (1, 256, shape.kept)
    arm = lora(4, 1e-3)
    found = Workload(shape, Batch(2, 64), H200, devices_per_cohort=2).sharding([arm], {arm.id: 9})
    assert found is not None
    assert found.devices == 2


def test_memory_of_a_full_arm_is_sixteen_bytes_a_parameter_and_what_a_row_keeps() -> None:
    shape = model_shape(llama(3072, 8192, 28, 8, tied=True))
    arm = ArmConfig.model_validate({"method": "full", "learning_rate": 1e-5})
    trained = {arm.id: shape.parameters}
    one, two = (
        cohort_bytes(shape, [arm], trained, Batch(rows, 1024), rows, "cuda") for rows in (16, 32)
    )
    # Twice the rows cost what the rows keep: two bytes of each value that a linear layer gives or
    # that enters an attention's output layer, and the float32 residual stream
    block = 2 * (shape.outputs + 28 * 3072) + 4 * 3072 * 28
    extra = (two - one) / (16 * 1024)
    assert block <= extra <= 1.02 * block
    assert 0 < one - 16 * shape.parameters - 16 * 1024 * block < 8 * GIB
    # Gradients of several pieces are summed in float32
    pieces = cohort_bytes(shape, [arm], trained, Batch(32, 1024), 16, "cuda")
    assert pieces - one == 4 * shape.matrices


def test_what_is_not_compiled_keeps_what_linear_layers_take_too() -> None:
    """Twice over, as on a CPU: eager code keeps as much again for what lies between them."""
    model = llama(1024, 2048, 4, 8, tied=True)
    compiled, quantised = model_shape(model), model_shape(model, quantised=True)
    one = model_shape(llama(1024, 2048, 1, 8, tied=True))
    assert (compiled.eager, quantised.eager, one.eager) == (False, True, True)
    full, dropping = (
        ArmConfig.model_validate({"method": "full", "learning_rate": 1e-5, **settings})
        for settings in ({}, {"attention_dropout": 0.1})
    )

    def taken(shape: ModelShape, arm: ArmConfig, *, checkpoint: bool = False) -> int:
        trained, batch = {arm.id: 1000}, Batch(1, 512)
        return cohort_bytes(shape, [arm], trained, batch, 1, "cuda", checkpoint=checkpoint)

    more = 2 * 512 * (2 * compiled.kept - compiled.outputs - compiled.attended)
    assert taken(quantised, lora(4, 1e-3)) - taken(compiled, lora(4, 1e-3)) == more
    assert taken(compiled, dropping) - taken(compiled, full) == more
    again = [taken(compiled, arm, checkpoint=True) for arm in (dropping, full)]
    assert again[0] - again[1] == 2 * 512 * compiled.widest


def test_cohorts_are_filled_to_the_device_and_no_further() -> None:
    shape = model_shape(llama(3072, 8192, 28, 8, tied=True))
    sides = 28 * (4 * 3072 + 2 * 3072 + 2 * (3072 + 1024) - 2 * 3072 + 3 * (3072 + 8192))
    arms = [lora(64, 1e-4 * (1 + i)) for i in range(40)]
    trained = {arm.id: 64 * sides for arm in arms}
    work = Workload(shape, Batch(4, 1024), H200)
    groups = cohorts(arms, trained, work)
    assert sum(map(len, groups)) == 40
    assert len(groups) > 1
    for group in groups:
        assert work.bytes(group, trained) <= 0.92 * H200.memory
    full = groups[0]
    assert not work.rows([*full, groups[1][0]], trained)
    plan = make_plan(groups, trained, work, steps=100, budgets=2)
    assert plan.trained_tokens == 40 * 100 * 4 * 1024
    # 4 N FLOPs a token can be done no faster than the device does them
    least = 4 * (shape.matrices + 128_256 * 3072) * plan.trained_tokens / H200.flops
    assert least < plan.seconds < 3 * least


def test_devices_that_a_full_arm_of_thirteen_billion_needs() -> None:
    """16 bytes a parameter: more than one H200 holds and less than two; a cohort needs one."""
    shape = model_shape(llama(5120, 13_824, 40, 40, tied=False))
    full = ArmConfig.model_validate({"method": "full", "learning_rate": 1e-5})
    adapter = lora(16, 1e-4)
    trained = {full.id: shape.parameters, adapter.id: 62_000_000}
    work = Workload(shape, Batch(4, 1024), H200)
    assert 16 * shape.parameters > H200.memory
    assert not work.rows([full], trained)
    assert work.devices([full], trained) == 2
    assert work.devices([adapter], trained) == 1
    small = Workload(shape, Batch(4, 1024), Machine("A100", 40 * GIB, 312e12, 1.5e12, "cuda"))
    count = small.devices([full], trained)
    assert 16 * shape.parameters / count < 0.92 * 40 * GIB
    assert count <= 9, "and not many more than the weights alone ask for"
    tiny = Workload(shape, Batch(4, 1024), Machine("small", GIB, 1e12, 1e11, "cuda"))
    assert tiny.devices([full], trained) == 0


SHAPES = {
    # vocabulary, width, inner width, blocks, heads, key-value heads, tied, of the models named
    "7B shape (Llama-2)": (32_000, 4096, 11_008, 32, 32, 32, False),
    "3B shape (Llama-3.2)": (128_256, 3072, 8192, 28, 24, 8, True),
    "1B shape (Llama-3.2)": (128_256, 2048, 8192, 16, 32, 8, True),
    "0.1B shape (SmolLM)": (49_152, 576, 1536, 30, 9, 3, True),
}


# Measured as blocks are compiled now; and the work that the other rows would call it. The others
# were measured when compiled blocks kept what linear layers take, too
BOTH = {
    "LoRA, one arm, both: memory": "7B shape (Llama-2), rank 16, 1 x 1 x 4096",
    "LoRA, 16 arms, both: memory": "3B shape (Llama-3.2), rank 32, 16 x 4 x 256",
    "full finetuning, both: memory": "3B shape (Llama-3.2), float32 masters, 1 x 4096",
}
# The first day of the other rows that are measured so
SINCE = "2026-11-28"


def test_predicted_peaks_are_those_that_were_measured() -> None:
    """Within 10% of what a GPU's allocator counted, on every configuration in the results."""
    compared = 0
    for row in json.loads(RESULTS.read_text()):
        work = BOTH.get(row["name"], row["work"])
        found = re.fullmatch(r"(.* shape \(.*\)), rank (\d+), (\d+) x (\d+) x (\d+)", work)
        full = re.fullmatch(r"(.* shape \(.*\)), float32 masters, (\d+) x (\d+)", work)
        present = row["name"] in BOTH or row["date"] >= SINCE
        if row["unit"] != "GiB at the peak" or not (found or full):
            continue
        name, *numbers = (found or full).groups()  # type: ignore[union-attr]
        vocabulary, width, inner, blocks, heads, kv_heads, tied = SHAPES[name]
        settings = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=tied,
        )
        with torch.device("meta"):
            model = LlamaForCausalLM(settings)
        shape = model_shape(model)
        if not present:
            shape = replace(shape, outputs=shape.kept - shape.attended)
        if found:
            rank, count, rows, length = map(int, numbers)
            arms = [lora(rank, 1e-4 * (1 + i)) for i in range(count)]
            sides = sum(x.d_in + x.d_out for x in linear_layers(model).values())
            trained = {arm.id: rank * sides for arm in arms}
        else:
            rows, length = map(int, numbers)
            arms = [ArmConfig.model_validate({"method": "full", "learning_rate": 1e-5})]
            trained = {arms[0].id: shape.parameters}
        expected = cohort_bytes(shape, arms, trained, Batch(rows, length), rows, "cuda") / GIB
        assert expected == pytest.approx(row["our_value"], rel=0.1), row["name"]
        compared += 1
    assert compared >= 5 + len(BOTH)


@pytest.mark.parametrize("rows", [1, 6, 7])
def test_pieces_share_one_shape(rows: int) -> None:
    shape = model_shape(llama(1024, 2048, 4, 8, tied=True))
    arm = lora(4, 1e-3)
    batch = Batch(rows, 512)
    whole = cohort_bytes(shape, [arm], {arm.id: 1000}, batch, rows, "cuda")
    assert rows_that_fit(shape, [arm], {arm.id: 1000}, batch, whole, "cuda") == rows
    found = rows_that_fit(shape, [arm], {arm.id: 1000}, batch, whole - 1, "cuda")
    assert found == {1: 0, 6: 3, 7: 1}[rows]
