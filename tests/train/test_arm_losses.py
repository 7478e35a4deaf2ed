"""Losses made a slice of tokens at a time, and their gradients, against torch's cross-entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_helpers import BATCH, CPU, lora, train
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step
from paretune.model.lora_cohort import lora_cohort
from paretune.study.config import Base
from paretune.train import loss as losses
from paretune.train.labelled import labelled_positions
from paretune.train.loss import IGNORED, arm_losses, next_tokens

ARMS, ROWS, LENGTH, WIDTH, VOCABULARY = 3, 2, 7, 5, 11


def inputs(arms: int, *, head: bool) -> dict[str, torch.Tensor]:
    """Random float64 inputs; some labels do not count."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(VOCABULARY, (arms * ROWS, LENGTH), generator=draw)
    labels[:, -1] = IGNORED
    labels[0, :5] = IGNORED
    labels[1, :2] = IGNORED

    def normal(*shape: int, trained: bool) -> torch.Tensor:
        values = torch.randn(*shape, generator=draw, dtype=torch.float64)
        return values.requires_grad_(trained)

    return {
        "hidden_NSD": normal(arms * ROWS, LENGTH, WIDTH, trained=True),
        "head_VD": normal(VOCABULARY, WIDTH, trained=head),
        "bias_V": normal(VOCABULARY, trained=head),
        "labels_NS": labels,
        "weight_K": torch.rand(arms, generator=draw),
    }


def reference(given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same from all logits at once."""
    logits = given["hidden_NSD"] @ given["head_VD"].T + given["bias_V"]
    each = F.cross_entropy(
        logits.flatten(0, 1), given["labels_NS"].flatten(), reduction="none", ignore_index=IGNORED
    )
    return each.view(len(given["weight_K"]), -1).sum(1) * given["weight_K"]


# For all positions, for those with a label, and for a share of them, as on a GPU
@pytest.mark.parametrize("labelled", [None, "cpu", "cuda"])
@pytest.mark.parametrize("slice_bytes", [4 * VOCABULARY, 10 * 4 * VOCABULARY, 2**20])
@pytest.mark.parametrize(("arms", "head"), [(ARMS, False), (1, True)])
def test_losses_and_gradients_equal_cross_entropy(
    slice_bytes: int, arms: int, head: bool, labelled: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("SLICE_BYTES", "SLICE_BYTES_TRAINED"):
        monkeypatch.setattr(losses, each, {"cpu": slice_bytes, "cuda": slice_bytes})
    mine, theirs = inputs(arms, head=head), inputs(arms, head=head)
    factor_K = torch.linspace(0.5, 2.0, arms, dtype=torch.float64)
    chosen_C = None
    if labelled:
        heads = [(mine["head_VD"], mine["bias_V"])]
        found = labelled_positions(mine["labels_NS"], heads, labelled)
        assert found is not None
        chosen_C = found[0]
        assert len(chosen_C) < mine["labels_NS"].numel()
    got, expected = arm_losses(**mine, labelled_C=chosen_C), reference(theirs)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-7)
    (got * factor_K).sum().backward()
    (expected * factor_K).sum().backward()
    for name in ("hidden_NSD", "head_VD", "bias_V"):
        if theirs[name].grad is None:
            assert mine[name].grad is None
            continue
        torch.testing.assert_close(mine[name].grad, theirs[name].grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("slice_bytes", [10 * 4 * VOCABULARY, 2**20])
def test_a_head_s_gradient_is_added_where_it_is_kept(
    slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "SLICE_BYTES_TRAINED", {"cpu": slice_bytes})
    mine, theirs = inputs(1, head=True), inputs(1, head=True)
    mine["head_VD"].grad = torch.ones_like(mine["head_VD"])
    got = arm_losses(**mine, into_VD=mine["head_VD"].grad)
    (2 * got).sum().backward()
    (2 * reference(theirs)).sum().backward()
    for name in ("hidden_NSD", "head_VD", "bias_V"):
        expected = theirs[name].grad + (1 if name == "head_VD" else 0)
        torch.testing.assert_close(mine[name].grad, expected, rtol=1e-5, atol=1e-7)


def test_the_compiled_form_of_a_slice_equals_the_other() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(6, VOCABULARY, generator=draw)
    labels = torch.tensor([3, 0, IGNORED, 10, 5, 5])
    weights = torch.rand(6, generator=draw)
    for a, b in zip(
        losses._loss_and_gradient(logits, labels, weights),
        losses._step_by_step(logits, labels, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_labels_are_the_next_tokens_that_count() -> None:
    ids = torch.tensor([[4, 5, 6, 7]])
    counts = torch.tensor([[False, True, False, True]])
    assert next_tokens(ids, counts).tolist() == [[5, IGNORED, 7, IGNORED]]


def test_logits_that_are_capped_after_the_head_are_used_as_they_come(
    text_blocks: Blocks, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("capped")
    torch.manual_seed(0)
    settings = Gemma2Config(
        vocab_size=int(text_blocks.batch(np.arange(text_blocks.count)).input_ids.max()) + 1,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.5,
        final_logit_softcapping=0.5,
    )
    Gemma2ForCausalLM(settings).save_pretrained(folder)
    base = Base(name=str(folder))
    assert not lora_cohort(base, [lora(2, 1e-3)], CPU).head_is_linear
    _, found = train(base, [lora(2, 1e-3)], text_blocks, 1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = text_blocks.batch(rows_for_step(text_blocks.count, BATCH, 0, 0)).input_ids
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=ids, use_cache=False).loss)
    ((loss,),) = found.values()
    assert loss == pytest.approx(expected, rel=1e-5)
