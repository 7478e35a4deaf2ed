"""bf16 copies beside float32 masters, gradients of pieces, and arms that are frozen."""

from __future__ import annotations

import copy

import torch
from train_helpers import CPU, arm, lora

from paretune.model.flat import Flat
from paretune.train.optim import PerArmOptimizer

SHAPES = {"norm": (6,), "matrix": (8, 6), "other": (6, 4)}


def filled(**settings: object) -> Flat:
    """One arm's tensors with random values."""
    flat = Flat([0], SHAPES, arm_axis=False, device=CPU, **settings)  # type: ignore[arg-type]
    draw = torch.Generator().manual_seed(0)
    for name, tensor in sorted(flat.tensors(0).items()):
        tensor.copy_(torch.randn(SHAPES[name], generator=draw))
    flat.refresh()
    return flat


def test_trained_copies_take_autocasts_place() -> None:
    flat = filled(copied=("matrix", "other"), train_copies=True)
    plain = {name: value.clone().requires_grad_() for name, value in filled().tensors(0).items()}
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))

    def loss(p: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = (x * p["norm"]) @ p["matrix"].T
            return (torch.tanh(hidden.float())[:, :6] @ p["other"]).float().square().mean()

    loss(dict(flat.parameters)).backward()
    loss(plain).backward()
    assert flat.parameters["matrix"].dtype == torch.bfloat16
    assert flat.parameters["norm"].dtype == torch.float32
    for name, parameter in flat.parameters.items():
        # Autocast casts a gradient of bf16 to float32: the numbers are the same, to the bit
        assert parameter.grad is not None
        assert torch.equal(parameter.grad.float(), plain[name].grad)
    whole = torch.cat([p.grad.flatten() for p in plain.values()]).norm()
    torch.testing.assert_close(flat.grad_norm()[0], whole)


def test_gradients_of_pieces_are_summed_in_float32() -> None:
    flat = filled(copied=("matrix",), train_copies=True)
    step = torch.full(SHAPES["matrix"], 1.0)
    for value in (1.0, 2**-9):  # their sum is no number of bf16
        flat.parameters["matrix"].grad.add_(step * value)  # type: ignore[union-attr]
        flat.gather()
    (part,) = [p for p in flat.parts if p.copy_KC is not None]
    total = part.total[0, : step.numel()]
    assert torch.equal(total, torch.full_like(total, 1 + 2**-9))
    flat.zero_grad()
    assert not part.total.any()


def test_an_update_moves_masters_and_their_copies_as_torch_does() -> None:
    own = arm(method="full", learning_rate=1e-2, weight_decay=0.1)
    flat = filled(copied=("matrix",), train_copies=True)
    reference = [t.clone().requires_grad_() for t in flat.tensors(0).values()]
    theirs = torch.optim.AdamW(reference, lr=1e-2, weight_decay=0.1)
    ours = PerArmOptimizer(flat, [own])
    draw = torch.Generator().manual_seed(2)
    for t in range(1, 6):
        for parameter, other in zip(flat.parameters.values(), reference, strict=True):
            gradient = torch.randn(other.shape, generator=draw).to(parameter.dtype)
            parameter.grad.copy_(gradient)  # type: ignore[union-attr]
            other.grad = gradient.float() * 0.5
        ours.step(t, torch.tensor([1e-2], dtype=torch.float64), torch.tensor([0.5]))
        theirs.step()
    for value, other in zip(flat.tensors(0).values(), reference, strict=True):
        torch.testing.assert_close(value, other.detach(), rtol=1e-5, atol=1e-6)
    copied = flat.parameters["matrix"]
    assert torch.equal(copied, flat.tensors(0)["matrix"].to(torch.bfloat16))


def test_a_frozen_arm_keeps_its_bits_whatever_its_gradient_is() -> None:
    arms = [lora(2, 1e-2), lora(2, 1e-2, seed=1)]
    flat = Flat([0, 1], SHAPES, arm_axis=True, device=CPU)
    flat.values.normal_(generator=torch.Generator().manual_seed(3))
    optimizer = PerArmOptimizer(flat, arms)
    before = copy.deepcopy(flat.values)
    flat.parts[0].grad_KC[0] = torch.nan
    flat.parts[0].grad_KC[1] = 1.0
    optimizer.step(1, torch.tensor([0.0, 1e-2]).double(), torch.tensor([0.0, 1.0]))
    assert torch.equal(flat.values[0], before[0])
    assert not torch.equal(flat.values[1], before[1])
    assert all(torch.isfinite(value).all() for value in optimizer.state.values())
