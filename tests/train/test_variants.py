"""Variants of LoRA equal PEFT's own, alone and in a cohort of different variants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from plain_loop import on_blocks, plain_losses, trained
from torch._dynamo.utils import counters
from train_helpers import BATCH, CPU, equal_each_alone, go_on, lora, train, weights
from transformers import AutoModelForCausalLM

from paretune.data.blocks import Blocks
from paretune.errors import UserError
from paretune.model.dropout import key, scaled_masks
from paretune.model.export import merge, save_adapter
from paretune.model.layers import linear_layers
from paretune.model.load import location
from paretune.model.lora_cohort import lora_cohort
from paretune.model.regions import Compiler
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.piece import PieceRunner
from paretune.train.state import read_state, save_state
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
    assert sum(p.numel() for p in trained(theirs)) == trainee.flats[0].count
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
        optimizer = kind(trained(model), weight_decay=arm.weight_decay, **settings)
    return plain_losses(on_blocks(model, blocks), optimizer, STEPS, cosine=True)


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


MIXED = [
    lora(2, 1e-3),
    lora(2, 1e-3, dora=True),
    lora(2, 3e-3, dora=True, lora_dropout=0.3),
    lora(4, 3e-3, init="pissa", lora_dropout=0.3),
    lora(2, 1e-3, init="pissa", alpha=3),
    lora(2, 1e-3, loraplus_lr_ratio=8),
    lora(2, 1e-3, scaling="rslora", alpha=2),
    lora(2, 3e-3, targets=["c_attn", "c_fc"], bias="lora_only"),
    lora(2, 3e-3, targets=["c_attn"], bias="all", dora=True, optimizer="lion"),
]


@pytest.mark.parametrize("arms_per_pass", [1, 9])
def test_variants_train_in_a_cohort_as_alone(
    tiny_gpt2: Base, text_blocks: Blocks, arms_per_pass: int
) -> None:
    equal_each_alone(tiny_gpt2, MIXED, text_blocks, 12, arms_per_pass=arms_per_pass, tolerance=1e-5)


def test_a_variant_begins_as_the_base(tiny_gpt2: Base) -> None:
    trainee = lora_cohort(tiny_gpt2, MIXED, CPU, arms_per_pass=len(MIXED))
    ids = torch.arange(24).view(2, 12)
    base = trainee.view(None).logits(ids)
    arms = trainee.view(trainee.passes[0]).logits(ids)
    assert (arms - base).abs().max() <= 1e-5 * base.abs().max()


def test_each_variant_resumes_to_the_bit(
    tiny_gpt2: Base, text_blocks: Blocks, tmp_path: Path
) -> None:
    """Six steps, a state on disk, six more in another process's place: as twelve in one go."""
    whole, _ = train(tiny_gpt2, MIXED, text_blocks, 12)
    half, _ = train(tiny_gpt2, MIXED, text_blocks, 6)
    again, _ = train(tiny_gpt2, MIXED, text_blocks, 0)
    for position, one in enumerate(half.trainee.arms):
        tensors, watch = half.state(position)
        save_state(tmp_path / one.id, "main", 6, tensors, watch)
        read = read_state(tmp_path / one.id, "main", 6)
        if one.init == "pissa":
            # Other singular vectors, as another machine's library may find them
            found = again.trainee.anchor(position)
            assert found is not None
            for value in found[0].row(found[1]).values():
                value.neg_()
        again.restore(position, *read)
    go_on(again, 6, 12)
    for one in MIXED:
        for name, value in weights(whole, one).items():
            assert torch.equal(weights(again, one)[name], value), (one.label, name)


