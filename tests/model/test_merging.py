"""Products that share an input are merged, and activations recomputed, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch._guards import TracingContext
from torch.fx import GraphModule

from paretune.data.blocks import Blocks
from paretune.model.attention import attending
from paretune.model.flat import Flat
from paretune.model.layers import linear_layers
from paretune.model.load import load_shape
from paretune.model.lora_cohort import lora_cohort
from paretune.model.merging import merge_products
from paretune.model.regions import Compiler, Regions
from paretune.model.trainee import Trainee
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.piece import Piece, PieceRunner
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

CPU = torch.device("cpu")
IDS = torch.arange(4 * 8).view(4, 8)


def cohort(base: Base, **settings: Any) -> Trainee:
    """Two ranks; the arms of the second drop out and scale differently."""
    arms = [
        {"method": "lora", "rank": 2, "learning_rate": 1e-3, **settings},
        {"method": "lora", "rank": 2, "learning_rate": 1e-2, **settings},
        {"method": "lora", "rank": 4, "learning_rate": 1e-2, "lora_dropout": 0.2, **settings},
        {"method": "lora", "rank": 4, "learning_rate": 3e-3, "alpha": 3, **settings},
    ]
    return lora_cohort(base, [ArmConfig.model_validate(a) for a in arms], CPU, arms_per_pass=4)


def through(trainee: Trainee, compiler: Callable[..., Any]) -> list[torch.Tensor]:
    """Hidden states of a training pass and every factor's gradient, factors B not zero."""
    torch._dynamo.reset()
    for flat in trainee.flats:
        for name, value in sorted(flat.parameters.items()):
            generator = torch.Generator().manual_seed(len(name))
            value.data.copy_(torch.randn(value.shape, generator=generator) / 4)
            value.grad = torch.zeros_like(value)
    regions = Regions(trainee.model, compiler)  # type: ignore[arg-type]
    with trainee.applied(trainee.passes[0], step=3), regions.compiled(), attending(trainee.model):
        hidden = trainee.forward(IDS, part="hidden", use_cache=False)[0]
        (hidden * torch.sin(torch.arange(hidden.numel())).view_as(hidden)).sum().backward()
    factors = [p for flat in trainee.flats for _, p in sorted(flat.parameters.items())]
    return [hidden.detach(), *(p.grad for p in factors if p.grad is not None)]


