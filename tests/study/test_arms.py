"""Sweeps become the right arms, and an arm's id is a hash of exactly its settings."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

import pytest
from pydantic import ValidationError

from paretune.study.arms import ArmConfig
from paretune.study.mistakes import MistakesError
from paretune.study.sweeps import complete_defaults, expand
from paretune.study.yamlfile import parse_study

LORA: dict[str, Any] = {"method": "lora", "learning_rate": 1e-3, "rank": 16}


def test_lists_multiply() -> None:
    arms = expand({"method": "lora", "rank": [4, 16], "learning_rate": [1e-4, 1e-3, 1e-2]}, {})
    assert [(arm["rank"], arm["learning_rate"]) for arm in arms] == list(
        itertools.product([4, 16], [1e-4, 1e-3, 1e-2])
    )


def test_paired_lists_advance_together_and_multiply_with_the_rest() -> None:
    arms = expand(
        {
            "method": "lora",
            "paired": {"rank": [16, 256], "learning_rate": [2e-4, 1e-4]},
            "seed": [0, 1],
        },
        {},
    )
    assert {(arm["rank"], arm["learning_rate"], arm["seed"]) for arm in arms} == {
        (16, 2e-4, 0),
        (16, 2e-4, 1),
        (256, 1e-4, 0),
        (256, 1e-4, 1),
    }
    assert len(arms) == 4


@pytest.mark.parametrize(
    ("key", "value", "values"),
    [
        ("targets", ["all", "mlp"], ["all", "mlp"]),  # keywords: a sweep
        ("targets", ["q_proj", "v_proj"], [["q_proj", "v_proj"]]),  # names: one value
        ("targets", [["q_proj"], "all"], [["q_proj"], "all"]),
        ("betas", [0.9, 0.95], [[0.9, 0.95]]),  # two numbers: one value
        ("betas", [[0.9, 0.95], [0.9, 0.999]], [[0.9, 0.95], [0.9, 0.999]]),
        ("schedule", ["cosine", {"shape": "constant"}], ["cosine", {"shape": "constant"}]),
        ("clip", [None, 1.0], [None, 1.0]),
    ],
)
def test_what_counts_as_a_sweep(key: str, value: Any, values: list[Any]) -> None:
    arms = expand({**LORA, key: value}, {})
    assert [arm[key] for arm in arms] == values
    assert all(ArmConfig.model_validate(arm) for arm in arms)


def test_defaults_give_way_to_the_arm_and_to_its_method() -> None:
    defaults = {"rank": 8, "alpha": "4r", "attention_dropout": 0.1, "learning_rate": [1e-4, 1e-3]}
    assert expand({"method": "full"}, defaults) == [
        {"method": "full", "attention_dropout": 0.1, "learning_rate": rate} for rate in (1e-4, 1e-3)
    ]
    assert expand({"method": "lora", "rank": 2, "learning_rate": 1.0}, defaults) == [
        {"method": "lora", "rank": 2, "learning_rate": 1.0, "alpha": "4r"}
    ]


def test_both_methods_in_one_entry() -> None:
    """What is for LoRA among the defaults does not multiply the full arm."""
    arms = expand(
        {"method": ["full", "lora"], "learning_rate": 1e-3}, {"rank": [2, 4], "lora_dropout": 0.1}
    )
    assert [(arm["method"], arm.get("rank")) for arm in arms] == [
        ("full", None),
        ("lora", 2),
        ("lora", 4),
    ]


def test_a_method_among_the_defaults() -> None:
    arms = expand({"learning_rate": [1e-3, 1e-4]}, {"method": "full", "rank": 4})
    assert [arm["method"] for arm in arms] == ["full", "full"]
    assert not any("rank" in arm for arm in arms)


def test_weight_decay_in_one_convention_silences_the_default_in_the_other() -> None:
    arm = {"method": "full", "learning_rate": 5e-5, "weight_decay_relative": 1e-4}
    (settings,) = expand(arm, complete_defaults({"weight_decay": 0.1}))
    # FACTS of the paper: LLM Foundry's 1e-4 at learning rate 5e-5 is 2.0 in torch's convention
    assert ArmConfig.model_validate(settings).decay == pytest.approx(2.0)


@pytest.mark.parametrize(
    "group",
    [
        {"method": "lora", "paired": {"rank": [1, 2], "learning_rate": [1e-3]}},
        {"method": "lora", "paired": {"rank": 1}},
        {"method": "lora", "rank": 1, "paired": {"rank": [1]}},
        {"method": "lora", "rank": []},
        {"method": "lora", "paired": {"rank": []}},
        {"method": "lora", "seed": list(range(40)), "rank": list(range(40))},
    ],
)
def test_sweeps_that_make_no_sense(group: dict[str, Any]) -> None:
    with pytest.raises(MistakesError):
        expand(group, {})


def test_completed_defaults_change_no_arm() -> None:
    for arm in (LORA, {"method": "full", "learning_rate": 1e-4, "optimizer": "lion"}):
        plain, completed = expand(arm, {}), expand(arm, complete_defaults({}))
        assert [ArmConfig.model_validate(a) for a in plain] == [
            ArmConfig.model_validate(a) for a in completed
        ]


def test_alpha_is_a_number_or_a_multiple_of_the_rank() -> None:
    def alpha(value: Any) -> float | None:
        return ArmConfig.model_validate({**LORA, "alpha": value}).alpha

    assert [alpha("2r"), alpha("r"), alpha("0.5r"), alpha(32), alpha(None)] == [32, 16, 8, 32, 32]
    assert ArmConfig.model_validate({**LORA, "alpha": 8}).gamma == 0.5


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    """Kalajdzievski (2023): gamma = alpha / sqrt(r)."""
    assert ArmConfig.model_validate({**LORA, "scaling": "rslora", "alpha": 16}).gamma == 4.0


@pytest.mark.parametrize(
    ("settings", "family"),
    [
        ({}, "lora"),
        ({"lora_dropout": 0.1, "targets": "mlp", "alpha": 5}, "lora"),
        ({"scaling": "rslora", "alpha": 16}, "rslora"),
        ({"init": "pissa"}, "pissa"),
        ({"loraplus_lr_ratio": 8}, "loraplus"),
        ({"dora": True}, "dora"),
        ({"bias": "lora_only"}, "lora-bias"),
        ({"dora": True, "scaling": "rslora", "alpha": 16, "bias": "all"}, "dora-rslora-bias"),
    ],
)
def test_a_variant_is_named_in_id_and_label(settings: dict[str, Any], family: str) -> None:
    arm = ArmConfig.model_validate(LORA | settings)
    assert arm.family == family
    assert arm.id.startswith(f"{family}-r16-lr0.001-s0-")
    assert arm.label == f"{family} r16 lr 0.001"


def test_a_sweep_over_a_variant_and_its_absence() -> None:
    arms = expand({**LORA, "dora": [False, True], "init": ["default", "pissa"]}, {})
    families = [ArmConfig.model_validate(arm).family for arm in arms]
    assert families == ["lora", "pissa", "dora", "dora-pissa"]


@pytest.mark.parametrize("value", [True, "16", 16.5, -1, 0])
def test_a_rank_is_a_whole_number_above_zero(value: Any) -> None:
    with pytest.raises(ValidationError):
        ArmConfig.model_validate({**LORA, "rank": value})


def test_id_is_the_hash_of_the_settings() -> None:
    """Computed here from the settings written out: a change of the id cannot pass unseen."""
    settings = {
        "method": "lora",
        "learning_rate": 0.001,
        "rank": 16,
        "alpha": 32.0,
        "targets": "all",
        "lora_dropout": 0.0,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "eps": 1e-08,
        "weight_decay": 0.0,
        "clip": 1.0,
        "schedule": {"shape": "cosine", "warmup": "10%", "final": 0.0},
        "seed": 0,
    }
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    assert digest == "3760a52b"
    assert ArmConfig.model_validate(LORA).id == f"lora-r16-lr0.001-s0-{digest}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"alpha": "2r"}, {"alpha": 32}),
        ({"clip": 1}, {"clip": 1.0}),
        ({"schedule": "cosine"}, {"schedule": {"shape": "cosine"}}),
        ({"schedule": {"warmup": "10%"}}, {"schedule": {"warmup": "10.0%"}}),
        ({"schedule": {"warmup": "1000ba"}}, {"schedule": {"warmup": "1kba"}}),
        ({"optimizer": "lion"}, {"optimizer": "lion", "betas": [0.9, 0.95]}),
        ({}, {"scaling": "standard", "init": "default", "dora": False, "bias": "none"}),
        ({}, {"loraplus_lr_ratio": 1}),
    ],
)
def test_two_spellings_of_one_arm_have_one_id(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert ArmConfig.model_validate(LORA | one).id == ArmConfig.model_validate(LORA | other).id


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1.0000001e-3},
        {"seed": 1},
        {"clip": None},
        {"targets": ["q_proj"]},
        {"schedule": {"final": 0.01}},
        {"betas": [0.9, 0.99]},
        {"lora_dropout": 0.05},
        {"eps": 1e-6},
        {"scaling": "rslora", "alpha": 32},
        {"init": "pissa"},
        {"loraplus_lr_ratio": 16},
        {"dora": True},
        {"bias": "all"},
        {"bias": "lora_only"},
    ],
)
def test_every_setting_is_in_the_id_and_in_the_record(change: dict[str, Any]) -> None:
    arm = ArmConfig.model_validate(LORA | change)
    assert arm.id != ArmConfig.model_validate(LORA).id
    read_back = ArmConfig.model_validate(json.loads(json.dumps(arm.record())))
    assert read_back == arm
    assert read_back.id == arm.id


def test_numbers_in_every_spelling_of_yaml() -> None:
    """``1e-4`` is text in YAML 1.1, which most readers keep to."""
    rates = ["1e-4", "1.0e-4", "0.0001", ".0001", "1E-4", "+1e-4"]
    for rate in rates:
        text = f"""
            name: x
            base: pocket
            regime: cpt
            target: {{data: {{from: python-packages}}}}
            budgets: {{at: 1M}}
            arms: [{{method: full, learning_rate: {rate}}}]
        """
        (arm,) = parse_study(text, "x.yaml").arms
        assert arm.learning_rate == 1e-4


def test_every_setting_of_full_finetuning_can_be_swept_in_a_file() -> None:
    text = """
name: dropout
base: pocket
regime: cpt
target: {data: {from: python-packages}}
arms: [{method: full, learning_rate: 1e-3, attention_dropout: [0.05, 0.1]}]
budgets: {at: 8k}
"""
    arms = parse_study(text, "dropout.yaml").arms
    assert [arm.attention_dropout for arm in arms] == [0.05, 0.1]
