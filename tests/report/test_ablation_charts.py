"""Figures of ablations: drawn where a study has the arms for them, and from its own numbers."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic_study import study

from paretune.analyse.record import BASE
from paretune.report.diversity_chart import diversity
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


def test_diversity_counts_right_and_wrong_answers_of_the_base_and_of_each_method() -> None:
    arms = [
        ArmConfig(method="full", learning_rate=1e-3),
        ArmConfig(method="lora", rank=16, learning_rate=1e-3),
    ]
    record = study(arms)
    counts = {BASE: (6.0, 30.0), arms[0].id: (2.0, 8.0), arms[1].id: (4.0, 20.0)}
    rows = [
        (arm, 0 if arm == BASE else 200_000, metric, "target", "answers", True, value, 0.5, 64)
        for arm, values in counts.items()
        for metric, value in zip(
            ("target/distinct_pass", "target/distinct_fail"), values, strict=True
        )
    ]
    more = pd.DataFrame(rows, columns=record.scores.columns)
    record.scores = pd.concat([record.scores, more], ignore_index=True)
    (chart,) = specifications({"diversity": diversity(Findings.of(record))}).values()
    drawn_rows = {(row["name"], row["answers"]): row["count"] for row in rows_of(chart)}
    assert drawn_rows == {
        ("base", "right"): 6.0,
        ("base", "wrong"): 30.0,
        ("full", "right"): 2.0,
        ("full", "wrong"): 8.0,
        ("lora r16", "right"): 4.0,
        ("lora r16", "wrong"): 20.0,
    }
    assert diversity(Findings.of(study(arms))) is None
