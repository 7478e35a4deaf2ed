"""A process that trains cohort after cohort stays on compiled code, whatever their shapes.

torch gives up on code that it has compiled eight times, and runs it uncompiled; here that is an
error. Where there is no GPU its paths run with the tracing half of the compiler.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from inspect import unwrap
from typing import Any

import pytest
import torch
from torch._dynamo import config
from torch._dynamo.utils import counters
from train_helpers import BATCH, CPU, go_on, lora
from transformers import LlamaForCausalLM

from paretune.data.blocks import Blocks
from paretune.model import dropout
from paretune.model.compilation import FORMS, fused
from paretune.model.flat import Flat
from paretune.model.lora_cohort import lora_cohort
from paretune.model.regions import Compiler, Regions
from paretune.study.config import Base
from paretune.train import loss, optim
from paretune.train.piece import PieceRunner
from paretune.train.trainer import Trainer

COHORTS = 12
assert COHORTS > FORMS


@pytest.fixture(autouse=True)
def giving_up_is_an_error() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


def graphs() -> int:
    """What has been compiled so far."""
    return int(counters["stats"]["unique_graphs"])


def flat_of(number: int) -> Flat:
    """Arms of a cohort: how many, their sizes, and what of them has a bf16 copy all differ."""
    count = 1 + number % 5
    shapes = {"q.A": (8, 4 + number), "q.B": (6, 5 + 3 * number), "q.bias": (7,)}
    copied = ([], ["q.A", "q.B"], list(shapes))[number % 3]
    trained = bool(copied) and number % 2 == 1
    flat = Flat(
        range(count), shapes, arm_axis=True, device=CPU, copied=copied, train_copies=trained
    )
    draw = torch.Generator().manual_seed(number)
    flat.values.copy_(torch.randn(flat.values.shape, generator=draw))
    for part in flat.parts:
        part.grad_KC.copy_(torch.randn(part.grad_KC.shape, generator=draw))
    return flat


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        ("adamw", "aot_eager"),
        pytest.param("adamw", "inductor", marks=pytest.mark.slow),
        pytest.param("lion", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_the_optimizer_of_every_cohort_is_compiled(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    written = unwrap(optim.UPDATES[kind])
    compiled = fused(written, dynamic=True)
    for number in range(COHORTS):
        ratio = {"loraplus_lr_ratio": 4} if number % 4 == 0 else {}
        plain, ours = flat_of(number), flat_of(number)
        arms = [lora(2, 1e-3, optimizer=kind, **ratio)] * len(plain.arms)
        pair = []
        for flat, update in ((plain, written), (ours, compiled)):
            optimizer = optim.PerArmOptimizer(flat, arms)
            monkeypatch.setitem(optim.UPDATES, kind, update)
            for t in range(1, 5):
                rates = torch.full((len(arms),), 1e-3, dtype=torch.float64)
                optimizer.step(t, rates, torch.ones(len(arms)))
                if t == 2:
                    after_two = graphs()
            assert graphs() == after_two, "compiled again after the second step"
            pair.append((flat, optimizer.state))
        torch.testing.assert_close(ours.values, plain.values)
        torch.testing.assert_close(pair[1][1], pair[0][1])
        for own, other in zip(ours.parts, plain.parts, strict=True):
            torch.testing.assert_close(own.copy_KC, other.copy_KC, rtol=2**-7, atol=1e-6)
    assert graphs() > FORMS, "kinds of cohorts that torch's own limit would not have allowed"


def test_the_loss_of_every_cohort_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled = fused(loss._loss_and_gradient)
    for number in range(COHORTS):
        tokens = 8 + number
        draw = torch.Generator().manual_seed(number)
        logits = torch.randn(tokens, 32, generator=draw)
        labels = torch.arange(tokens)
        labels[0] = loss.IGNORED
        weight = torch.full((tokens,), 1 / tokens)
        for _ in range(3):
            found = compiled(logits, labels, weight)
        torch.testing.assert_close(found, loss._step_by_step(logits, labels, weight))
    assert graphs() == COHORTS


@torch.no_grad()
def test_models_that_share_their_code_do_not_share_its_limit(tiny_base: Base) -> None:
    for number in range(1, FORMS + 2):
        model = LlamaForCausalLM.from_pretrained(tiny_base.name).eval()
        ids = torch.arange(4).expand(number, -1)
        expected = model(ids, use_cache=False).logits
        with Regions(model, Compiler("aot_eager")).compiled():
            found = model(ids, use_cache=False).logits
        torch.testing.assert_close(found, expected)
        assert graphs() == number, "one graph for each"


@pytest.mark.slow
def test_the_blocks_of_every_cohort_are_compiled(tiny_base: Base, text_blocks: Blocks) -> None:
    for number in range(1, FORMS + 2):
        arms = [lora(2, 1e-3 * (1 + i)) for i in range(number)]
        trainer = Trainer(
            lora_cohort(tiny_base, arms, CPU, arms_per_pass=number), text_blocks, BATCH
        )
        trainer.runner = PieceRunner(trainer.trainee, compiler=Compiler("aot_eager"))
        go_on(trainer, 0, 2)
        assert not trainer.runner.without
        assert graphs() == number, "one graph for each cohort"


class Restless(torch.nn.Module):
    """A block that is other code each time it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by how often this has run."""
        self.runs += 1
        return x * self.runs


class Model(torch.nn.Module):
    """An embedding and two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 3)
        self.layers = torch.nn.ModuleList([Restless(), Restless()])

    def get_input_embeddings(self) -> torch.nn.Module:
        """As transformers' models."""
        return self.embedding

    def forward(self, ids: torch.Tensor) -> Any:
        """Through all blocks."""
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_model_that_is_never_the_same_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be compiled at every step for ever."""
    monkeypatch.setattr(Regions, "_made", 0)
    model = Model()
    regions = Regions(model, Compiler("aot_eager"))
    ids = torch.arange(4)
    with config.patch(fail_on_recompile_limit_hit=False):
        for run in range(1, 2 * FORMS):
            with regions.compiled():
                found = model(ids)
            torch.testing.assert_close(found, model.embedding.weight * run**2)
    assert FORMS <= graphs() < 2 * FORMS


def test_dropout_is_a_part_of_the_block_around_it() -> None:
    keys, rate = torch.tensor([3, 4], dtype=torch.int32), torch.tensor([0.5, 0.1])
    first = torch.tensor(0, dtype=torch.int32)

    written = unwrap(dropout.masked)
    compiled = fused(written)

    def block(x_KND: torch.Tensor) -> torch.Tensor:
        return compiled(x_KND + 1, keys, rate, first) * 2

    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = torch.compile(block, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(found, written(x + 1, keys, rate, first) * 2)
    assert graphs() == 1
