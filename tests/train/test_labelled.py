"""The output head is computed where labels are, for the same losses, gradients and weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pair_rows import colour_pairs, pair_blocks
from train_helpers import BATCH, CPU, arm, lora, train, weights

from paretune.data.blocks import Blocks
from paretune.data.order import rows_for_step
from paretune.model.trainee import Head
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train import loss, piece
from paretune.train.labelled import labelled_positions
from paretune.train.loss import IGNORED, next_tokens
from paretune.train.piece import Piece

VOCABULARY, STEPS = 96, 4
HEAD: Head = (torch.zeros(VOCABULARY, 1), None)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """Rows of pairs of which some have few labels and some have many."""
    return pair_blocks(colour_pairs(80, repeats=9), tmp_path_factory.mktemp("uneven"))


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions go through the head: one entry for each slice."""
    seen: list[int] = []
    real = loss._losses_and_gradient

    def counting(logits_TV: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(logits_TV))
        return real(logits_TV, *rest)

    monkeypatch.setattr(loss, "_losses_and_gradient", counting)
    return seen


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_positions_hold_every_label_once_in_one_of_few_numbers(
    kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.SLICE_BYTES, "cuda", 4 * VOCABULARY * 13)
    draw = torch.Generator().manual_seed(0)
    labels = torch.full((6, 40), IGNORED)
    labels[torch.rand(6, 40, generator=draw) < share] = 7
    for heads in (1, 3):
        found = labelled_positions(labels, [HEAD] * heads, kind)
        assert found is not None
        own_labels = labels.view(heads, -1)
        total = own_labels.shape[1]
        for positions, own in zip(found, own_labels, strict=True):
            assert len(set(positions.tolist())) == len(positions), "none comes twice"
            assert set((own != IGNORED).nonzero()[:, 0].tolist()) <= set(positions.tolist())
        most = int((own_labels != IGNORED).sum(1).max())
        if kind == "cpu":
            assert found.shape[1] == max(1, most)
        else:
            assert found.shape[1] in [total * part // 4 for part in (1, 2, 3, 4)]
            assert most <= found.shape[1] < most + total / 4 + 1


def test_slices_that_do_not_fill_all_positions_leave_nothing_out() -> None:
    """On a GPU another shape would be compiled in the middle of a run."""
    labels = torch.full((1, 37), IGNORED)
    assert labelled_positions(labels, [HEAD], "cuda") is None
    assert labelled_positions(labels, [HEAD], "cpu") is not None


def test_texts_go_through_the_head_whole(text_blocks: Blocks, uneven: Blocks) -> None:
    for blocks, chosen in ((text_blocks, False), (uneven, True)):
        made = Piece.of([blocks.batch(np.arange(2))], slice(0, 2), CPU, heads=[HEAD])
        assert (made.labelled_HC is not None) == chosen


def test_a_cpu_computes_the_head_for_labels_alone(
    tiny_base: Base, uneven: Blocks, widths: list[int]
) -> None:
    train(tiny_base, [lora(4, 1e-3)], uneven, STEPS)
    batches = [uneven.batch(rows_for_step(uneven.count, BATCH, t, 0)) for t in range(STEPS)]
    labels = [next_tokens(batch.input_ids, batch.loss_mask) for batch in batches]
    assert sum(widths) == sum(int((each != IGNORED).sum()) for each in labels)


LORA = [lora(4, 1e-3), lora(8, 3e-3, lora_dropout=0.2), lora(4, 1e-3, seed=3)]
FULL = [arm(method="full", learning_rate=rate) for rate in (1e-3, 3e-3)]


@pytest.mark.parametrize("arms", [LORA, FULL, FULL[:1]], ids=["lora", "full", "one-full"])
def test_fixed_shapes_train_as_all_positions_do(
    arms: Sequence[ArmConfig],
    tiny_base: Base,
    uneven: Blocks,
    widths: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, here in eager code; each of several full arms has a head of its own."""
    for each in (loss.SLICE_BYTES, loss.SLICE_BYTES_TRAINED):
        for kind in each:
            monkeypatch.setitem(each, kind, 4 * VOCABULARY * 10)
    numbers: set[int] = set()

    def fixed(labels_NS: torch.Tensor, heads: Sequence[Head], kind: str) -> torch.Tensor:
        found = labelled_positions(labels_NS, heads, "cuda")
        assert found is not None
        numbers.add(found.shape[1])
        return found

    monkeypatch.setattr(piece, "labelled_positions", lambda *_: None)
    whole, expected = train(tiny_base, arms, uneven, STEPS, arms_per_pass=len(arms), rows=1)
    widths.clear()
    monkeypatch.setattr(piece, "labelled_positions", fixed)
    some, got = train(tiny_base, arms, uneven, STEPS, arms_per_pass=len(arms), rows=1)
    assert len(numbers) > 1, "pieces differ in how many positions they need"
    assert len(set(widths)) == 1, "all slices have one shape, whatever the number"
    for one in arms:
        np.testing.assert_allclose(got[one.id], expected[one.id], rtol=1e-5)
        for name, value in weights(whole, one).items():
            assert (weights(some, one)[name] - value).norm() <= 1e-5 * value.norm(), name
