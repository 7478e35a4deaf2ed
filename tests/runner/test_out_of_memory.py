"""A device that runs out of memory in the middle of a study still finishes it, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runner_helpers import small_study

from paretune.runner.ledger import Ledger
from paretune.runner.run import run
from paretune.train.trainer import Trainer

ARMS = """
  - {method: lora, rank: [2, 4, 8], learning_rate: [5e-3, 1e-2]}
"""
REFUSED = "CUDA out of memory. Tried to allocate 20.00 MiB (provoked)"


def provoke(monkeypatch: pytest.MonkeyPatch, most: int, at: int) -> list[tuple[int, int]]:
    """Refuse every step from number ``at`` on to more than ``most`` arms at a time."""
    steps: list[tuple[int, int]] = []
    real = Trainer.step

    def step(self: Trainer, t: int, schedules: Any) -> None:
        steps.append((len(self.trainee.arms), t))
        if t >= at and len(self.trainee.arms) > most:
            raise torch.OutOfMemoryError(REFUSED)
        real(self, t, schedules)

    monkeypatch.setattr(Trainer, "step", step)
    return steps


@pytest.mark.slow
def test_cohort_is_split_and_goes_on_from_its_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path, arms=ARMS, at="8ba, 16ba", every=60)
    plain = run(study, tmp_path / "plain", report=False)
    steps = provoke(monkeypatch, most=2, at=10)
    split = run(study, tmp_path / "split", report=False)
    ledger, expected = Ledger(split), Ledger(plain)
    assert sorted(map(len, ledger.cohorts())) == [1, 1, 2, 2]
    assert {i for ids in ledger.cohorts() for i in ids} == set(expected.arms())
    for arm in expected.arms():
        assert ledger.status(arm)["state"] == "done"
        # To the bit, as in any cohort on a CPU
        assert ledger.scores(arm) == expected.scores(arm)
    # Each part goes on from the state saved at the budget before, and does not begin anew
    assert [t for count, t in steps if count == 6] == list(range(11))
    assert min(t for count, t in steps if count < 6) == 8
    events = [event for event in ledger.log() if event["event"] == "split"]
    assert len(events) == 3
    assert sorted(events[0]["arms"]) == sorted(expected.arms())
    assert events[0]["reason"] == REFUSED


def test_a_single_arm_without_room_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(tmp_path, at="4ba", arms="\n  - {method: full, learning_rate: 1e-3}")
    provoke(monkeypatch, most=0, at=2)
    with pytest.raises(Exception, match="out of memory"):
        run(study, tmp_path / "study", report=False)
