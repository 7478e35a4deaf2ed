"""Compiled blocks compute what eager code computes, and are compiled once for all blocks and steps.

Where there is no GPU the tracing half of the compiler runs alone: graph breaks, guards and the
derivatives of the operators are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from train_helpers import BATCH, CPU, arm, lora
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from paretune.data.blocks import Blocks
from paretune.data.blocks import positions as positions_of
from paretune.model.attention import attending, block_diagonal, can_attend, segment_bounds
from paretune.model.compilation import repeated_blocks
from paretune.model.lora_cohort import lora_cohort
from paretune.model.regions import Compiler
from paretune.model.trainee import Trainee, full_arm
from paretune.study.config import Base
from paretune.train.piece import PieceRunner
from paretune.train.schedule import Resolved, Span, resolve
from paretune.train.trainer import Trainer

MIXED = [
    lora(2, 1e-3),
    lora(2, 1e-2, alpha=3),
    lora(8, 3e-3, targets="attention"),
    lora(4, 5e-3, lora_dropout=0.3),
]


def losses(trainee: Trainee, blocks: Blocks, backend: str, steps: int) -> np.ndarray:
    """Every step's loss of every arm."""
    trainer = Trainer(trainee, blocks, BATCH)
    trainer.runner = PieceRunner(trainee, compiler=Compiler(backend))
    span = Span(BATCH * blocks.block_length, blocks.count // BATCH)
    schedules = [resolve(a.schedule, span, total=steps, warmup_total=steps) for a in trainee.arms]
    for t in range(steps):
        trainer.step(t, schedules)
    return np.array([[row["loss"] for row in rows] for rows in trainer.curve()])


@pytest.mark.parametrize("which", ["tiny_base", "tiny_gpt2"])
def test_compiled_cohort_equals_eager_and_is_compiled_once(
    which: str, text_blocks: Blocks, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    eager = losses(lora_cohort(base, MIXED, CPU, arms_per_pass=4), text_blocks, "none", 6)
    torch._dynamo.reset()
    counters.clear()
    trainee = lora_cohort(base, MIXED, CPU, arms_per_pass=4)
    assert len(repeated_blocks(trainee.model)) > 1
    compiled = losses(trainee, text_blocks, "aot_eager", 6)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1, "one graph for all blocks and all steps"
    assert not counters["graph_break"]


@pytest.mark.parametrize("backend", ["none", "aot_eager"])
def test_checkpointed_blocks_keep_less_and_compute_the_same(
    backend: str, tiny_base: Base, text_blocks: Blocks
) -> None:
    def run(checkpoint: bool) -> tuple[np.ndarray, int]:
        trainee = lora_cohort(tiny_base, MIXED, CPU, arms_per_pass=4)
        trainee.checkpoint = checkpoint
        torch._dynamo.reset()
        kept: dict[int, torch.Tensor] = {}  # so that no other one gets its place in memory

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses(trainee, text_blocks, backend, 1)
        return losses(trainee, text_blocks, backend, 4), sum(each.numel() for each in kept.values())

    (whole, much), (again, little) = run(False), run(True)
    np.testing.assert_allclose(again, whole, rtol=1e-6)
    assert little < 0.7 * much


class NoForward(Compiler):
    """A compiler that cannot read the model."""

    def __call__(self, block: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Refuse."""
        raise RuntimeError("this operation is not known to me")


class NoBackward(Compiler):
    """A compiler that finds out only when gradients are half computed."""

    def __call__(self, block: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile the forward pass alone."""

        def refuse(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            raise RuntimeError("nor is its derivative")

        kind: Any = aot_autograd(fw_compiler=boxed_nop, bw_compiler=refuse)
        compiled: Callable[..., Any] = kind(block, list(inputs))
        return compiled


@pytest.mark.parametrize("compiler", [NoForward("own"), NoBackward("own")])
def test_a_model_that_cannot_be_compiled_trains_all_the_same(
    compiler: Compiler, tiny_base: Base, text_blocks: Blocks, caplog: pytest.LogCaptureFixture
) -> None:
    plain = losses(lora_cohort(tiny_base, MIXED, CPU, arms_per_pass=4), text_blocks, "none", 3)
    torch._dynamo.reset()
    trainer = Trainer(lora_cohort(tiny_base, MIXED, CPU, arms_per_pass=4), text_blocks, BATCH)
    trainer.runner = PieceRunner(trainer.trainee, compiler=compiler)
    span = Span(BATCH * text_blocks.block_length, text_blocks.count // BATCH)
    schedules = [resolve(a.schedule, span, total=3, warmup_total=3) for a in trainer.trainee.arms]
    for t in range(3):
        trainer.step(t, schedules)
    found = np.array([[row["loss"] for row in rows] for rows in trainer.curve()])
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    assert trainer.runner.without == ["compiled blocks"]
    assert "training goes on without compiled blocks" in caplog.text


def test_an_error_of_the_model_itself_is_not_swallowed(
    tiny_base: Base, text_blocks: Blocks
) -> None:
    trainer = Trainer(lora_cohort(tiny_base, MIXED[:1], CPU), text_blocks, BATCH)

    def fail(*arguments: object) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    trainer.runner.run = fail  # type: ignore[method-assign,assignment]
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0)]
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.step(0, always)


def test_single_rows_that_do_not_fit_are_checkpointed(tiny_base: Base, text_blocks: Blocks) -> None:
    trainer = Trainer(lora_cohort(tiny_base, MIXED[:1], CPU), text_blocks, BATCH)
    real = trainer.runner.run

    def refuse(*arguments: Any) -> torch.Tensor:
        if not trainer.trainee.checkpoint:
            raise torch.OutOfMemoryError("out of memory (provoked)")
        return real(*arguments)

    trainer.runner.run = refuse  # type: ignore[method-assign]
    trainer.step(0, [Resolved("constant", 0, 10**6, 10**6, 0.0)])
    assert (trainer.trainee.rows, trainer.trainee.checkpoint) == (1, True)
    plain = losses(lora_cohort(tiny_base, MIXED[:1], CPU), text_blocks, "none", 1)
    np.testing.assert_allclose(trainer.curve()[0][0]["loss"], plain[0][0], rtol=1e-5)


def test_compiled_full_arm_equals_eager(tiny_base: Base, text_blocks: Blocks) -> None:
    own = arm(method="full", learning_rate=3e-3)
    eager = losses(full_arm(tiny_base, own, CPU), text_blocks, "none", 6)
    torch._dynamo.reset()
    counters.clear()
    compiled = losses(full_arm(tiny_base, own, CPU), text_blocks, "aot_eager", 6)
    np.testing.assert_allclose(compiled, eager, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_blocks_are_found_in_a_model_of_any_family(tiny_base: Base) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base.name)
    assert repeated_blocks(model) == list(model.model.layers)


@pytest.mark.parametrize("which", ["tiny_base", "tiny_gpt2"])
def test_attention_of_our_own_equals_transformers_and_masks(
    which: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    model = AutoModelForCausalLM.from_pretrained(base.name).eval()
    assert can_attend(model, CPU)
    ids = torch.arange(48).view(4, 12)
    segments = torch.tensor(
        [[1] * 12, [1] * 5 + [2] * 7, [1, 2, 3] * 1 + [4] * 6 + [0] * 3, [1] * 11 + [0]]
    )
    positions = torch.from_numpy(positions_of(segments.numpy()))
    mask = block_diagonal(segments, model)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, position_ids=positions).logits
        with attending(model):
            bounds = segment_bounds(segments, 4 * 6)
            got = model(ids, cu_seq_lens_q=bounds, position_ids=positions).logits
    # float32 itself rounds these logits by up to 1.5e-6; a wrong mask changes them by 3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_attention_is_recognised_under_autocast(tiny_base: Base) -> None:
    """bf16 rounds more than another attention would differ."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base.name).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert can_attend(model, CPU)


def test_sliding_windows_reach_the_kernel() -> None:
    settings = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=5,
    )
    model = MistralForCausalLM(settings).eval()
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        expected = model(ids).logits
        with attending(model):
            got = model(ids).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_attention_with_a_cap_is_left_to_its_model() -> None:
    settings = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_logit_softcapping=1e-3,
    )
    settings._attn_implementation = "eager"
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    assert not can_attend(model, CPU)
