"""Attention in trees, against torch's with the dense mask in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.evaluate.tasks.pack import Scored, pack
from paretune.model.tree import TREE, block_mask, dense_mask, seen_blocks, tile_tokens


def tree_of(seed: int) -> torch.Tensor:
    """The ends of a row of random questions: long and short contexts with three answers each."""
    draw = np.random.default_rng(seed)
    asked = []
    for length in draw.integers(3, 150, 6):
        context = draw.integers(0, 99, length)
        asked += [Scored(np.r_[context, draw.integers(0, 99, 20)], 20) for _ in range(3)]
    (packed,) = pack([asked], 4096)
    return torch.from_numpy(packed.row.padded(-(-len(packed.row.tokens) // 128) * 128).ends)


@pytest.mark.parametrize(
    ("heads", "shared", "size", "tokens"), [(4, 4, 16, 64), (8, 2, 32, 32), (6, 2, 64, 16)]
)
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equals_a_dense_mask(
    heads: int,
    shared: int,
    size: int,
    tokens: int,
    across: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    from paretune.model import tree_kernel

    if device.type == "cpu" and dtype == torch.bfloat16:
        pytest.skip("the interpreter has no products in bf16")

    ends = tree_of(heads)
    S = len(ends)
    torch.manual_seed(0)
    shapes = ((2, S, n, size) if across else (2, n, S, size) for n in (heads, shared, shared))
    query, key, value = (
        each.transpose(1, 2) if across else each
        for each in (torch.randn(shape).to(device, dtype) for shape in shapes)
    )
    counts, blocks = seen_blocks(ends.to(device), tokens, 64)
    own = ends.to(device, torch.int32)
    got = tree_kernel.attend(query, key, value, own, counts, blocks, 0.2).cpu()
    place = torch.arange(S)
    mask = (place <= place[:, None]) & (place[:, None] < ends)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(each.cpu().double() for each in (query, key, value)),
        attn_mask=mask,
        scale=0.2,
        enable_gqa=True,
    ).transpose(1, 2)
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("heads", [6, 4])
@torch.no_grad()
def test_a_models_attention_is_the_kernel_also_where_it_is_compiled(
    heads: int, device: torch.device
) -> None:
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=16 * heads,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(device, torch.float16).eval()
    ends = tree_of(1).to(device)
    ids = torch.randint(0, 99, (2, len(ends)), device=device)
    rows = {"input_ids": ids, "position_ids": torch.arange(len(ends), device=device)[None] % 50}
    model.config._attn_implementation = "sdpa"
    expected = model(**rows, attention_mask=dense_mask(ends, model, torch.float16)).logits
    model.config._attn_implementation = TREE
    mask = block_mask(ends, tile=tile_tokens(config))
    found = model(**rows, attention_mask=mask).logits
    assert mask.served
    for block in model.model.layers:
        block.forward = torch.compile(block.forward, dynamic=False, backend="aot_eager")
    mask = block_mask(ends, tile=tile_tokens(config))
    compiled = model(**rows, attention_mask=mask).logits
    assert not mask.served, "known of plain code only"
    for each in (found, compiled):
        assert (each - expected).float().norm() < 5e-3 * expected.float().norm()
