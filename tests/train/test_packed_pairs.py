"""Pairs packed into rows train as if each stood alone, and an arm trains the same in any cohort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pair_rows import colour_pairs, pair_blocks, words
from plain_loop import plain_losses
from train_helpers import BATCH, arm, lora, train, weights
from transformers import AutoModelForCausalLM

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step
from paretune.study.config import Base


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads only wait for each other on products as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """Rows that hold one to several pairs each, with and without padding."""
    blocks = pair_blocks(colour_pairs(160), tmp_path_factory.mktemp("pairs"))
    batch = blocks.batch(np.arange(blocks.count))
    assert batch.segments is not None
    assert batch.segments.max() >= 3, "several pairs in a row"
    assert (batch.segments == 0).any(), "some padding"
    assert len(set(batch.loss_mask.sum(1).tolist())) > 3, "rows differ in what counts"
    return blocks


def alone(blocks: Blocks, rows: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The pairs of some rows, each [1, length] by itself: tokens, and transformers' labels."""
    batch = blocks.batch(rows)
    assert batch.segments is not None
    pairs = []
    for ids, segments, mask in zip(batch.input_ids, batch.segments, batch.loss_mask, strict=True):
        for segment in range(1, int(segments.max()) + 1):
            own = segments == segment
            labels = ids[own].masked_fill(~mask[own], -100)
            pairs.append((ids[own][None], labels[None]))
    return pairs


def loss_alone(
    model: torch.nn.Module, pairs: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Mean over all response tokens, from one forward pass for each pair, without any mask."""
    count = sum(int((labels != -100).sum()) for _, labels in pairs)
    return (
        torch.stack(
            [
                model(input_ids=ids, labels=labels, num_items_in_batch=1, use_cache=False).loss
                for ids, labels in pairs
            ]
        ).sum()
        / count
    )


# The second has learned positions, which must start again at each pair
@pytest.mark.parametrize("which", ["tiny_base", "tiny_gpt2"])
def test_full_arm_on_packed_pairs_equals_transformers_on_each_pair_alone(
    which: str, packed: Blocks, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    own = arm(method="full", learning_rate=3e-3)
    _, losses = train(base, [own], packed, 20)
    model = AutoModelForCausalLM.from_pretrained(base.name, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)

    def loss_at(t: int) -> torch.Tensor:
        return loss_alone(model, alone(packed, rows_for_step(packed.count, BATCH, t, 0)))

    expected = plain_losses(loss_at, optimizer, 20)
    np.testing.assert_allclose(losses[own.id], expected, rtol=1e-5)
    assert expected[-1] < 0.9 * expected[0], "the comparison means little if nothing is learned"


def test_only_responses_and_the_end_after_them_count(packed: Blocks) -> None:
    tokenizer = words()
    by_prompt = {pair.prompt: pair.response for pair in colour_pairs(160)}
    seen = 0
    for ids, labels in alone(packed, np.arange(packed.count)):
        scored = labels[0] != -100
        prompt = tokenizer.decode(ids[0][~scored]).removeprefix("Question: ").split(" Answer:")[0]
        assert tokenizer.decode(ids[0][scored]) == by_prompt[prompt] + " <end>"
        seen += 1
    assert seen == 160


MIXED = [
    lora(2, 3e-3),
    lora(8, 1e-2, targets="attention"),
    lora(4, 5e-3, lora_dropout=0.3),
    lora(4, 1e-3, optimizer="lion", seed=3),  # other batches, with another number of loss tokens
]


@pytest.mark.parametrize("arms_per_pass", [1, 3, 4])
def test_lora_arms_on_pairs_train_in_a_cohort_as_alone(
    tiny_base: Base, packed: Blocks, arms_per_pass: int
) -> None:
    together, losses = train(tiny_base, MIXED, packed, 20, arms_per_pass=arms_per_pass)
    for one in MIXED:
        solo, own = train(tiny_base, [one], packed, 20)
        np.testing.assert_allclose(losses[one.id], own[one.id], rtol=1e-5)
        for name, value in weights(solo, one).items():
            got = weights(together, one)[name]
            assert (got - value).norm() <= 1e-5 * value.norm(), (one.label, name)
            if arms_per_pass == 1:
                assert torch.equal(got, value)


def test_a_batch_in_pieces_is_still_one_mean(tiny_base: Base, packed: Blocks) -> None:
    """Rows hold unequal numbers of response tokens: a mean of means would not be the mean."""
    own = [lora(4, 3e-3)]
    _, whole = train(tiny_base, own, packed, 20, rows=BATCH)
    _, cut = train(tiny_base, own, packed, 20, rows=1)
    np.testing.assert_allclose(whole[own[0].id], cut[own[0].id], rtol=1e-5)


def test_an_untrained_adapter_has_the_bases_loss_on_pairs_alone(
    tiny_base: Base, packed: Blocks
) -> None:
    """LoRA's first loss, whatever its rank, is the base's own on unpacked pairs."""
    _, losses = train(tiny_base, [lora(2, 1e-3), lora(16, 1e-2)], packed, 1)
    model = AutoModelForCausalLM.from_pretrained(tiny_base.name, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = loss_alone(model, alone(packed, rows_for_step(packed.count, BATCH, 0, 0)))
    for values in losses.values():
        np.testing.assert_allclose(values, [float(expected)], rtol=1e-5)