@pytest.mark.parametrize("one", MIXED, ids=lambda arm: arm.family)
@torch.no_grad()
def test_exports_give_the_arms_logits_on_the_original_base(
    one: ArmConfig,
    tiny_gpt2: Base,
    text_blocks: Blocks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The tiny base has no tokenizer to go with the merged model
    monkeypatch.setattr("paretune.model.export.save_tokenizer", lambda to, base: None)
    with torch.enable_grad():
        trainer, _ = train(tiny_gpt2, [one], text_blocks, 6)
    ids = torch.arange(48).view(3, 16)
    trainee = trainer.trainee
    ours = trainee.view(trainee.passes[0]).logits(ids)[0]
    save_adapter(tmp_path / "adapter", one, weights(trainer, one), tiny_gpt2, transposed=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_gpt2.name, dtype=torch.float32).eval()
    before = base(ids).logits
    assert (ours - before).abs().max() > 1e-3 * ours.abs().max(), "it has learned something"
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (theirs(ids).logits - ours).abs().max() <= 1e-5 * ours.abs().max()
    merge(tmp_path / "adapter", tiny_gpt2, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert (merged(ids).logits - ours).abs().max() <= 1e-5 * ours.abs().max()


class OurMasks(torch.nn.Module):
    """Dropout with the masks that an arm has in one layer at one step."""

    def __init__(self, arm: ArmConfig, step: int, layer: int) -> None:
        super().__init__()
        self.keys = torch.tensor([key(arm.seed, step, layer, 1)], dtype=torch.int32)
        self.rate = torch.tensor([arm.lora_dropout])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(1, -1, x.shape[-1])
        return (flat * scaled_masks(self.keys, self.rate, 0, tuple(flat.shape))).view_as(x)


@pytest.mark.parametrize("settings", [{"dora": True}, {"init": "pissa"}, {}], ids=str)
def test_dropout_acts_where_it_does_in_peft(
    settings: dict[str, Any], tiny_base: Base, text_blocks: Blocks
) -> None:
    """DoRA's and PiSSA's masked input meets other parts of the product than LoRA's does."""
    one = lora(4, 1e-2, lora_dropout=0.4, **settings)
    _, losses = train(tiny_base, [one], text_blocks, 3, rows=BATCH)
    theirs = peft_model(tiny_base, one)
    layers = linear_layers(AutoModelForCausalLM.from_pretrained(tiny_base.name))
    optimizer = torch.optim.AdamW(trained(theirs), lr=1e-2, weight_decay=0.0)
    theirs.train()
    loss_of_batch = on_blocks(theirs, text_blocks)

    def loss_at(t: int) -> torch.Tensor:
        for name, layer in layers.items():
            module = theirs.get_submodule(f"base_model.model.{name}")
            module.lora_dropout["default"] = OurMasks(one, t, layer.index)
        return loss_of_batch(t)

    expected = plain_losses(loss_at, optimizer, 3)
    np.testing.assert_allclose(losses[one.id], expected, rtol=1e-5)


def test_a_base_without_biases_says_so(tiny_base: Base) -> None:
    with pytest.raises(UserError, match="bias: this base has no biases; leave bias out"):
        lora_cohort(tiny_base, [lora(2, 1e-3, bias="all")], CPU)


@pytest.mark.slow
def test_compiled_variants_equal_eager_and_are_compiled_once(
    tiny_base: Base, text_blocks: Blocks
) -> None:
    arms = [
        lora(2, 1e-3),
        lora(2, 3e-3, dora=True, lora_dropout=0.3),
        lora(4, 3e-3, init="pissa", targets="mlp"),
        lora(2, 1e-3, loraplus_lr_ratio=8),
    ]

    def losses(backend: str) -> np.ndarray:
        trainer = Trainer(lora_cohort(tiny_base, arms, CPU, arms_per_pass=4), text_blocks, BATCH)
        trainer.runner = PieceRunner(trainer.trainee, compiler=Compiler(backend))
        go_on(trainer, 0, 4)
        return np.array([[row["loss"] for row in rows] for rows in trainer.curve()])

    eager = losses("none")
    torch._dynamo.reset()
    counters.clear()
    np.testing.assert_allclose(losses("aot_eager"), eager, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1, "one graph for all blocks and all steps"
    assert not counters["graph_break"]
