"""The same study through every executor, workers killed and preempted on the way: equal results."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runner_helpers import study_text

from paretune import UserError
from paretune.analyse.results import tidy, to_csv
from paretune.errors import Fault
from paretune.runner.executors import executor
from paretune.runner.ledger import Ledger
from paretune.runner.progress import Silent
from paretune.runner.record import record_of
from paretune.runner.run import run
from paretune.study.config import Study
from paretune.study.plan import spread
from paretune.study.yamlfile import parse_study

ARMS = """
  - {method: full, learning_rate: 1e-3}
  - {method: lora, rank: [2, 4], learning_rate: 5e-3, lora_dropout: 0.1}
repeat_best: {seeds: [1], per: [method]}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    text = study_text(folder, arms=ARMS, at="40ba, 80ba", every=0.2)
    return parse_study(text, "study.yaml")


@pytest.fixture(scope="module")
def alone(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The study by one process with one thread, as each of two workers has on two cores."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        try:
            run(study, folder, device="cpu", report=False)
        finally:
            torch.set_num_threads(threads)
        yield folder


def csv(folder: Path) -> str:
    return to_csv(tidy(record_of(folder)))


def cohorts(folder: Path) -> list[dict[str, object]]:
    """Which process took which arms."""
    return [row for row in Ledger(folder).log() if row["event"] == "cohort"]


class Killer(threading.Thread):
    """Sends a signal to the process that trains, once it has saved a state."""

    def __init__(self, folder: Path, number: signal.Signals, *, parent: bool = False) -> None:
        super().__init__(daemon=True)
        self.parent = parent
        self.folder, self.number = folder, number
        self.struck: int | None = None

    def run(self) -> None:
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            for state in self.folder.glob("arms/*/resume/*.safetensors"):
                holder = self._pid(state.parts[-3])
                if holder is not None:
                    os.kill(holder if not self.parent else parent_of(holder), self.number)
                    self.struck = holder
                    return
            time.sleep(0.05)

    def _pid(self, arm_id: str) -> int | None:
        for row in cohorts(self.folder):
            if arm_id in row["arms"]:  # type: ignore[operator]
                pid = int(str(row["runner"]).rsplit("-", 2)[1])
                return pid if pid != os.getpid() and Path(f"/proc/{pid}").exists() else None
        return None


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def same(alone: Path, folder: Path) -> None:
    assert csv(folder) == csv(alone)
    for path in sorted(alone.glob("arms/*/train.jsonl")):
        other = folder / path.relative_to(alone)
        assert other.read_text() == path.read_text()
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_local_workers_with_one_killed(study: Study, alone: Path, tmp_path: Path) -> None:
    killer = Killer(tmp_path / "out", signal.SIGKILL)
    killer.start()
    two = executor("local", workers=2, device="cpu")
    run(study, tmp_path / "out", report=False, executor=two)
    assert killer.struck is not None
    same(alone, tmp_path / "out")
    # Whether it still found arms to train depends on how long it took to start
    began = {row["runner"] for row in Ledger(tmp_path / "out").log() if row["event"] == "started"}
    assert len(began) == 3, "two workers, and the one that was started again"


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its files; elsewhere than pytest's, since names of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        monkeypatch.setenv("RAY_TMPDIR", name)
        # Seconds that its own processes may take to start where the machine does much else
        for wait in ("gcs_server_port_wait_time_s", "gcs_server_request_timeout_seconds"):
            monkeypatch.setenv(f"RAY_{wait}", "300")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        yield Path(name)


@pytest.mark.slow
def test_ray_with_a_worker_killed(
    study: Study, alone: Path, tmp_path: Path, ray_folder: Path
) -> None:
    pytest.importorskip("ray")
    # What a cluster leaves behind that was killed
    (ray_folder / "ray").mkdir()
    (ray_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:9")
    killer = Killer(tmp_path / "out", signal.SIGKILL)
    killer.start()
    two = executor("ray", workers=2, device="cpu")
    for left in (2, 1, 0):
        try:
            run(study, tmp_path / "out", report=False, executor=two)
            break
        except Fault as error:
            # Ray gives its own processes half a minute, in which a busy machine may not start them
            if not left or "could be started" not in str(error):
                raise
    assert killer.struck is not None
    same(alone, tmp_path / "out")


@pytest.mark.parametrize("kind", [ConnectionError, Exception])
def test_a_ray_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    ray = pytest.importorskip("ray")

    def refuse(address: str, **_: object) -> None:
        # Ray's own two: where nobody listens, and where its node is not up within half a minute
        raise kind(f"Failed to connect to Ray cluster at {address}")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    if kind is ConnectionError:
        with pytest.raises(UserError, match=r"RAY_ADDRESS 10\.0\.0\.1:6379: no cluster answers"):
            executor("ray", workers=2).run(tmp_path, Silent())
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(Fault, match="could be started on this machine"):
        executor("ray", workers=2).run(tmp_path, Silent())


@pytest.mark.slow
def test_slurm_with_a_preemption(study: Study, alone: Path, tmp_path: Path) -> None:
    """Through submitit's local executor; the preemption is the signal that Slurm would send."""
    pytest.importorskip("submitit")
    out = tmp_path / "out"
    killer = Killer(out, signal.SIGUSR2, parent=True)
    killer.start()
    two = executor("slurm", workers=2, device="cpu", options=["cluster=local"])
    run(study, out, report=False, executor=two)
    assert killer.struck is not None
    same(alone, out)
    logs = "".join(path.read_text() for path in out.glob("slurm/*_log.*"))
    assert "this job is preempted" in logs
    assert "Requeued job" in logs


@pytest.mark.slow
def test_a_mistake_found_by_a_worker_is_the_message(study: Study, tmp_path: Path) -> None:
    gone = study.config.target.data.path  # type: ignore[union-attr]
    text = Path(str(gone)).read_text()
    Path(str(gone)).write_text('{"text": "too little"}\n')
    try:
        with pytest.raises(UserError, match=r"target\.data"):
            run(study, tmp_path / "out", executor=executor("local", workers=2, device="cpu"))
    finally:
        Path(str(gone)).write_text(text)


def test_cohorts_are_spread_over_workers(study: Study) -> None:
    full, two, four = study.arms
    assert spread([[two, four], [full]], 2) == [[two, four], [full]]
    assert spread([[two, four], [full]], 3) == [[two], [four], [full]]
    assert spread([[two, four], [full]], 9) == [[two], [four], [full]]


def test_what_is_not_an_executor_is_refused() -> None:
    with pytest.raises(UserError, match="--executor kubernetes: there is local, ray and slurm"):
        executor("kubernetes")
    with pytest.raises(UserError, match="--workers 0"):
        executor("local", workers=0)
    with pytest.raises(UserError, match="--slurm partition: write it as key=value"):
        executor("slurm", options=["partition"])
