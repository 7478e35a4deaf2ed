"""Bases in 4 and 8 bits: the matrices of bitsandbytes, and cohorts over them equal PEFT's arms."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step
from paretune.model.export import merge, save_adapter
from paretune.model.lora_cohort import lora_cohort
from paretune.model.quantised import Kind, QuantisedLinear
from paretune.model.trainee import Trainee, frozen
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

CPU = torch.device("cpu")
KINDS: list[Kind] = ["nf4", "int8"]
BATCH = 4


def arm(**settings: Any) -> ArmConfig:
    constant = {"shape": "constant", "warmup": "0%"}
    defaults = {"method": "lora", "rank": 4, "learning_rate": 1e-2, "schedule": constant}
    return ArmConfig.model_validate({**defaults, **settings})


def of(base: Base, kind: Kind) -> Base:
    return base.model_copy(update={"quantise": kind})


def train(trainee: Trainee, blocks: Blocks, steps: int) -> tuple[Trainer, list[list[float]]]:
    trainer = Trainer(trainee, blocks, BATCH)
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0) for _ in trainee.arms]
    for t in range(steps):
        trainer.step(t, always)
    return trainer, [[row["loss"] for row in rows] for rows in trainer.curve()]


def rounded(model: Any, kind: Kind) -> Any:
    """transformers' model with each linear layer's matrix as bitsandbytes' own layer rounds it."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if type(module) is not torch.nn.Linear or name == "lm_head":
                continue
            module.weight.copy_(by_bitsandbytes(module.weight, kind))
    return model


def by_bitsandbytes(weight_OD: torch.Tensor, kind: Kind) -> torch.Tensor:
    """The effective matrix of a layer of bitsandbytes, read off its outputs or its state."""
    d_out, d_in = weight_OD.shape
    if kind == "nf4":
        layer = bitsandbytes.nn.Linear4bit(
            d_in, d_out, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        layer.weight = bitsandbytes.nn.Params4bit(
            weight_OD.clone(), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        return layer.to(CPU)(torch.eye(d_in)).T
    steps_OD, largest_O, _ = bitsandbytes.functional.int8_vectorwise_quant(weight_OD.half())
    return steps_OD * largest_O[:, None] / 127


def model_of(base: Base) -> Any:
    return AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_is_that_of_bitsandbytes(kind: Kind) -> None:
    weight_OD = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    layer = QuantisedLinear(weight_OD, None, kind)
    expected = by_bitsandbytes(weight_OD, kind)
    torch.testing.assert_close(layer.dequantised(torch.float32), expected, rtol=1e-5, atol=1e-6)
    error = (expected - weight_OD).norm() / weight_OD.norm()
    assert 0.001 < error < (0.15 if kind == "nf4" else 0.02), "it is a rounding, and not more"


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_base_is_the_rounded_one(kind: Kind, tiny_base: Base) -> None:
    ids = torch.arange(24).view(2, 12)
    ours = frozen(of(tiny_base, kind), CPU).view(None).logits(ids)[0]
    with torch.no_grad():
        theirs = rounded(model_of(tiny_base), kind)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_arms_over_a_quantised_base_equal_peft_over_the_rounded_one(
    kind: Kind, tiny_base: Base, text_blocks: Blocks
) -> None:
    arms = [arm(), arm(dora=True), arm(init="pissa", targets="mlp")]
    trainee = lora_cohort(of(tiny_base, kind), arms, CPU, arms_per_pass=3)
    start = {
        one.id: {n: v.clone() for n, v in bank.flat.tensors(bank.arms.index(one)).items()}
        for group in trainee.passes
        for bank in group.banks
        for one in bank.arms
    }
    _, losses = train(trainee, text_blocks, 15)
    for one, own in zip(trainee.arms, losses, strict=True):
        layers = sorted({n.rpartition(".")[0] for n in start[one.id] if n.endswith(".A")})
        config = peft.LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=layers,
            use_dora=bool(one.dora),
            init_lora_weights="pissa" if one.init else True,
        )
        theirs = peft.get_peft_model(rounded(model_of(tiny_base), kind), config)
        if one.init is None:
            with torch.no_grad():
                for name in layers:
                    module = theirs.get_submodule(f"base_model.model.{name}")
                    module.lora_A["default"].weight.copy_(start[one.id][f"{name}.A"].T)
        parameters = [p for p in theirs.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
        expected = []
        for t in range(15):
            ids = text_blocks.batch(rows_for_step(text_blocks.count, BATCH, t, 0)).input_ids
            loss = theirs(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            expected.append(float(loss.detach()))
        np.testing.assert_allclose(own, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_merged_export_holds_the_rounded_base_and_the_update(
    kind: Kind,
    tiny_base: Base,
    text_blocks: Blocks,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("paretune.model.export.save_tokenizer", lambda to, base: None)
    base, one = of(tiny_base, kind), arm()
    with torch.enable_grad():
        trainer, _ = train(lora_cohort(base, [one], CPU), text_blocks, 5)
    save_adapter(tmp_path / "adapter", one, trainer.weights(0), base, transposed=False)
    merge(tmp_path / "adapter", base, tmp_path / "merged")
    ids = torch.arange(24).view(2, 12)
    ours = trainer.trainee.view(trainer.trainee.passes[0]).logits(ids)[0]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert (merged(ids).logits - ours).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_no_unpacked_matrix_outlives_its_pass(kind: Kind, tiny_base: Base) -> None:
    """What autograd keeps of a forward pass holds no matrix of the base."""
    trainee = lora_cohort(of(tiny_base, kind), [arm(), arm(dora=True)], CPU, arms_per_pass=2)
    names = [n for n, m in trainee.model.named_modules() if hasattr(m, "packed")]
    sizes = {tuple(trainee.model.get_submodule(n).matrix().shape) for n in names}
    kept: list[tuple[int, ...]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    ids = torch.arange(24).view(2, 12)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with hooks, trainee.applied(trainee.passes[0]):
        loss = trainee.forward(ids, use_cache=False).logits.sum()
    assert not sizes & set(kept)
    loss.backward()  # type: ignore[no-untyped-call]


def test_a_quantised_layer_takes_less_memory() -> None:
    weight_OD = torch.randn(512, 512)
    nf4 = QuantisedLinear(weight_OD, None, "nf4").nbytes / weight_OD.numel()
    int8 = QuantisedLinear(weight_OD, None, "int8").nbytes / weight_OD.numel()
    assert nf4 == pytest.approx(0.516, abs=0.01)
    assert int8 == pytest.approx(1.008, abs=0.002)