def equal(got: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    """Equal to a share of each tensor's largest value."""
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


class Symbols(Compiler):
    """A compiler that counts the symbols in the shapes and places of what it is given."""

    seen: ClassVar[list[int]] = []

    def __call__(self, block: GraphModule, inputs: Any) -> Callable[..., Any]:
        """Count, and go on."""
        shapes = TracingContext.get().fake_mode.shape_env
        self.seen.append(len(shapes.var_to_range))
        return super().__call__(block, inputs)


class Counting(Compiler):
    """A compiler that counts the adapted products in what it is given, merged."""

    products: ClassVar[list[int]] = []

    def __call__(self, block: GraphModule, inputs: Any) -> Callable[..., Any]:
        """Count, and go on with the merged graph as it is."""
        merge_products(block)
        calls = [n for n in block.graph.nodes if "adapted_products" in str(n.target)]
        self.products.append(len(calls))
        return super().__call__(block, inputs)


@pytest.mark.parametrize(
    ("which", "settings", "products"),
    [
        ("tiny_base", {}, 4),  # q, k, v; o; gate, up; down
        ("tiny_base", {"targets": "attention"}, 2),
        ("tiny_base", {"targets": ["q_proj", "v_proj", "up_proj"]}, 2),
        ("tiny_base", {"init": "pissa"}, 4),
        ("tiny_gpt2", {}, 4),  # its queries, keys and values are one matrix already
    ],
)
def test_merged_products_give_what_single_ones_give(
    which: str, settings: dict[str, Any], products: int, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    eager = through(cohort(base, **settings), Compiler("none"))
    Counting.products.clear()
    merged = through(cohort(base, **settings), Counting("aot_eager"))
    assert set(Counting.products) == {products}
    equal(merged, eager, 1e-5)


def test_arms_with_other_targets_stay_apart(tiny_base: Base) -> None:
    arms = [
        {"method": "lora", "rank": 2, "learning_rate": 1e-3},
        {"method": "lora", "rank": 2, "learning_rate": 1e-2, "targets": ["q_proj", "gate_proj"]},
    ]
    configs = [ArmConfig.model_validate(arm) for arm in arms]
    Counting.products.clear()
    eager = through(lora_cohort(tiny_base, configs, CPU, arms_per_pass=2), Compiler("none"))
    merged = through(lora_cohort(tiny_base, configs, CPU, arms_per_pass=2), Counting("aot_eager"))
    assert set(Counting.products) == {6}, "only keys and values have the same banks"
    equal(merged, eager, 1e-5)


def test_recomputing_keeps_less_and_gives_the_same(tiny_base: Base) -> None:
    """What is saved: inputs of the linear layers that do not come out of the attention."""

    def kept(recompute: bool) -> tuple[int, list[torch.Tensor]]:
        saved: dict[int, torch.Tensor] = {}  # kept, so that no other one gets its place in memory

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.data_ptr()] = tensor
            return tensor

        backend = "aot_eager_decomp_partition"
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            got = through(cohort(tiny_base), Compiler(backend, merge=True, recompute=recompute))
        sizes = [tensor.numel() for tensor in saved.values()]
        return sum(size for size in sizes if size % IDS.numel() == 0), got

    (much, plain), (little, again) = kept(False), kept(True)
    equal(again, plain, 1e-5)
    inputs = {layer.d_in for layer in linear_layers(load_shape(tiny_base)).values()}
    assert inputs == {32, 48}
    # Of each block: the two norms' outputs, and what enters the last matrix
    assert much - little == 2 * IDS.numel() * (32 + 32 + 48)


def test_a_trained_cohort_is_the_same_whatever_the_compiler_does(
    tiny_base: Base, text_blocks: Blocks
) -> None:
    def losses(compiler: Compiler) -> np.ndarray:
        torch._dynamo.reset()
        trainer = Trainer(cohort(tiny_base), text_blocks, 4)
        trainer.runner = PieceRunner(trainer.trainee, compiler=compiler)
        always = [Resolved("constant", 0, 10**6, 10**6, 0.0)] * 4
        for t in range(5):
            trainer.step(t, always)
        return np.array([[row["loss"] for row in rows] for rows in trainer.curve()])

    plain = losses(Compiler("none"))
    both = Compiler("aot_eager_decomp_partition", merge=True, recompute=True)
    np.testing.assert_allclose(losses(both), plain, rtol=1e-5)


def test_blocks_are_traced_without_symbols(tiny_base: Base) -> None:
    """Views of a matrix of all arms would have one for each place, which takes seconds a block."""
    Symbols.seen.clear()
    trainee = cohort(tiny_base)
    runner = PieceRunner(trainee, compiler=Symbols("eager"))
    torch._dynamo.reset()
    ids = torch.cat([IDS[:1]] * 4)
    piece = Piece(ids, ids.roll(-1, 1), torch.ones(4))
    runner.run(trainee.passes[0], piece, 0, 0)
    assert Symbols.seen == [0]
    flat = Flat([0, 1], {"A": (3, 2)}, arm_axis=True, device=CPU, copied=["A"])
    flat.values.normal_()
    flat.refresh()
    assert torch.equal(flat.parameters["A"].flatten(1), flat.values[:, :6])
    torch.testing.assert_close(flat.compute["A"].float(), flat.parameters["A"], rtol=0.01, atol=0)
    grad = flat.parameters["A"].grad
    assert grad is not None
    grad.fill_(2)
    assert flat.grad_norm().tolist() == pytest.approx([24**0.5] * 2), (
        "a parameter's gradient is in the matrix"
    )
