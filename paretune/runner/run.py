"""Running a study from its file to its report, or going on where it stopped."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from paretune.errors import UserError
from paretune.model.trainee import CPU_TOKENS, frozen
from paretune.runner.cohort import CohortRun, Seconds
from paretune.runner.device import choose, measure
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.progress import Progress, Silent
from paretune.runner.report import write_report
from paretune.runner.workspace import Workspace, check_arms
from paretune.study.arms import ArmConfig
from paretune.study.config import RepeatBest, Study, safe_name
from paretune.study.plan import cohorts
from paretune.study.yamlfile import load_study

# Tokens of the base's own scoring passes on a GPU
_GPU_TOKENS = 16_384


def run(
    study: Study | Path | str,
    out: Path | str | None = None,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    command: str = "",
    report: bool = True,
) -> Path:
    """Run a study, or go on with it where an earlier process stopped.

    Args:
        study: a study, or the path of its YAML file.
        out: the study's folder; by default ``studies/NAME`` in the current folder.
        device: ``cpu``, ``cuda``, ``cuda:1``; a GPU where there is one by default.
        command: what the user typed, for the report.
        report: write tables, figures and page at the end; they can be made later, elsewhere.

    Returns:
        The study's folder.

    Raises:
        UserError: a mistake in the study, its data or its base, or the folder is another study's.
    """
    if not isinstance(study, Study):
        study = load_study(Path(study))
    folder = Path(out) if out is not None else Path("studies") / safe_name(study.config.name)
    _Run(study, folder, choose(device), progress or Silent(), command).go(report)
    return folder


class _Run:
    def __init__(
        self, study: Study, folder: Path, device: torch.device, progress: Progress, command: str
    ) -> None:
        self.study = study
        self.folder = folder
        self.device = device
        self.progress = progress
        self.command = command
        self.seconds = Seconds()
        self.began = datetime.now(UTC)
        self.machine = measure(device)

    def go(self, report: bool) -> None:
        # All that can be known now is checked before the folder exists
        trained = check_arms(self.study)
        started = time.monotonic()
        with Ledger(self.folder).locked():
            ledger = Ledger.create(self.folder, self.study)
            ledger.register(self.study.arms)
            work = Workspace.build(self.study, ledger, self.progress.line)
            self._score_base(ledger, work)
            self.seconds.other += time.monotonic() - started
            try:
                self._train(ledger, work, trained)
            finally:
                self._note(ledger)
            if report:
                self.progress.begin("writing the report", 1)
                write_report(self.folder)

    def _train(self, ledger: Ledger, work: Workspace, trained: dict[str, int]) -> None:
        self._form_cohorts(ledger, list(self.study.arms), trained)
        self._run_cohorts(ledger, work)
        repeat = self.study.config.repeat_best
        if repeat is None:
            return
        repeats = best_again(ledger, repeat, self.study.arms, work.tokens(work.budgets[-1]))
        ledger.register(repeats)
        again = check_arms(self.study, repeats)
        self._form_cohorts(ledger, repeats, again)
        self._run_cohorts(ledger, work)

    def _form_cohorts(self, ledger: Ledger, arms: list[ArmConfig], trained: dict[str, int]) -> None:
        """Freeze which arms train together; a resumed run finds them frozen."""
        frozen_ids = ledger.cohorts()
        known = {arm_id for group in frozen_ids for arm_id in group}
        new = [arm for arm in arms if arm.id not in known]
        if new:
            groups = cohorts(new, trained, self.machine.memory)
            ledger.set_cohorts(frozen_ids + [[arm.id for arm in group] for group in groups])

    def _run_cohorts(self, ledger: Ledger, work: Workspace) -> None:
        arms = ledger.arms()
        for ids in ledger.cohorts():
            states = [ledger.status(arm_id)["state"] for arm_id in ids]
            resumable = any((ledger.arm_folder(i) / "resume").exists() for i in ids)
            if "planned" in states or "running" in states or resumable:
                group = [arms[arm_id] for arm_id in ids]
                CohortRun(work, group, ledger, self.device, self.progress, self.seconds).run()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _score_base(self, ledger: Ledger, work: Workspace) -> None:
        """Score the base once, by the code that scores arms."""
        self.progress.begin("scoring the base", 1)
        base = frozen(self.study.config.base, self.device)
        limit = CPU_TOKENS if self.device.type == "cpu" else _GPU_TOKENS
        base.rows = max(1, limit // self.study.config.training.block_length)
        view = base.view(None)
        work.suite.attach_base(view)
        if not ledger.scored(BASE, 0, self.study.config.metric_names()):
            (results,) = work.suite.score(view)
            ledger.write_scores(BASE, 0, results)
        self.progress.line(f"base: {ledger.shown(BASE, 0, self.study.config.metric_names())}")
        self.progress.advance()

    def _note(self, ledger: Ledger) -> None:
        """Record this process in the ledger, also when it is interrupted."""
        ledger.note_run(
            {
                "started": self.began.isoformat(timespec="seconds"),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": self.command,
                "device": self.machine.name,
                "seconds": {k: round(v, 3) for k, v in vars(self.seconds).items()},
                "versions": versions(),
            }
        )


def versions() -> dict[str, str]:
    """Versions of what computes: Python, this package, and the libraries it rests on."""
    names = ("paretune", "torch", "transformers", "tokenizers", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def best_again(
    ledger: Ledger, repeat: RepeatBest, arms: tuple[ArmConfig, ...], tokens: int
) -> list[ArmConfig]:
    """The best arm of each group at the last budget, under the other seeds.

    Raises:
        UserError: an arm has no such score and did not diverge.
    """
    best: dict[tuple[Any, ...], tuple[float, ArmConfig]] = {}
    for arm in arms:
        rows = [
            row
            for row in ledger.scores(arm.id)
            if row["metric"] == repeat.metric and row["tokens"] == tokens
        ]
        if not rows:
            if ledger.status(arm.id)["state"] != "diverged":
                raise UserError(f"{arm.id}: has no {repeat.metric} at {tokens} tokens")
            continue
        value = rows[0]["value"] * (1 if rows[0]["higher_is_better"] else -1)
        key = tuple(str(getattr(arm, name)) for name in repeat.per)
        if key not in best or value > best[key][0]:
            best[key] = (value, arm)
    return [
        ArmConfig.model_validate({**arm.record(), "seed": seed})
        for _, arm in best.values()
        for seed in repeat.seeds
        if seed != arm.seed
    ]
