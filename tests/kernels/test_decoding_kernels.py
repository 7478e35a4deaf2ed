"""The kernels that decoding takes on a GPU, against what it takes on a CPU and transformers."""

from __future__ import annotations

import torch


def test_drawn_tokens_are_the_plain_ones(device: torch.device) -> None:
    from paretune.evaluate.decode.draw import Draws, next_tokens
    from paretune.evaluate.decode.draw_kernel import drawn_tokens

    torch.manual_seed(0)
    rows, vocabulary = 24, 3000
    logits = 3 * torch.randn(rows, vocabulary)
    draws = Draws(
        torch.tensor([0, 0.2, 0.7, 1] * 6),
        torch.tensor([1, 0.95, 0.5] * 8),
        torch.randint(-(2**31), 2**31 - 1, (rows,), dtype=torch.int32),
        True,
    )
    position = torch.arange(rows, dtype=torch.int32)
    plain = next_tokens(logits, draws, position)[0]
    best = logits.max(-1)
    given = (logits, best.indices, best.values, draws.temperature, draws.top_p, draws.key, position)
    drawn = drawn_tokens(*(each.to(device) for each in given), cuts=True)
    assert drawn.tolist() == plain.tolist()
    assert len({*plain.tolist()} - {*best.indices.tolist()}) > 4


def test_rotary_embedding_is_transformers(device: torch.device) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as reference

    from paretune.model.slots.rotary_kernel import apply_rotary_pos_emb

    torch.manual_seed(0)
    q, k = torch.randn(2, 6, 5, 24, device=device), torch.randn(2, 2, 5, 24, device=device)
    for rows in (1, 2):
        angle = torch.randn(rows, 5, 12, device=device).repeat(1, 1, 2)
        given = (q, k, angle.cos(), angle.sin())
        torch.testing.assert_close(apply_rotary_pos_emb(*given), reference(*given))


def test_attention_to_slots_is_the_plain_one(device: torch.device) -> None:
    from paretune.model.slots.attention_kernel import attend_to_slots
    from paretune.model.slots.cache import attend_to_slots_plainly

    torch.manual_seed(0)
    rows, heads, share, slots, width = 4, 2, 3, 150, 24
    query = torch.randn(rows, heads * share, 1, width, device=device)
    key, value = torch.randn(2, rows, heads, 1, width, device=device)
    # Empty, full but for one place, in the middle of a block, and idle
    length = torch.tensor([0, slots - 1, 70, -1], dtype=torch.int32, device=device)
    found = []
    for attend in (attend_to_slots, attend_to_slots_plainly):
        torch.manual_seed(1)
        keys, values = torch.randn(2, rows, heads, slots, width, device=device)
        out = attend(query, key, value, keys, values, length, width**-0.5)
        found.append((out[:3], keys, values))
    tolerance = {} if device.type == "cpu" else {"rtol": 5e-3, "atol": 5e-3}  # TF32 products
    torch.testing.assert_close(*found, **tolerance)
