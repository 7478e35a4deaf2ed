"""Cloze against a brute-force loop over options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_models import Models, broken, llama, random_tokens

from paretune.data.cloze import ClozeItem
from paretune.evaluate.cloze import choose, cloze, option_log_likelihoods
from paretune.model.trainee import frozen


def item(index: int, context: int = 12, length: int = 5) -> ClozeItem:
    options = np.stack([random_tokens(length, 100 * index + o) for o in range(4)])
    return ClozeItem(f"c{index}", f"g{index}", random_tokens(context, index), options, index % 4)


def brute_force(model, it: ClozeItem) -> list[float]:
    """One row an option, no cache, float64."""
    sums = []
    for option in it.options:
        ids = torch.from_numpy(np.concatenate([it.context, option]))[None]
        with torch.no_grad():
            log_p = model.double()(ids).logits[0].log_softmax(-1)
        at = range(len(it.context), ids.shape[1])
        sums.append(sum(log_p[t - 1, ids[0, t]].item() for t in at))
    return sums


@pytest.mark.parametrize("rows", [1, 20])
def test_likelihoods_and_choices_agree_with_brute_force(rows):
    items = [item(i) for i in range(9)] + [item(9, 12, 3), item(10, 1, 5), item(11, 7, 1)]
    arms = Models(llama(0), llama(1), rows=rows)
    got = option_log_likelihoods(arms, items, row_tokens=64)
    outcomes = cloze(arms, items, "prose/cloze", row_tokens=64)
    for k in range(2):
        model = llama(k)
        expected = np.array([brute_force(model, it) for it in items])
        np.testing.assert_allclose(got[k], expected, rtol=1e-5)
        right = [float(row.argmax() == it.answer) for row, it in zip(expected, items, strict=True)]
        assert outcomes[k].value.tolist() == right
        assert outcomes[k].weight.tolist() == [1.0] * len(items)
    assert (outcomes[0].side, outcomes[0].unit, outcomes[0].higher_is_better) == (
        "source",
        "accuracy",
        True,
    )


def test_the_real_model_view_of_another_architecture(tiny_gpt2):
    """GPT-2's learned positions go on after the context's cache."""
    trainee = frozen(tiny_gpt2, torch.device("cpu"))
    trainee.rows = 3
    items = [item(i) for i in range(5)]
    [got] = option_log_likelihoods(trainee.view(None), items, row_tokens=40)
    expected = [brute_force(trainee.model, it) for it in items]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_context_runs_through_the_model_once():
    arms = Models(llama(0), rows=100)
    cloze(arms, [item(i) for i in range(20)], "target/cloze")
    assert arms.passes == 2


def test_a_tie_goes_to_the_lowest_index():
    tied = np.array([[[-2.0, -1.0, -1.0, -3.0], [-1.0, -1.0, -1.0, -1.0]]])
    assert choose(tied, np.array([1, 0])).tolist() == [[1.0, 1.0]]
    assert choose(tied, np.array([2, 3])).tolist() == [[0.0, 0.0]]


def test_random_models_are_right_a_quarter_of_the_time():
    items = [item(i) for i in range(400)]
    [got] = cloze(Models(llama(0), rows=64), items, "target/cloze")
    assert abs(got.value.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_nan_in_one_arm_is_no_choice_and_stays_there():
    items = [item(i) for i in range(5)]
    alone = cloze(Models(llama(0)), items, "target/cloze")
    mixed = cloze(Models(broken(1), llama(0)), items, "target/cloze")
    np.testing.assert_array_equal(mixed[1].value, alone[0].value)
    assert np.isnan(mixed[0].value).all()
