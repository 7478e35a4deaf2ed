"""Weight gradients that a product adds where they are kept, against autograd's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from train_helpers import BATCH, CPU, arm, go_on, train

from paretune.data.blocks import Blocks
from paretune.model.layers import linear_layers
from paretune.model.regions import Compiler
from paretune.model.trainee import full_arm
from paretune.model.weight_gradient import add_gradients_in_place
from paretune.study.config import Base
from paretune.train.piece import PieceRunner
from paretune.train.trainer import Trainer

WIDTH, INNER = 16, 24


class Block(torch.nn.Module):
    """Two products, the second of which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, INNER, bias=False)
        self.down = torch.nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.silu(self.up(self.norm(x)))
        return x + self.down(inner) + self.down(inner.square())


Through = Callable[[Block], Callable[[torch.Tensor], torch.Tensor]]


def blocks() -> tuple[list[Block], list[Block], torch.Tensor]:
    """The same blocks plainly and with gradients side by side in one tensor, and that tensor."""
    torch.manual_seed(0)
    plain = [Block() for _ in range(3)]
    mine = copy.deepcopy(plain)
    flat = torch.zeros(len(mine) * 2 * WIDTH * INNER)
    parts = iter(flat.chunk(2 * len(mine)))
    for block in mine:
        for name in ("up", "down"):
            weight = getattr(block, name).weight
            weight.grad = next(parts).view_as(weight).detach()
        assert add_gradients_in_place(block) == ["up", "down"]
    return plain, mine, flat


def parameters(model: list[Block]) -> list[torch.nn.Parameter]:
    """Of all blocks, in order."""
    return [parameter for block in model for parameter in block.parameters()]


def run(model: list[Block], through: Through) -> torch.Tensor:
    """The gradient of the input; those of the weights are added to what there is."""
    x = torch.linspace(-1, 1, 2 * 5 * WIDTH).view(2, 5, WIDTH).requires_grad_()
    hidden: torch.Tensor = x
    for block in model:
        hidden = through(block)(hidden)
    hidden.square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad


def eager(block: Block) -> Any:
    return block


def again(block: Block) -> Any:
    return partial(checkpoint, block, use_reentrant=False)


def compiled(block: Block) -> Any:
    return torch.compile(block.forward, backend="aot_eager", dynamic=False, fullgraph=True)


def compiled_again(block: Block) -> Any:
    return partial(checkpoint, compiled(block), use_reentrant=False)


@pytest.mark.parametrize("through", [eager, again, compiled, compiled_again])
def test_gradients_equal_autograd_s_over_two_passes(
    through: Through,
) -> None:
    plain, mine, flat = blocks()
    for _ in range(2):
        torch.testing.assert_close(run(mine, through), run(plain, eager), rtol=1e-4, atol=1e-5)
    for own, reference in zip(parameters(mine), parameters(plain), strict=True):
        torch.testing.assert_close(own.grad, reference.grad, rtol=1e-4, atol=1e-4)
    kept = [p.grad.flatten() for p in parameters(mine) if p.grad is not None and p.dim() == 2]
    torch.testing.assert_close(torch.cat(kept), flat, rtol=0, atol=0)


class Tied(torch.nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.other = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.other.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(F.silu(self.one(x))) + x.sum()


@pytest.mark.parametrize("through", [eager, again, compiled])
def test_layers_with_one_weight_add_both_parts(through: Any) -> None:
    torch.manual_seed(0)
    plain = Tied()
    mine = copy.deepcopy(plain)
    mine.one.weight.grad = torch.zeros(WIDTH, WIDTH)
    assert add_gradients_in_place(mine) == ["one", "other"]
    x = torch.randn(WIDTH)  # of one token, without a batch
    for model in (through(mine), plain):
        model(x.clone().requires_grad_()).square().sum().backward()
    torch.testing.assert_close(mine.one.weight.grad, plain.one.weight.grad, rtol=1e-4, atol=1e-4)


def test_without_gradients_a_layer_is_what_it_was() -> None:
    plain, mine, flat = blocks()
    x = torch.randn(3, WIDTH)
    with torch.no_grad():
        assert torch.equal(mine[0](x), plain[0](x))
    assert not flat.any()


def test_a_full_arm_is_trained_as_by_autograd(tiny_base: Base, text_blocks: Blocks) -> None:
    """On a GPU full arms train so; here one is given the same layers, compiled and in pieces."""
    own = arm(method="full", learning_rate=3e-3)
    _, expected = train(tiny_base, [own], text_blocks, 6)
    trainee = full_arm(tiny_base, own, CPU)
    found = add_gradients_in_place(trainee.model)
    assert found == ["model.embed_tokens", *linear_layers(trainee.model)]
    trainer = Trainer(trainee, text_blocks, BATCH)
    trainee.rows = 2
    trainer.runner = PieceRunner(trainee, compiler=Compiler("aot_eager"))
    go_on(trainer, 0, 6)
    got = [row["loss"] for row in trainer.curve()[0]]
    np.testing.assert_allclose(got, expected[own.id], rtol=1e-5)
    assert not trainer.runner.without


def test_a_layer_with_a_bias_stays_with_autograd() -> None:
    block = torch.nn.Sequential(torch.nn.Linear(3, 4))
    assert add_gradients_in_place(block) == []
    block(torch.ones(2, 3)).sum().backward()
    assert block[0].weight.grad.any()


@pytest.mark.parametrize("padding", [None, 2])
def test_an_embedding_s_gradient_equals_autograd_s(padding: int | None) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Embedding(7, 5, padding_idx=padding)
    mine = torch.nn.Sequential(copy.deepcopy(plain))
    mine[0].weight.grad = torch.zeros(7, 5)
    assert add_gradients_in_place(mine) == ["0"]
    ids, factors = torch.tensor([[1, 2, 1, 6], [1, 0, 2, 2]]), torch.randn(2, 4, 5)
    for model in (plain, mine):
        (model(ids) * factors).sum().backward()
    torch.testing.assert_close(mine[0].weight.grad, plain.weight.grad, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(mine(ids), plain(ids))


def test_embeddings_with_settings_of_their_own_stay_with_autograd() -> None:
    settings = {"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}
    model = torch.nn.Sequential(*(torch.nn.Embedding(3, 2, **own) for own in settings))
    assert add_gradients_in_place(model) == []
