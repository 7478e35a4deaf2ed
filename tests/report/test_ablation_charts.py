"""Figures of ablations: drawn where a study has the arms for them, and from its own numbers."""

from __future__ import annotations

import pytest
from synthetic_study import study

from paretune.report.figures import figures, specifications
from paretune.report.findings import Findings
from paretune.study.arms import ArmConfig


def drawn(arms: list[ArmConfig]) -> tuple[Findings, dict]:
    findings = Findings.of(study(arms))
    return findings, specifications(figures(findings))


def rows_of(specification: dict) -> list[dict]:
    """The rows of a figure's first layer."""
    layer = specification["layer"][0]
    named = layer.get("data", specification.get("data"))["name"]
    return specification["datasets"][named]


def test_a_plain_study_has_no_ablation_figures() -> None:
    _, found = drawn([ArmConfig(method="full", learning_rate=1e-3)])
    assert not [name for name in found if name.startswith("ablation-")]


def test_regularisers_are_drawn_at_the_rate_with_which_they_learned_most() -> None:
    plain = [ArmConfig(method="full", learning_rate=lr) for lr in (3e-4, 1e-3)]
    decayed = ArmConfig(method="full", learning_rate=1e-3, weight_decay=2.0)
    dropped = ArmConfig(method="full", learning_rate=1e-3, attention_dropout=0.1)
    lora = ArmConfig(method="lora", rank=16, learning_rate=1e-3)
    findings, found = drawn([*plain, decayed, dropped, lora])
    rows = rows_of(found["ablation-regularisers"])
    kinds = {row["kind"]: row for row in rows}
    assert set(kinds) == {"full", "full, decay 2", "full, attention dropout 0.1", "LoRA r16"}
    assert len(rows) == 4 * 3
    change = findings.results.query("metric == @findings.learning and tokens == 200000")
    best = float(change.loc[change["arm"] == plain[1].id, "change"].iloc[0])
    assert kinds["full"]["learned"] == pytest.approx(best)


def test_targets_need_more_than_one_place() -> None:
    arms = [
        ArmConfig(method="lora", rank=rank, learning_rate=lr, targets=place)
        for rank in (4, 16)
        for lr in (1e-3, 4e-3)
        for place in ("all", "mlp", "attention")
    ]
    findings, found = drawn(arms)
    rows = rows_of(found["ablation-targets"])
    assert {(row["group"], row["place"]) for row in rows} == {
        (group, place) for group in ("lora r4", "lora r16") for place in ("all", "mlp", "attention")
    }
    changes = findings.results.query("metric == @findings.learning and tokens == 200000")
    for row in rows:
        own = changes[changes["arm"].isin(findings.series_by_id[row["series"]].arms)]
        assert row["learned"] == pytest.approx(float(own["change"].mean()))
        assert row["learned_low"] < row["learned"] < row["learned_high"]
    _, found = drawn([arm for arm in arms if arm.targets == "all"])
    assert "ablation-targets" not in found
