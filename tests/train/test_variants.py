"""Variants of LoRA equal PEFT's own, alone and in a cohort of different variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from train_helpers import BATCH, CPU, lora, train, weights
from transformers import AutoModelForCausalLM, get_scheduler

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step
from paretune.model.export import merge, save_adapter
from paretune.model.load import location
from paretune.model.trainee import lora_cohort
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.state import load_state, save_state
from paretune.train.trainer import Trainer

STEPS = 50
COSINE: dict[str, Any] = {"schedule": {"shape": "cosine", "warmup": "10%"}}
VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"scaling": "rslora", "alpha": 3},
    "loraplus": {"loraplus_lr_ratio": 8, "weight_decay": 0.1},
    "pissa": {"init": "pissa", "alpha": 6},
    "dora": {"dora": True, "weight_decay": 0.1},
    "dora of some layers": {"dora": True, "targets": ["q_proj", "down_proj"]},
    "loraplus with lion": {"loraplus_lr_ratio": 4, "optimizer": "lion"},
    "all at once": {
        "dora": True,
        "init": "pissa",
        "scaling": "rslora",
        "alpha": 3,
        "loraplus_lr_ratio": 4,
    },
}
# GPT-2's matrices are stored transposed, and it has biases
ON_GPT2: dict[str, dict[str, Any]] = {
    "pissa": VARIANTS["pissa"],
    "dora": {"dora": True},
    "bias all": {"bias": "all", "weight_decay": 0.1},
    "bias lora_only": {"bias": "lora_only", "targets": ["c_fc"]},
    "bias all of one layer, dora": {"bias": "all", "targets": ["c_attn"], "dora": True},
    "loraplus, bias": {"bias": "all", "loraplus_lr_ratio": 4},
}


def own_arm(settings: dict[str, Any], rate: float) -> ArmConfig:
    """At a rate at which LoRA+ and Lion, which take larger steps, learn smoothly too."""
    rate /= settings.get("loraplus_lr_ratio", 1)
    return lora(4, rate / 4 if settings.get("optimizer") == "lion" else rate, **COSINE, **settings)


def peft_model(base: Base, arm: ArmConfig) -> torch.nn.Module:
    """PEFT's model of the same arm, at its own start but for what is drawn at random."""
    trainee = lora_cohort(base, [arm], CPU)
    start = trainee.flats[0].tensors(0)
    layers = sorted({name.rpartition(".")[0] for name in start if name.endswith(".A")})
    model = AutoModelForCausalLM.from_pretrained(location(base), dtype=torch.float32)
    config = peft.LoraConfig(
        r=arm.rank,
        lora_alpha=arm.alpha,
        target_modules=layers,
        fan_in_fan_out=model.config.model_type == "gpt2",
        use_rslora=arm.scaling == "rslora",
        use_dora=bool(arm.dora),
        init_lora_weights="pissa" if arm.init == "pissa" else True,
        bias=arm.bias or "none",
    )
    theirs = peft.get_peft_model(model, config).eval()
    if arm.init is None:
        with torch.no_grad():
            for name in layers:
                module = theirs.get_submodule(f"base_model.model.{name}")
                module.lora_A["default"].weight.copy_(start[f"{name}.A"].T)
    trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert trained == trainee.flats[0].count
    return theirs


class Lion(torch.optim.Optimizer):
    """Decoupled Lion, plainly: sign(b1 m + (1 - b1) g), then m = b2 m + (1 - b2) g."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p -= group["lr"] * torch.sign(b1 * m + (1 - b1) * p.grad)
                m.mul_(b2).add_(p.grad, alpha=1 - b2)


def peft_losses(base: Base, arm: ArmConfig, blocks: Blocks) -> list[float]:
    """A plain loop over PEFT's model with torch's AdamW, or PEFT's optimizer for LoRA+."""
    model = peft_model(base, arm)
    parameters = [p for p in model.parameters() if p.requires_grad]
    kind: Any = torch.optim.AdamW if arm.optimizer == "adamw" else Lion
    settings = {"lr": arm.learning_rate, "betas": arm.betas}
    if arm.loraplus_lr_ratio:
        optimizer = create_loraplus_optimizer(
            model,
            kind,
            loraplus_lr_ratio=arm.loraplus_lr_ratio,
            loraplus_weight_decay=arm.weight_decay,
            **settings,
        )
    else:
        optimizer = kind(parameters, weight_decay=arm.weight_decay, **settings)
    schedule = get_scheduler("cosine", optimizer, STEPS // 10, STEPS)
    losses = []
    for t in range(STEPS):
        ids = blocks.batch(rows_for_step(blocks.count, BATCH, t, 0)).input_ids
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


# The pocket base is thirty times as large, so it needs a smaller step
@pytest.mark.parametrize(
    ("which", "rate"),
    [("tiny_base", 2e-2), pytest.param("pocket", 2e-3, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_peft(
    name: str, which: str, rate: float, text_blocks: Blocks, request: pytest.FixtureRequest
) -> None:
    base = Base(name="pocket") if which == "pocket" else request.getfixturevalue(which)
    arm = own_arm(VARIANTS[name], rate)
    _, losses = train(base, [arm], text_blocks, STEPS)
    expected = peft_losses(base, arm, text_blocks)
    np.testing.assert_allclose(losses[arm.id], expected, rtol=1e-5)
    assert expected[-1] < 0.95 * expected[0], "the comparison means little if nothing is learned"


@pytest.mark.parametrize("name", ON_GPT2)
def test_variant_equals_peft_on_transposed_layers_with_biases(
    name: str, tiny_gpt2: Base, text_blocks: Blocks
) -> None:
    arm = own_arm(ON_GPT2[name], 1e-2)
    _, losses = train(tiny_gpt2, [arm], text_blocks, STEPS)
    expected = peft_losses(tiny_gpt2, arm, text_blocks)
    np.testing.assert_allclose(losses[arm.id], expected, rtol=1e-5)
    assert expected[-1] < 0.95 * expected[0], "the comparison means little if nothing is learned"
