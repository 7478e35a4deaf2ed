"""Models of many families: cohorts equal the base and PEFT, compiled or not, found by trying."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from train_helpers import BATCH, CPU, arm, lora

from paretune.data.blocks import Blocks
from paretune.model.export import peft_differs, save_adapter
from paretune.model.layers import linear_layers
from paretune.model.lora_cohort import lora_cohort
from paretune.model.regions import Compiler
from paretune.model.trainee import Trainee, full_arm
from paretune.study.config import Base
from paretune.train.piece import PieceRunner
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

pytestmark = pytest.mark.slow
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
GROUPS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
# What a family's configuration needs besides; why its rows cannot be packed as trees, where so
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "Apertus": ({}, ""),
    "Bloom": ({}, "takes no tree"),
    "Cohere": ({}, ""),
    "DeepseekV3": (LATENT | GROUPS | EXPERTS | {"v_head_dim": 8}, "takes no tree"),
    "Ernie4_5": ({}, ""),
    "Exaone4": ({"head_dim": 8}, ""),
    "Falcon": ({}, ""),
    "Gemma2": ({"head_dim": 8}, ""),
    "Gemma3Text": ({"head_dim": 8}, ""),
    "Glm4": ({"head_dim": 8}, ""),
    "GPTJ": (OLD | {"rotary_dim": 4}, ""),
    "GPTNeoX": ({}, ""),
    "GptOss": (EXPERTS | {"head_dim": 8}, ""),
    "Granite": ({}, ""),
    "Helium": ({"head_dim": 8}, ""),
    "Lfm2": ({}, ""),
    "Llama4Text": (EXPERTS | {"head_dim": 8, "intermediate_size_mlp": 48}, ""),
    "Mamba": ({}, "takes no tree"),
    "Mixtral": (EXPERTS, ""),
    "Mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "other logits"),
    "Nemotron": ({}, ""),
    "Olmo2": ({}, ""),
    "OPT": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, ""),
    "Phi3": ({}, ""),
    "Qwen2": ({}, ""),
    "Qwen2Moe": (EXPERTS | {"shared_expert_intermediate_size": 16}, ""),
    "Qwen3Moe": (EXPERTS | {"head_dim": 8}, ""),
    "SmolLM3": ({}, ""),
    "StableLm": ({}, ""),
    "Starcoder2": ({}, ""),
}
IDS = torch.randint(3, 96, (2, 16), generator=torch.Generator().manual_seed(0))
ARMS = [lora(2, 1e-2), lora(4, 1e-2)]


def test_the_page_of_models_names_what_is_tried() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    named = re.search(r"compiled code equals plain code:\n\n(.*?);", page, re.DOTALL)
    assert named is not None
    assert set(re.split(r",\s+", named[1])) == set(FAMILIES)
    without = re.search(r"\*\*No packed rows\*\*: (.*?), because", page, re.DOTALL)
    assert without is not None
    refused = {name for name, (_, reason) in FAMILIES.items() if reason}
    assert set(re.split(r", | and ", without[1])) == refused


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Base]:
    """A small model of a family with random weights, saved to disk."""
    name: str = request.param
    settings = getattr(transformers, f"{name}Config")(**(SMALL | FAMILIES[name][0]))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(tmp_path / "base")
    return name, Base(name=str(tmp_path / "base"))


def losses(trainee: Trainee, blocks: Blocks, compiler: Compiler) -> np.ndarray:
    """Of three steps of every arm."""
    torch._dynamo.reset()
    trainer = Trainer(trainee, blocks, BATCH)
    trainer.runner = PieceRunner(trainee, compiler=compiler)
    for t in range(3):
        trainer.step(t, [Resolved("constant", 0, 10**6, 10**6, 0.0)] * len(trainee.arms))
    assert not trainer.runner.without
    return np.array([[row["loss"] for row in rows] for rows in trainer.curve()])


def test_a_family_trains_compiled_as_in_eager_code_and_exports_to_peft(
    family: tuple[str, Base], text_blocks: Blocks, tmp_path: Path
) -> None:
    name, base = family
    plain = transformers.AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32)
    with torch.no_grad():
        expected = plain.eval()(IDS, use_cache=False).logits
    full = full_arm(base, arm(method="full", learning_rate=1e-3), CPU)
    torch.testing.assert_close(full.view(full.passes[0]).logits(IDS)[0], expected)
    trainee = lora_cohort(base, ARMS, CPU, arms_per_pass=2)
    torch.testing.assert_close(trainee.view(None).logits(IDS)[0], expected)
    eager = losses(trainee, text_blocks, Compiler("none"))
    compiler = Compiler("aot_eager", merge=True)
    compiled = losses(lora_cohort(base, ARMS, CPU, arms_per_pass=2), text_blocks, compiler)
    np.testing.assert_allclose(compiled, eager, rtol=1e-4)

    view = trainee.view(trainee.passes[0])
    refusal, reason = view.tree_refusal(16), FAMILIES[name][1]
    assert reason in str(refusal) if reason else refusal is None
    tuned = view.logits(IDS)[0]
    assert (tuned - expected).abs().max() > 1e-3 * expected.abs().max()
    transposed = any(layer.transposed for layer in linear_layers(plain).values())
    weights, folder = trainee.flats[0].tensors(0), tmp_path / "adapter"
    save_adapter(folder, trainee.arms[0], weights, base, transposed=transposed)
    refused = peft_differs(folder, base)
    assert bool(refused) == (name in ("DeepseekV3", "Mamba"))
    if not refused:
        with torch.no_grad():
            theirs = peft.PeftModel.from_pretrained(plain, folder).eval()
            found = theirs(IDS, use_cache=False).logits
        assert (found - tuned).abs().max() <= 1e-5 * tuned.abs().max()
