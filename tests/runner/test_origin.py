"""What later runs compare a study's beginning with, and which arms they train again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from paretune.model.fingerprint import differences
from paretune.runner.ledger import Ledger
from paretune.runner.origin import _by_name
from paretune.runner.repeats import best_again
from paretune.study.arms import ArmConfig
from paretune.study.config import RepeatBest


def test_files_of_one_name_in_two_folders_are_told_apart() -> None:
    before = {
        "/here/a/rows.json": {"sha256": "1", "bytes": 9},
        "/here/b/rows.json": {"sha256": "2", "bytes": 9},
    }
    moved = {name.replace("here", "there"): fact for name, fact in before.items()}
    assert not differences(_by_name(before), _by_name(moved))
    moved["/there/a/rows.json"] = {"sha256": "3", "bytes": 9}
    assert differences(_by_name(before), _by_name(moved))


def test_an_arm_whose_score_is_no_number_is_not_the_best() -> None:
    good, broken = (ArmConfig(method="full", learning_rate=rate) for rate in (1e-4, 1e-3))
    row = {"metric": "target/bits_per_byte", "tokens": 64, "higher_is_better": False}
    values = {good.id: 2.0, broken.id: None}
    ledger: Any = SimpleNamespace(scores=lambda arm: [{**row, "value": values[arm]}])
    repeat = RepeatBest(seeds=[1], metric="target/bits_per_byte")
    again = best_again(cast(Ledger, ledger), repeat, (broken, good), 64)
    assert [(arm.learning_rate, arm.seed) for arm in again] == [(1e-4, 1)]
