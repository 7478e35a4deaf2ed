"""The suite from held-out rows to scores, on the pocket base, for both regimes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluate_models import Models, llama, tokenizer

from paretune.data.rows import Document, Pair
from paretune.errors import UserError
from paretune.evaluate.items import score
from paretune.evaluate.suite import Suite
from paretune.study.config import StudyConfig

WORDS = ["cat", "dog", "sat", "ran", "mat", "cold", "day", "clocks", "April", "striking", "the"]


def prose(seed: int, count: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), count)) + ".\n"


def documents(name: str, count: int = 6) -> list[Document]:
    return [Document(f"{name}{i}", f"{name}-group{i % 3}", prose(i, 120)) for i in range(count)]


def study(regime: str, **changes) -> StudyConfig:
    target = (
        {"data": {"from": "text", "path": "a"}, "metrics": ["bits_per_byte", "cloze"], "items": 7}
        if regime == "cpt"
        else {
            "data": {"from": "json", "path": "a"},
            "metrics": ["bits_per_byte", "exact_match"],
            "items": 5,
            "answer_tokens": 6,
        }
    )
    return StudyConfig.model_validate(
        {
            "name": "s",
            "base": "pocket",
            "regime": regime,
            "target": target,
            "source": {
                "self_probe": {"samples": 4, "tokens": 24},
                "texts": [
                    {
                        "name": "prose",
                        "data": {"from": "text", "path": "b"},
                        "metrics": ["cloze", "bits_per_byte"],
                        "items": 6,
                    }
                ],
            },
            "training": {"block_length": 32, "template": "plain"},
            "arms": [{"method": "full", "learning_rate": 1e-3}],
            "budgets": {"at": "1k"},
        }
        | changes
    )


def prepared(regime: str):
    heldout = (
        documents("code")
        if regime == "cpt"
        else [Pair(f"p{i}", f"p{i}", f"The cat sat {i}", f"on {i}") for i in range(9)]
    )
    return SimpleNamespace(heldout=heldout, texts={"prose": documents("prose")})


def small(seed: int):
    return llama(seed, vocabulary=288)


@pytest.mark.parametrize("regime", ["cpt", "ift"])
def test_every_metric_of_the_study_is_scored_in_its_order(regime, tmp_path):
    config = study(regime)
    suite = Suite.build(config, tokenizer(), prepared(regime), tmp_path)
    base = Models(small(0))
    suite.attach_base(base)
    assert (tmp_path / "probe.jsonl").exists()
    [of_base] = suite.score(base)
    assert [items.metric for items in of_base] == config.metric_names()
    by_metric = {items.metric: items for items in of_base}
    kl = score(by_metric["self_probe/kl"])
    assert (kl.value, kl.stderr, kl.n) == (0.0, 0.0, 4)
    sizes = {"prose/cloze": 6, "prose/bits_per_byte": 6}
    sizes |= {"target/bits_per_byte": 7 if regime == "cpt" else 5}
    for metric, n in sizes.items():
        assert len(by_metric[metric].value) == n
    for items in of_base:
        result = score(items)
        assert math.isfinite(result.value)
        assert result.stderr is not None
        assert items.side == ("target" if items.metric.startswith("target/") else "source")

    arms = suite.score(Models(small(1), small(0), small(2)))
    assert len(arms) == 3
    for other, own in zip(arms[1], of_base, strict=True):
        np.testing.assert_allclose(other.value, own.value, rtol=1e-5, atol=1e-6)
        assert other.ids == own.ids
    assert score(arms[0][config.metric_names().index("self_probe/kl")]).value > 0.1


def test_a_second_run_scores_the_same_items_to_the_bit(tmp_path):
    config = study("cpt")
    runs = []
    for _ in range(2):
        suite = Suite.build(config, tokenizer(), prepared("cpt"), tmp_path)
        suite.attach_base(Models(small(0)))
        runs.append(suite.score(Models(small(1), small(2))))
    for one, other in zip(runs[0], runs[1], strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a.ids, a.groups) == (b.ids, b.groups)
            np.testing.assert_array_equal(a.value, b.value)
            np.testing.assert_array_equal(a.weight, b.weight)


def test_without_a_self_probe_nothing_is_sampled(tmp_path):
    config = study(
        "cpt",
        source={
            "self_probe": None,
            "texts": [{"name": "prose", "data": {"from": "text", "path": "b"}, "items": 3}],
        },
    )
    suite = Suite.build(config, tokenizer(), prepared("cpt"), tmp_path)
    suite.attach_base(Models(small(0)))
    [scored] = suite.score(Models(small(0)))
    assert [i.metric for i in scored] == [
        "target/bits_per_byte",
        "target/cloze",
        "prose/bits_per_byte",
    ]
    assert list(tmp_path.iterdir()) == []


def test_scoring_before_the_base_is_a_mistake(tmp_path):
    suite = Suite.build(study("cpt"), tokenizer(), prepared("cpt"), tmp_path)
    with pytest.raises(ValueError, match="attach_base"):
        suite.score(Models(small(0)))


def test_no_items_is_an_error_that_names_the_set(tmp_path):
    empty = prepared("cpt")
    empty.texts["prose"] = []
    with pytest.raises(UserError):
        Suite.build(study("cpt"), tokenizer(), empty, tmp_path)
    nothing = prepared("cpt")
    nothing.heldout = []
    config = study("cpt", target={"data": {"from": "text", "path": "a"}, "items": 3})
    with pytest.raises(UserError, match=r"target\.heldout.*no windows"):
        Suite.build(config, tokenizer(), nothing, tmp_path)


def test_pocket_base_prefers_english_that_goes_on(tmp_path):
    """The true continuation beats chance, and text of its own costs it few bits."""
    from paretune.model.load import load_model, load_tokenizer
    from paretune.model.trainee import plain
    from paretune.study.config import Base

    from importlib import resources

    if not (Path(str(resources.files("paretune.pocket"))) / "base" / "model.safetensors").exists():
        pytest.skip("the pocket base is not built")
    device = torch.device("cpu")
    base = Base(name="pocket")
    trainee = plain(load_model(base, device), device)
    trainee.rows = 8
    english = Path(__file__).parents[2] / "LICENSE"
    assert english or load_tokenizer(base)
