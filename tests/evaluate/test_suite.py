"""The suite from held-out rows to scores, on the pocket base, for both regimes."""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluate_models import Models, llama, tokenizer

from paretune.data.rows import Document, Pair
from paretune.errors import UserError
from paretune.evaluate.cloze import CHANCE
from paretune.evaluate.items import score
from paretune.evaluate.suite import Suite
from paretune.model.load import load_tokenizer
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import frozen
from paretune.study.arms import ArmConfig
from paretune.study.config import Base, StudyConfig

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


@pytest.mark.parametrize("regime", ["cpt", "ift"])
def test_drift_on_the_target_and_drawn_answers(regime, tmp_path):
    metrics = ["kl", "reverse_kl", "bits_per_byte"]
    target = {"data": {"from": "text", "path": "a"}, "metrics": metrics, "items": 5}
    if regime == "ift":
        target |= {"samples": {"count": 4, "pass_at": [2]}, "answer_tokens": 4}
        target["data"] = {"from": "json", "path": "a"}
    config = study(regime, target=target)
    assert config.learning_metric() == "target/bits_per_byte"
    suite = Suite.build(config, tokenizer(), prepared(regime), tmp_path)
    suite.attach_base(Models(small(0)))
    [of_base] = suite.score(Models(small(0)))
    assert [items.metric for items in of_base] == config.metric_names()
    [of_arm] = suite.score(Models(small(1)))
    for metric in ("target/kl", "target/reverse_kl"):
        place = config.metric_names().index(metric)
        assert (of_base[place].value == 0).all()
        assert (of_arm[place].value > 0).all()
        bits = of_arm[config.metric_names().index("target/bits_per_byte")]
        assert of_arm[place].ids == bits.ids
    drawn = [name for name in config.metric_names() if "distinct" in name or "pass_at" in name]
    assert len(drawn) == (4 if regime == "ift" else 0)


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


@functools.cache
def pocket_prose() -> list[Document]:
    path = Path(str(resources.files("paretune.pocket"))) / "heldout.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Document(row["id"], row["id"], row["text"]) for row in rows]


def pocket_suite(tmp_path: Path, regime: str) -> tuple[StudyConfig, Suite]:
    prose = {"name": "prose", "data": {"from": "pocket-prose"}, "items": 3}
    config = study(
        regime,
        training={"block_length": 64, "template": "plain"},
        source={
            "self_probe": {"samples": 3, "tokens": 24},
            "texts": [prose | {"metrics": ["cloze", "bits_per_byte"]}],
        },
    )
    data = prepared(regime)
    data.texts["prose"] = pocket_prose()
    return config, Suite.build(config, load_tokenizer(Base(name="pocket")), data, tmp_path)


def test_the_pocket_base_knows_its_english(tmp_path):
    """Above chance at cloze, and better at prose and its own text than 8 or even 2.5 bits."""
    config = study(
        "cpt",
        source={
            "self_probe": {"samples": 16, "tokens": 64},
            "texts": [
                {
                    "name": "prose",
                    "data": {"from": "pocket-prose"},
                    "metrics": ["cloze", "bits_per_byte"],
                    "items": 48,
                }
            ],
        },
        training={"block_length": 64},
    )
    data = SimpleNamespace(heldout=documents("code"), texts={"prose": pocket_prose()})
    suite = Suite.build(config, load_tokenizer(Base(name="pocket")), data, tmp_path)
    trainee = frozen(Base(name="pocket"), torch.device("cpu"))
    trainee.rows = 8
    suite.attach_base(trainee.view(None))
    [scored] = suite.score(trainee.view(None))
    got = {items.metric: score(items) for items in scored}
    cloze = got["prose/cloze"]
    assert cloze.value - 4 * cloze.stderr > CHANCE
    assert 0.5 < got["prose/bits_per_byte"].value < 2.5
    assert 0.5 < got["self_probe/bits_per_byte"].value < 2.5
    assert got["self_probe/kl"].value == 0.0


@pytest.mark.parametrize("regime", ["cpt", "ift"])
def test_arms_of_a_cohort_score_as_each_does_alone(regime, tmp_path):
    """Adapters over one base, three in a forward pass against one: every metric, item by item."""
    config, suite = pocket_suite(tmp_path, regime)
    device = torch.device("cpu")
    base = frozen(Base(name="pocket"), device)
    base.rows = 4
    suite.attach_base(base.view(None))
    arms = [
        ArmConfig(method="lora", rank=rank, learning_rate=rate)
        for rank, rate in ((2, 1e-3), (2, 2e-3), (5, 1e-3))
    ]
    scored: list[dict[str, list]] = []
    for size in (3, 1):
        cohort = lora_cohort(Base(name="pocket"), arms, device, arms_per_pass=size)
        cohort.rows = 4
        for flat in cohort.flats:
            for row, place in enumerate(flat.arms):
                for name, tensor in sorted(flat.tensors(row).items()):
                    arm = arms.index(cohort.arms[place])
                    noise = torch.Generator().manual_seed(1000 * arm + len(name))
                    tensor.add_(0.02 * torch.randn(tensor.shape, generator=noise))
        scored.append({})
        for group in cohort.passes:
            for place, items in enumerate(suite.score(cohort.view(group)), start=group.start):
                scored[-1][cohort.arms[place].id] = items
    for arm in arms:
        for one, other in zip(scored[0][arm.id], scored[1][arm.id], strict=True):
            np.testing.assert_allclose(one.value, other.value, rtol=2e-4, err_msg=one.metric)
    drift = [of_arm[config.metric_names().index("self_probe/kl")] for of_arm in scored[0].values()]
    assert all(score(items).value > 1e-3 for items in drift)
    assert len({score(items).value for items in drift}) == 3
