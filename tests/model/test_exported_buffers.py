"""Values that a base stores beside its parameters are in the models made of it."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from paretune.model.export import save_full
from paretune.model.trainee import full_arm
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

ROUTED = transformers.DeepseekV3Config(
    vocab_size=96, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, first_k_dense_replace=1,
    n_routed_experts=4, num_local_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
)  # fmt: skip


@torch.no_grad()
def test_a_routers_corrections_are_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(ROUTED).eval()
    corrections = [b for name, b in model.named_buffers() if "correction" in name]
    assert corrections
    for correction in corrections:
        correction.copy_(torch.tensor([9.0, 0.0, 9.0, 0.0]))  # experts 0 and 2, always
    for parameter in model.parameters():
        parameter.normal_(0, 0.15)
    model.save_pretrained(tmp_path / "base")
    base = Base(name=str(tmp_path / "base"))
    arm = ArmConfig(method="full", learning_rate=1e-3)
    trainee = full_arm(base, arm, torch.device("cpu"))
    save_full(tmp_path / "arm", trainee.flats[0].tensors(0), base)
    ids = torch.arange(20).view(2, 10)
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "arm").eval()
    torch.testing.assert_close(exported(ids).logits, model(ids).logits)
