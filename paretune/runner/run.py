"""Running a study from its file to its report, or going on where it stopped."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paretune.errors import Damaged
from paretune.model.compilation import start_workers
from paretune.model.trainee import frozen, scoring_rows
from paretune.runner.cohort import CohortRun, Seconds
from paretune.runner.complete import ended, finished
from paretune.runner.device import check_compiler, check_free, choose, kept_threads, measure
from paretune.runner.faults import explained
from paretune.runner.launch import Asked, launch
from paretune.runner.leases import Leases
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.migrate import migrate
from paretune.runner.origin import check_origin, check_prepared, same_probe, same_threads
from paretune.runner.progress import Progress, Silent
from paretune.runner.repair import Repair, clear_report
from paretune.runner.repeats import best_again
from paretune.runner.report import write_report
from paretune.runner.sharding import check_sharding
from paretune.runner.workspace import Workspace, check_arms, workload
from paretune.study.arms import ArmConfig
from paretune.study.config import Study, safe_name
from paretune.study.plan import cohorts, spread
from paretune.study.sharding import Sharding
from paretune.study.yamlfile import load_study
from paretune.version import VERSION

if TYPE_CHECKING:
    from paretune.runner.executors import Executor

# Between looks at what others still do
WAIT_SECONDS = 1.0


def run(
    study: Study | Path | str,
    out: Path | str | None = None,
    *,
    device: str | None = None,
    progress: Progress | None = None,
    command: str = "",
    report: bool = True,
    executor: Executor | None = None,
) -> Path:
    """Run a study, or go on with it where an earlier process stopped.

    Args:
        study: a study, or the path of its YAML file.
        out: the study's folder; by default ``studies/NAME`` in the current folder.
        device: ``cpu``, ``cuda``, ``cuda:1``; a GPU where there is one by default.
        command: what the user typed, for the report.
        report: write tables, figures and page at the end; they can be made later, elsewhere.
        executor: who starts workers; this process does all of it by default.

    Returns:
        The study's folder.

    Raises:
        UserError: a mistake in the study, its data or its base, or the folder is another study's.
    """
    if not isinstance(study, Study):
        study = load_study(Path(study))
    folder = Path(out) if out is not None else Path("studies") / safe_name(study.config.name)
    progress = progress or Silent()
    if executor is None:
        take_part(study, folder, device=device, progress=progress, command=command, report=report)
        return folder
    _begin(study, folder, command)
    executor.run(folder, progress)
    if report:
        with explained(folder):
            write_report(folder)
    return folder


def take_part(
    study: Study,
    folder: Path,
    *,
    device: str | None,
    progress: Progress,
    command: str = "",
    workers: int = 1,
    report: bool = False,
) -> None:
    """Take arms that no other process works on until the study is complete.

    Args:
        workers: processes that take part, so that arms are spread over them.
    """
    where = choose(device)
    check_compiler(where)
    if where.type == "cuda":
        start_workers()
    share = _Run(study, folder, where, progress, command)
    share.workers = workers
    share.go(report)


def _begin(study: Study, folder: Path, command: str) -> None:
    """Check a study and freeze it, for the workers to find."""
    check_arms(study)
    ledger = Ledger(folder)
    ledger.check_place()
    with explained(folder), Leases(folder, {"device": "none"}) as leases:
        while not leases.take(["study"]):
            time.sleep(WAIT_SECONDS)
        with leases.holding("study"):
            ledger = Ledger.create(folder, study)
            ledger.note(leases.name, "begun", command=command)


class _Run:
    """This process's share in a study: with others on the same folder, or alone."""

    def __init__(
        self, study: Study, folder: Path, device: torch.device, progress: Progress, command: str
    ) -> None:
        self._began = time.monotonic()
        self.study = study
        self.folder = folder
        self.device = device
        self.progress = progress
        self.command = command
        self.seconds = Seconds()
        self.began = datetime.now(UTC)
        self.machine = measure(device)
        about = {"device": str(device), "version": VERSION}
        self.leases = Leases(folder, about)
        self.ledger = Ledger(folder)
        self._checked: set[str] = set()
        self.workers = 1
        self._load = workload(study.config, self.machine)

    def go(self, report: bool) -> None:
        # All that can be known now is checked before the folder exists
        trained = check_arms(self.study)
        self.ledger.check_place()
        with explained(self.folder), self.leases, kept_threads():
            started = time.monotonic()
            self.seconds.start += started - self._began
            check_free(self.device, self.leases.runners())
            with self._alone("study"):
                work = self._set_up(trained)
            self.seconds.other += time.monotonic() - started
            try:
                self._train(work)
            finally:
                self._note_end()
            if report:
                with self._alone("report"):
                    self.progress.begin("writing the report", 1)
                    clear_report(self.folder)
                    write_report(self.folder)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold the lease of what only one process may do, as soon as no living one does it."""
        said = False
        while not self.leases.take([name]):
            if not said:
                self.progress.line(f"waiting for {self._holders([name])}: it prepares the {name}")
                said = True
            time.sleep(WAIT_SECONDS)
        with self.leases.holding(name):
            yield

    def _set_up(self, trained: dict[str, int]) -> Workspace:
        """Everything before training: checks, data, the base's scores, and the cohorts."""
        ledger = self.ledger = Ledger.create(self.folder, self.study)
        migrate(ledger, self.progress.line)
        same_threads(ledger, self.device)
        self._log("started", command=self.command, device=self.machine.name, versions=versions())
        repair = Repair(ledger, self._say)
        repair.study(self.study.arms)
        ledger.register(self.study.arms)
        for remark in check_origin(ledger, self.study.config):
            self.progress.line(remark)
        began = time.monotonic()
        work = self._workspace(repair)
        check_prepared(ledger, work.prepared.manifest)
        read = time.monotonic()
        repair.scores(BASE)
        self._form_cohorts(list(self.study.arms), trained)
        self._score_base(work)
        self._log("prepared", data_seconds=read - began, base_seconds=time.monotonic() - read)
        steps = sum(leg.stop - leg.start for leg in work.legs(self.study.arms[0]))
        ledger.set_facts(steps=steps, tokens_per_step=work.span.tokens_per_step)
        return work

    def _workspace(self, repair: Repair) -> Workspace:
        try:
            return Workspace.build(self.study, self.ledger, self.progress.line)
        except Damaged as error:
            # Prepared again from the sources; check_prepared sees to it that they come out the same
            repair.aside(self.folder / "data", str(error))
            return Workspace.build(self.study, self.ledger, self.progress.line)

    def _train(self, work: Workspace) -> None:
        self._run_cohorts(work)
        repeat = self.study.config.repeat_best
        if repeat is None:
            return
        with self._alone("study"):
            last = work.tokens(work.budgets[-1])
            repeats = best_again(self.ledger, repeat, self.study.arms, last)
            self.ledger.register(repeats)
            self._form_cohorts(repeats, check_arms(self.study, repeats))
        self._run_cohorts(work)

    def _form_cohorts(self, arms: list[ArmConfig], trained: dict[str, int]) -> None:
        """Freeze which arms train together; a resumed run finds them frozen."""
        frozen_ids = self.ledger.cohorts()
        known = {arm_id for group in frozen_ids for arm_id in group}
        new = [arm for arm in arms if arm.id not in known]
        if new:
            groups = spread(cohorts(new, trained, self._load), self.workers)
            frozen_ids = frozen_ids + [[arm.id for arm in group] for group in groups]
        by_id = {arm.id: arm for arm in arms}
        groups = [[by_id[i] for i in ids] for ids in frozen_ids if by_id.keys() >= set(ids)]
        check_sharding(self.study, groups, trained, self._load)
        if new:
            self.ledger.set_cohorts(frozen_ids)

    def _run_cohorts(self, work: Workspace) -> None:
        """Take one cohort after another that nobody else works on, until all are done."""
        said = ""
        while True:
            left = [ids for ids in self._cohorts() if not self._settled(ids)]
            if not left:
                return
            mine = next((ids for ids in left if self.leases.take(ids)), None)
            if mine is not None:
                with self.leases.holding(*mine):
                    self._run_cohort(work, mine)
                self._checked.update(mine)
                continue
            waiting = self._holders([arm_id for ids in left for arm_id in ids])
            if waiting != said:
                self.progress.line(f"waiting for {waiting} to end the remaining arms")
                said = waiting
            time.sleep(WAIT_SECONDS)

    def _cohorts(self) -> list[list[str]]:
        """The cohorts whose arms are known; repeats become known when the rest is done."""
        arms = self.ledger.arms()
        return [ids for ids in self.ledger.cohorts() if arms.keys() >= set(ids)]

    def _settled(self, ids: list[str]) -> bool:
        """Whether a cohort has ended, and this process has seen that its files are whole."""
        return self._checked.issuperset(ids) and all(ended(self.ledger, i) for i in ids)

    def _run_cohort(self, work: Workspace, ids: list[str]) -> None:
        """Check what is there of a cohort, and run what is missing."""
        known = self.ledger.arms()
        group = [known[arm_id] for arm_id in ids]
        repair = Repair(self.ledger, self._say)
        for arm in group:
            repair.arm(arm)
        if all(finished(self.ledger, work, arm) for arm in group):
            return
        self._log("cohort", arms=ids)
        reason = self._without_room(work, group)
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        if reason:
            self._split(ids, reason)

    def _without_room(self, work: Workspace, group: list[ArmConfig]) -> str | None:
        """Run a cohort; why the device had no room for it, if it has several arms to part."""
        found = self._load.sharding(group, check_arms(self.study, group))
        try:
            if found is not None:
                self._launch([arm.id for arm in group], found)
                return None
            cohort = CohortRun(
                work,
                group,
                self.ledger,
                self.device,
                self.progress,
                self.seconds,
                guard=self.leases.check,
                say=self._say,
                log=self._log,
            )
            cohort.run()
        except torch.OutOfMemoryError as error:
            if len(group) == 1:
                raise
            return str(error).splitlines()[0]
        return None

    def _launch(self, ids: list[str], sharding: Sharding) -> None:
        """Let several processes do a cohort, or score the base, and wait for them."""
        arms = f"{len(ids)} arms" if ids else "the base"
        self.progress.line(f"{arms}, sharded over {sharding.devices} {self.device.type} devices")
        self._log("sharded", arms=ids, devices=sharding.devices, bytes=sharding.memory)
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        launch(
            Asked(str(self.folder), tuple(ids), sharding, str(self.device), self.leases.name),
            torch.get_num_threads(),
            self.progress,
            self.seconds,
        )

    def _split(self, ids: list[str], reason: str) -> None:
        """Let the halves of a cohort train one after the other, from the states they have saved."""
        middle = len(ids) // 2
        halves = [ids[:middle], ids[middle:]]
        with self._alone("study"):
            kept = self.ledger.cohorts()
            place = kept.index(ids)
            self.ledger.set_cohorts(kept[:place] + halves + kept[place + 1 :])
        self._log("split", arms=ids, into=halves, reason=reason)
        self.progress.line(
            f"the device has no room for {len(ids)} arms together: they go on as "
            f"{len(halves[0])} and {len(halves[1])}"
        )

    def _score_base(self, work: Workspace) -> None:
        """Score the base once, by the code that scores arms."""
        ledger = self.ledger
        self.progress.begin("scoring the base", 1)
        found = self._load.base_sharding()
        if found is not None:
            if not ledger.scored(BASE, 0, self.study.config.metric_names()):
                self._launch([], found)
            self.progress.line(f"base: {ledger.shown(BASE, 0, self.study.config.metric_names())}")
            return
        base = frozen(self.study.config.base, self.device)
        base.rows = scoring_rows(self.device, self.study.config.training.block_length)
        view = base.view(None)
        with same_probe(ledger, self._say):
            work.suite.attach_base(view)
        if not ledger.scored(BASE, 0, self.study.config.metric_names()):
            (results,) = work.suite.score(view)
            ledger.write_scores(BASE, 0, results)
        self.progress.line(f"base: {ledger.shown(BASE, 0, self.study.config.metric_names())}")
        self.progress.advance()

    def _holders(self, names: list[str]) -> str:
        found = [self.leases.holder(name) for name in names]
        who = {f"process {r['pid']} on {r['host']}" for r in found if r is not None}
        return " and ".join(sorted(who)) or "another process"

    def _log(self, event: str, **facts: Any) -> None:
        self.ledger.note(self.leases.name, event, **facts)

    def _say(self, path: str, reason: str) -> None:
        self.progress.line(f"{path}: set aside, it is made anew ({reason})")
        self._log("set aside", path=path, reason=reason)

    def _note_end(self) -> None:
        """Record this process in the ledger, also when it is interrupted."""
        with suppress(OSError):  # what stopped the run is the message that counts
            self._log(
                "ended",
                started=self.began.isoformat(timespec="seconds"),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                command=self.command,
                device=self.machine.name,
                seconds={k: round(v, 3) for k, v in vars(self.seconds).items()},
                versions=versions(),
            )


def versions() -> dict[str, str]:
    """Versions of what computes: Python, this package, and the libraries it rests on."""
    names = ("torch", "transformers", "tokenizers", "numpy")
    found = {"python": platform.python_version(), "paretune": VERSION}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
