"""What several drawn answers show, against counting by hand and by enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from evaluate_models import Models, broken, llama, random_tokens, tokenizer

from paretune.data.pairs import PairItem
from paretune.evaluate.diversity import mean_similarity, measures, sampled_answers
from paretune.evaluate.exact_match import first_line
from paretune.study.samples import Samples


@pytest.mark.parametrize("right", range(7))
def test_pass_at_k_is_the_share_of_groups_with_a_right_answer(right):
    passed = [i < right for i in range(6)]
    found = measures(["x"] * 6, passed, [1, 2, 4, 6])
    for k in (1, 2, 4, 6):
        groups = list(combinations(passed, k))
        assert found[f"pass_at_{k}"] == pytest.approx(np.mean([any(g) for g in groups]))


def test_different_answers_are_counted_and_split_by_pass_and_fail():
    texts = ["a", "a", "b", "c", "c", "d"]
    passed = [True, True, True, False, False, False]
    found = measures(texts, passed)
    assert (found["distinct"], found["distinct_pass"], found["distinct_fail"]) == (4, 2, 2)


def test_similarity_is_the_mean_over_pairs():
    assert mean_similarity(["same text"] * 4) == 1.0
    assert mean_similarity(["abc", "xyz"]) == 0.0
    assert mean_similarity(["", ""]) == 1.0
    assert mean_similarity(["abcd", "bcde"]) == pytest.approx(1 / 3)  # abc bcd | bcd cde
    texts = ["abcd", "bcde", "bcde", "q"]
    pairs = [mean_similarity(pair) for pair in combinations(texts, 2)]
    assert mean_similarity(texts) == pytest.approx(np.mean(pairs))
    assert np.isnan(mean_similarity(["alone"]))


SETTINGS = Samples(count=6, temperature=0.9, top_p=1.0, pass_at=(1, 3))


def pairs() -> list[PairItem]:
    return [
        PairItem(f"p{i}", "g", random_tokens(4 + i, i, vocabulary=288), np.array([1]), "x", 1)
        for i in range(3)
    ]


def small(seed: int, scale: float = 1.0):
    return llama(seed, vocabulary=288, scale=scale)


def scored(*models):
    return sampled_answers(
        Models(*models, rows=50), pairs(), tokenizer(), SETTINGS, answer_tokens=6
    )


def test_every_metric_has_an_item_for_each_prompt():
    found = scored(small(0), small(1))
    assert list(found) == SETTINGS.metric_names()
    for name, of_arms in found.items():
        assert [items.metric for items in of_arms] == [f"target/{name}"] * 2
        assert np.isfinite(of_arms[0].value).all()
        assert of_arms[0].weight.tolist() == [1.0] * 3
    units = {name: of_arms[0].unit for name, of_arms in found.items()}
    assert units["pass_at_3"] == "accuracy"
    assert units["distinct"] == "answers"
    counts = [found[name][0].value for name in ("distinct", "distinct_pass", "distinct_fail")]
    np.testing.assert_array_equal(counts[0], counts[1] + counts[2])


def test_a_sharper_model_says_fewer_things_with_less_entropy():
    found = scored(small(0, scale=0.2), small(0, scale=40.0))
    assert found["distinct"][0].value.sum() > found["distinct"][1].value.sum()
    assert found["token_entropy"][0].value == pytest.approx(np.log(288), abs=1e-3)  # nearly flat
    assert found["token_entropy"][1].value.mean() < 2.5
    assert found["similarity"][0].value.mean() < found["similarity"][1].value.mean()


def test_a_certain_model_passes_or_fails_as_its_greedy_answer():
    model = small(0, scale=1e4)
    [pair, *_] = pairs()
    ids = torch.from_numpy(pair.prompt)[None]
    out = model.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)
    text = first_line(tokenizer().decode(out[0, len(pair.prompt) :], skip_special_tokens=True))
    right = PairItem("r", "g", pair.prompt, np.array([1]), text, 1)
    wrong = PairItem("w", "g", pair.prompt, np.array([1]), text + "!", 1)
    found = sampled_answers(Models(model), [right, wrong], tokenizer(), SETTINGS, answer_tokens=6)
    assert found["pass_at_1"][0].value.tolist() == [1.0, 0.0]
    assert found["distinct"][0].value.tolist() == [1.0, 1.0]
    assert found["similarity"][0].value.tolist() == [1.0, 1.0]
    assert found["token_entropy"][0].value == pytest.approx([0.0, 0.0], abs=1e-3)


def test_a_broken_arm_has_no_outcomes():
    torn = broken(0)
    with torch.no_grad():
        torn.resize_token_embeddings(288)
        torn.lm_head.weight.fill_(float("nan"))
    found = scored(small(0), torn)
    for of_arms in found.values():
        assert np.isnan(of_arms[1].value).all()
        assert np.isfinite(of_arms[0].value).all()
