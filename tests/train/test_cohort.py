"""An arm's result does not depend on its cohort, and equals what PEFT and transformers give."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from plain_loop import on_blocks, plain_losses, trained
from train_helpers import CPU, arm, equal_each_alone, lora, train, weights
from transformers import AutoModelForCausalLM

from paretune.data.blocks import Blocks
from paretune.model.lora_cohort import lora_cohort
from paretune.study.config import Base

MIXED = [
    lora(2, 1e-3),
    lora(2, 1e-2, weight_decay=0.1),
    lora(8, 3e-3, targets="attention"),
    lora(4, 1e-3, optimizer="lion", clip=0.5),
    lora(8, 3e-3, targets=["down_proj", "q_proj"], alpha=5, seed=3),
    lora(4, 5e-3, lora_dropout=0.3),
]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("arms_per_pass", [1, 4, 6])
def test_mixed_cohort_equals_each_arm_alone(
    tiny_base: Base, text_blocks: Blocks, arms_per_pass: int
) -> None:
    equal_each_alone(tiny_base, MIXED, text_blocks, 30, arms_per_pass=arms_per_pass, tolerance=1e-5)


def test_pieces_of_a_batch_change_nothing_but_rounding(
    tiny_base: Base, text_blocks: Blocks
) -> None:
    dropped = [lora(4, 3e-3, lora_dropout=0.3)]
    whole, one = train(tiny_base, dropped, text_blocks, 20, rows=4)
    cut, other = train(tiny_base, dropped, text_blocks, 20, rows=1)
    np.testing.assert_allclose(one[dropped[0].id], other[dropped[0].id], rtol=1e-5)
    for name, value in weights(whole, dropped[0]).items():
        assert close(weights(cut, dropped[0])[name], value)


def with_adamw(model: torch.nn.Module, blocks: Blocks, rate: float) -> list[float]:
    """The losses of 50 steps of a plain loop over a whole model or one with adapters."""
    optimizer = torch.optim.AdamW(trained(model), lr=rate, weight_decay=0.1)
    return plain_losses(on_blocks(model, blocks), optimizer, 50, cosine=True)


COSINE = {"schedule": {"shape": "cosine", "warmup": "10%"}, "weight_decay": 0.1}


@pytest.mark.parametrize("which", ["tiny_base", "tiny_gpt2"])
def test_lora_arm_equals_peft_with_adamw(
    which: str, text_blocks: Blocks, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    own = lora(4, 2e-2, alpha=8, **COSINE)
    _, losses = train(base, [own], text_blocks, 50)

    trainee = lora_cohort(base, [own], CPU)
    start = trainee.flats[0].tensors(0)
    layers = sorted({name.rpartition(".")[0] for name in start})
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=layers, fan_in_fan_out=which == "tiny_gpt2"
    )
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name in layers:
            module = theirs.get_submodule(f"base_model.model.{name}")
            assert module.lora_A["default"].weight.shape == start[f"{name}.A"].T.shape
            module.lora_A["default"].weight.copy_(start[f"{name}.A"].T)
            assert not module.lora_B["default"].weight.any()
    expected = with_adamw(theirs, text_blocks, 2e-2)
    np.testing.assert_allclose(losses[own.id], expected, rtol=1e-5)
    assert expected[-1] < 0.9 * expected[0], "the comparison means little if nothing is learned"


@pytest.mark.parametrize("which", ["tiny_base", "tiny_gpt2"])
def test_full_arm_equals_transformers_with_adamw(
    which: str, text_blocks: Blocks, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    own = arm(method="full", learning_rate=3e-3, **COSINE)
    trainer, losses = train(base, [own], text_blocks, 50)
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32).eval()
    expected = with_adamw(model, text_blocks, 3e-3)
    np.testing.assert_allclose(losses[own.id], expected, rtol=1e-5)
    for name, value in model.named_parameters():
        if name.endswith("c_attn.bias"):
            # A bias on all keys cancels in the softmax: its gradient is amplified rounding
            continue
        assert close(trainer.weights(0)[name], value.detach(), 1e-4), name


def test_initial_adapters_are_peft_like_and_change_nothing(tiny_base: Base) -> None:
    one = lora(8, 1e-3)
    trainee = lora_cohort(tiny_base, [one, lora(8, 2e-3), lora(8, 1e-3, seed=1)], CPU)
    tensors = [bank.flat.tensors(0) for group in trainee.passes for bank in group.banks]
    assert len(tensors) == 3
    by_seed = {a.seed: t for a, t in zip(trainee.arms, tensors, strict=True)}
    for name, value in by_seed[0].items():
        if name.endswith(".B"):
            assert not value.any()
            continue
        bound = value.shape[0] ** -0.5
        assert value.abs().max() <= bound
        assert value.std() == pytest.approx(bound / 3**0.5, rel=0.2)
        assert not torch.equal(value, by_seed[1][name])
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        base = trainee.view(None).logits(ids)
        assert torch.equal(trainee.view(trainee.passes[0]).logits(ids), base)


def test_a_diverging_arm_is_noticed_and_hurts_nobody(tiny_base: Base, text_blocks: Blocks) -> None:
    healthy = [lora(2, 1e-3), lora(8, 3e-3), lora(4, 1e-3, optimizer="lion")]
    wild = lora(4, 1e3)
    together, losses = train(tiny_base, [*healthy, wild], text_blocks, 40)
    without, own = train(tiny_base, healthy, text_blocks, 40)
    verdicts = together.divergence.verdicts()
    position = [a.id for a in together.trainee.arms].index(wild.id)
    assert set(verdicts) == {position}
    step, reason = verdicts[position]
    assert 1 < step < 40
    assert len(losses[wild.id]) == step
    assert "zero" in reason, "RMSNorm keeps the loss finite, but nothing can be learned any more"
    for one in healthy:
        assert losses[one.id] == own[one.id]
        for name, value in weights(without, one).items():
            assert torch.equal(weights(together, one)[name], value)
    folded, shared_pass = train(tiny_base, [*healthy, wild], text_blocks, 40, arms_per_pass=4)
    for one in healthy:
        np.testing.assert_allclose(shared_pass[one.id], own[one.id], rtol=1e-5)
    assert set(folded.divergence.verdicts().values()) == {(step, reason)}


def test_attention_dropout_of_a_full_arm_is_reproducible_and_off_elsewhere(
    tiny_base: Base, text_blocks: Blocks
) -> None:
    dropped = arm(method="full", attention_dropout=0.2)
    _, first = train(tiny_base, [dropped], text_blocks, 5)
    trainer, second = train(tiny_base, [dropped], text_blocks, 5)
    _, without = train(tiny_base, [arm(method="full")], text_blocks, 5)
    assert first == second
    assert first[dropped.id] != next(iter(without.values()))
    view, ids = trainer.trainee.view(trainer.trainee.passes[0]), torch.arange(10)[None]
    assert torch.equal(view.logits(ids), view.logits(ids))
