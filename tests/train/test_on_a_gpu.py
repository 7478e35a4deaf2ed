"""What only a GPU can show: graphs, kernels of variable lengths, real refusals of memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pair_rows import colour_pairs, pair_blocks
from torch._dynamo.utils import counters
from train_helpers import BATCH, arm, go_on, lora, train

from paretune.data.blocks import Blocks
from paretune.model.attention import attend, block_diagonal, segment_bounds
from paretune.model.load import load_shape
from paretune.model.lora_cohort import lora_cohort
from paretune.model.regions import Compiler
from paretune.model.shape import model_shape
from paretune.model.trainee import full_arm
from paretune.study.config import Base
from paretune.train.piece import PieceRunner
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU = torch.device("cuda")
ARMS = [lora(4, 1e-3), lora(4, 3e-3), lora(16, 1e-3, lora_dropout=0.2)]


def trained(
    base: Base, blocks: Blocks, steps: int, compiler: Compiler | None = None, rows: int = BATCH
) -> tuple[Trainer, np.ndarray]:
    """A trainer after some steps, and every step's loss of every arm."""
    trainer = Trainer(lora_cohort(base, ARMS, GPU), blocks, BATCH)
    trainer.trainee.rows = rows
    if compiler:
        trainer.runner = PieceRunner(trainer.trainee, compiler=compiler)
        trainer._capacity = blocks.most_segments() if trainer.runner.attends else 0
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0)] * len(ARMS)
    for t in range(steps):
        trainer.step(t, always)
    return trainer, np.array([[row["loss"] for row in curve] for curve in trainer.curve()])


def test_replayed_graphs_equal_eager_code(tiny_base: Base, text_blocks: Blocks) -> None:
    _, eager = trained(tiny_base, text_blocks, 8, Compiler("none"))
    _, replayed = trained(tiny_base, text_blocks, 8)
    np.testing.assert_allclose(replayed, eager, rtol=2e-2)


def test_graphs_for_several_numbers_of_labels_share_memory_and_equal_eager_code(
    tiny_base: Base, tmp_path: Path
) -> None:
    blocks = pair_blocks(colour_pairs(80, repeats=9), tmp_path)
    _, eager = trained(tiny_base, blocks, 8, Compiler("none"), rows=1)
    trainer, first = trained(tiny_base, blocks, 1, rows=1)
    compiled = counters["stats"]["unique_graphs"]
    go_on(trainer, 1, 8)
    assert counters["stats"]["unique_graphs"] == compiled, "nothing is compiled for a number"
    graphs = trainer.runner._graphs
    assert len(graphs) > 1
    assert len({each.graph.pool() for each in graphs.values()}) == 1
    assert not trainer.runner.without
    rest = np.array([[row["loss"] for row in curve] for curve in trainer.curve()])
    np.testing.assert_allclose(np.hstack([first, rest]), eager, rtol=2e-2)


@pytest.mark.parametrize("kv_heads", [2, 6])
def test_segments_by_bounds_equal_a_mask_with_their_gradients(kv_heads: int) -> None:
    segments = torch.tensor([[1] * 20 + [2] * 12, [1] * 3 + [2] * 25 + [0] * 4])
    draw = torch.Generator(GPU).manual_seed(0)
    heads = (6, kv_heads, kv_heads)
    inputs = [
        torch.randn(2, n, 32, 64, generator=draw, device=GPU).bfloat16().requires_grad_()
        for n in heads
    ]
    bounds = segment_bounds(segments, 8).to(GPU)
    module = type("Module", (), {"config": type("Config", (), {"_attn_implementation": "sdpa"})})
    mask = block_diagonal(segments.to(GPU), module)
    got, _ = attend(None, *inputs, None, cu_seq_lens_q=bounds)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.float() for x in inputs), attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-2)
    ours = torch.autograd.grad(got.float().square().sum(), inputs)
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 2e-2 * b.norm()


def test_a_refusal_makes_pieces_smaller(tiny_base: Base, text_blocks: Blocks) -> None:
    trainer = Trainer(lora_cohort(tiny_base, ARMS, GPU), text_blocks, BATCH)
    trainer.fit_memory(model_shape(load_shape(tiny_base)))
    assert trainer.trainee.rows == BATCH
    real = trainer.runner.run

    def refuse(group: object, piece: object, *rest: object) -> torch.Tensor:
        if trainer.trainee.rows > 1:
            torch.empty(2**50, dtype=torch.uint8, device=GPU)
        return real(group, piece, *rest)  # type: ignore[arg-type]

    trainer.runner.run = refuse  # type: ignore[method-assign,assignment]
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0)] * len(ARMS)
    trainer.step(0, always)
    assert trainer.trainee.rows == 1


@pytest.mark.parametrize("regime", ["text", "pairs"])
def test_a_full_arm_equals_its_training_in_float32(
    regime: str, tiny_base: Base, text_blocks: Blocks, tmp_path: Path
) -> None:
    """Its layers and head add their gradients in place."""
    pairs = regime == "pairs"
    blocks = pair_blocks(colour_pairs(80, repeats=9), tmp_path) if pairs else text_blocks
    own = arm(method="full", learning_rate=1e-3)
    plain, _ = train(tiny_base, [own], blocks, 0)
    trainer = Trainer(full_arm(tiny_base, own, GPU), blocks, BATCH)
    for each in (plain, trainer):
        go_on(each, 0, 8)
    (expected,), (got,) = plain.curve(), trainer.curve()
    for name, tolerance in (("loss", 1e-2), ("grad_norm", 5e-2)):
        mine, theirs = ([row[name] for row in rows] for rows in (got, expected))
        np.testing.assert_allclose(mine, theirs, rtol=tolerance)
    assert not trainer.runner.without
