"""A thread that dies for want of memory before it begins: a message, and the next run goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from runner_helpers import small_study

from paretune.errors import Fault
from paretune.runner import threads
from paretune.runner.faults import explained
from paretune.runner.ledger import Ledger
from paretune.runner.run import run

ARMS = "\n  - {method: lora, rank: [2], learning_rate: 5e-3}\n"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("whose", ["ThreadPoolExecutor", "Thread-"], ids=["library's", "ours"])
def test_a_thread_that_dies_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Of transformers, which reads the base with threads, and of the study's heartbeat."""
    real = threading.Thread._bootstrap  # type: ignore[attr-defined]
    died: list[str] = []

    def bootstrap(self: threading.Thread) -> None:
        if self.name.startswith(whose):
            died.append(self.name)
            raise MemoryError
        real(self)

    study = small_study(tmp_path, arms=ARMS, at="4ba")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", threads.start)
        patch.setattr(threading.Thread, "_bootstrap", bootstrap)
        patch.setattr(threads, "SECONDS", 2.0)
        said = r"the machine is out of memory \(can't start new thread"
        with pytest.raises(Fault, match=said), explained(tmp_path / "out"):
            run(study, tmp_path / "out", report=False)
    assert died
    ledger = Ledger(run(study, tmp_path / "out", report=False))
    assert [ledger.status(arm)["state"] for arm in ledger.arms()] == ["done"]
