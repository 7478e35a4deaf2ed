"""Every recipe is a sound study; those of the paper have the paper's hyperparameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from paretune.errors import UserError
from paretune.study.recipes import list_recipes, read_recipe
from paretune.study.schema import schema_text, study_schema
from paretune.study.yamlfile import dump_study, parse_study
from paretune.study.yamltree import read

ROOT = Path(__file__).resolve().parents[2]
NAMES = [recipe.name for recipe in list_recipes()]
CPT = ["250M", "500M", "1B", "2B", "4B", "8B", "16B", "20B"]
IFT = ["1ep", "2ep", "4ep", "8ep", "16ep"]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_sound(name: str, validator: jsonschema.Draft202012Validator) -> None:
    text = read_recipe(name)
    study = parse_study(text, name)
    assert study.config.name == name
    assert validator.is_valid(read(text).value)
    assert validator.is_valid(read(dump_study(study)).value)


@pytest.mark.parametrize("recipe", list_recipes(), ids=NAMES)
def test_recipe_says_what_it_is(recipe: Any) -> None:
    assert recipe.text.startswith("# ")
    assert 20 <= len(recipe.description) <= 110
    assert all(len(line) <= 110 for line in recipe.text.splitlines())


def test_pocket_recipes_come_first() -> None:
    pocket = [name for name in NAMES if name.startswith("pocket")]
    assert NAMES[: len(pocket)] == pocket
    assert NAMES[0] == "pocket-cpt"


def test_pocket_study_has_the_arms_of_the_demo() -> None:
    """At least 2 full and 6 LoRA arms (3 ranks x 2 learning rates), 3 budgets."""
    study = parse_study(read_recipe("pocket-cpt"), "pocket-cpt")
    lora = [arm for arm in study.arms if arm.method == "lora"]
    assert len(study.arms) - len(lora) >= 2
    assert len({arm.rank for arm in lora}) >= 3
    assert len(lora) >= 6
    assert len(study.config.budgets.at) >= 3
    assert {"self_probe/kl", "prose/cloze"} <= set(study.config.metric_names())


def test_an_unknown_recipe() -> None:
    with pytest.raises(UserError, match="did you mean pocket-cpt"):
        read_recipe("pocket-ctp")
    with pytest.raises(UserError, match="there is pocket-cpt, pocket-"):
        read_recipe("zzzzzz")


# Biderman et al. (2024), section 3 and appendix A: (learning rate of full, of LoRA r 16, 64, 256),
# weight decay in LLM Foundry's convention, batch, length, budgets, their mode, schedule.
TRAPEZOID = {"shape": "trapezoid", "warmup": "1000ba"}
COSINE = {"shape": "cosine", "warmup": "10%", "final": 0.01}


LEARNING = {"code": "humaneval/pass@1", "math": "gsm8k/exact_match,strict-match"}


@pytest.mark.parametrize(
    ("name", "rates", "decay", "shape", "budgets", "mode", "schedule"),
    [
        ("code-cpt", (1e-5, 1e-5, 1e-5, 1e-5), 1e-6, (192, 4096), CPT, "cooldown", TRAPEZOID),
        ("math-cpt", (1e-5, 4e-5, 4e-5, 4e-5), 0.0, (192, 4096), CPT, "cooldown", TRAPEZOID),
        ("code-ift", (5e-5, 2e-4, 2e-4, 1e-4), 0.0, (192, 4096), IFT, "separate", COSINE),
        ("math-ift", (1e-5, 1e-4, 1e-4, 5e-5), 0.0, (768, 1024), IFT, "separate", COSINE),
    ],
)
def test_papers_hyperparameters(
    name: str,
    rates: tuple[float, ...],
    decay: float,
    shape: tuple[int, int],
    budgets: list[str],
    mode: str,
    schedule: dict[str, Any],
) -> None:
    study = parse_study(read_recipe(f"paper-{name}"), name)
    config = study.config
    assert [(arm.method, arm.rank) for arm in study.arms] == [
        ("full", None),
        ("lora", 16),
        ("lora", 64),
        ("lora", 256),
    ]
    assert tuple(arm.learning_rate for arm in study.arms) == rates
    assert (config.training.batch_size, config.training.block_length) == shape
    assert [str(budget) for budget in config.budgets.at] == budgets
    assert config.budgets.mode == mode
    assert config.regime == name[-3:]
    assert config.learning_metric() == LEARNING[name[:4]]
    assert config.forgetting_metric() == "forgetting_score"
    for arm in study.arms:
        assert (arm.optimizer, arm.betas, arm.clip) == ("lion", (0.9, 0.95), 1.0)
        assert (arm.weight_decay_relative or 0.0) == decay
        assert schedule.items() <= arm.schedule.model_dump().items()
        if arm.method == "lora":
            assert (arm.gamma, arm.lora_dropout, arm.targets) == (2.0, 0.05, "all")
    if mode == "cooldown":
        assert study.arms[0].schedule.cooldown_span() == "20%"


def test_papers_ablations() -> None:
    """Figures 4 and 7: section 5 and appendix of Biderman et al. (2024)."""
    regularisers = parse_study(read_recipe("paper-code-ift-regularisers"), "regularisers").arms
    full = [arm for arm in regularisers if arm.method == "full"]
    assert {arm.weight_decay_relative or 0.0 for arm in full} == {0.0, 5e-5, 1e-4}
    assert {arm.attention_dropout for arm in full} == {None, 0.05, 0.1}
    assert {arm.rank for arm in regularisers if arm.method == "lora"} == {16, 256}
    targets = parse_study(read_recipe("paper-code-ift-targets"), "targets").arms
    assert {(arm.rank, arm.targets) for arm in targets} == {
        (rank, target) for rank in (16, 64, 256) for target in ("attention", "mlp", "all")
    }
    assert {arm.gamma for arm in targets} == {2.0}


def test_published_schema_is_up_to_date() -> None:
    assert (ROOT / "docs" / "study.schema.json").read_text() == schema_text(), "run: make docs"


@pytest.mark.parametrize(
    "change",
    [
        {"nam": "x"},
        {"regime": "pretraining"},
        {"training": {"gpus": 8}},
        {"arms": []},
        {"arms": [{"method": "full", "learning_rat": 1e-3}]},
        {"arms": [{"method": "full", "learning_rate": ["high"]}]},
        {"arms": [{"method": "lora", "alpha": "2x"}]},
        {"arms": [{"method": "lora", "paired": {"rank": 4}}]},
        {"defaults": {"schedule": {"shape": "linear"}}},
        {"budgets": {"at": []}},
        {"target": {"data": {"from": "jsonl", "path": "x"}}},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_schema_marks_mistakes(
    change: dict[str, Any], validator: jsonschema.Draft202012Validator
) -> None:
    """An editor underlines what the reader would refuse."""
    document = read(read_recipe("pocket-cpt")).value
    assert validator.is_valid(document)
    assert not validator.is_valid(document | change)
