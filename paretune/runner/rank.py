"""One process of a sharded cohort; ``runner.launch`` starts it, as many times as there are devices.

The first process (rank 0) trains and scores as ``runner.cohort`` does for one device, and is the
only one that reads and writes the study's folder; the others follow it (``runner.led``).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from paretune.errors import Stopped, UserError
from paretune.files import write_json
from paretune.model.trainee import scoring_rows
from paretune.runner.cohort import CohortRun, Seconds
from paretune.runner.faults import explained
from paretune.runner.launch import Asked, end_with_parent, launcher_pid
from paretune.runner.leases import Leases
from paretune.runner.led import Leader, LedTrainer, LedView, Member, follow
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.origin import same_probe
from paretune.runner.stop import STOP
from paretune.runner.workspace import Workspace
from paretune.study.config import DRIFT, StudyConfig
from paretune.train.sharded import process_group
from paretune.train.trainer import Trainer


class _Lines:
    """Progress as lines of JSON, for the process that started this one."""

    def begin(self, name: str, total: int) -> None:
        _tell("begin", name, total)

    def advance(self, amount: int = 1) -> None:
        _tell("advance", amount)

    def line(self, text: str) -> None:
        _tell("line", text)


def work(asked: Asked) -> None:
    """This process's part."""
    ledger = Ledger(Path(asked.folder))
    study = ledger.study()
    with process_group(asked.device) as device:
        member = Member(
            study.config, ledger.folder / "data", device, offload=asked.sharding.offload
        )
        if int(os.environ["RANK"]):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # the first decides when to end
            follow(member)
            return
        with STOP.listening():
            leader = Leader(member)
            work = Workspace.build(study, ledger, _Lines().line)
            _Lead(asked, ledger, leader, work).go()
            leader.end()


class _Lead:
    """The first process's part: the base's scores, or a cohort's whole course."""

    def __init__(self, asked: Asked, ledger: Ledger, leader: Leader, work: Workspace) -> None:
        self.asked = asked
        self.ledger = ledger
        self.leader = leader
        self.work = work
        self.progress = _Lines()
        self._log = partial(ledger.note, asked.runner)
        leases = Leases(ledger.folder)
        covered = asked.arms or ("study",)
        self._guard = partial(leases.check_of, asked.runner, covered)

    def go(self) -> None:
        """Do what was asked."""
        if not self.asked.arms:
            self._base()
            return
        known = self.ledger.arms()
        arms = [known[arm_id] for arm_id in self.asked.arms]
        full = arms[0].method == "full"
        if full:
            self._hold_base()
            self.leader.call("drop_base")
        self.leader.call("hold_cohort", arms, self.asked.sharding)
        if not full:
            self._attach()
        trainer = LedTrainer(self.leader)
        seconds = Seconds()
        cohort = CohortRun(
            self.work,
            arms,
            self.ledger,
            self.leader.member.device,
            self.progress,
            seconds,
            guard=self._guard,
            say=self._say,
            log=self._log,
            trainer=cast(Trainer, trainer),
        )
        try:
            cohort.run()
        finally:
            _tell("seconds", vars(seconds))

    def _hold_base(self) -> None:
        """Let all processes hold the frozen base, where something is compared with it."""
        if self.asked.arms and not _compares(self.work.config):
            return
        length = self.work.config.training.block_length
        self.leader.call("hold_base", scoring_rows(self.leader.member.device, length))
        self._attach()

    def _attach(self) -> None:
        with same_probe(self.ledger, self._say):
            self.work.suite.attach_base(LedView(self.leader, None))

    def _base(self) -> None:
        self._hold_base()
        metrics = self.work.config.metric_names()
        if not self.ledger.scored(BASE, 0, metrics):
            (results,) = self.work.suite.score(LedView(self.leader, None))
            self._guard()
            self.ledger.write_scores(BASE, 0, results)

    def _say(self, path: str, reason: str) -> None:
        self.progress.line(f"{path}: set aside, it is made anew ({reason})")
        self._log("set aside", path=path, reason=reason)


def _compares(config: StudyConfig) -> bool:
    """Whether arms are compared with the base's distributions."""
    return config.source.self_probe is not None or bool(set(config.target.metrics) & set(DRIFT))


def _tell(*values: Any) -> None:
    print(json.dumps(values), flush=True)


def _of_another(error: Exception) -> bool:
    """Whether what failed is the exchange with another process, which has ended."""
    marks = ("gloo", "nccl", "connection", "socket")
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(mark in text for mark in marks)


def main() -> None:
    """Work, and report how it ended."""
    end_with_parent(launcher_pid())
    asked = Asked.read(sys.argv[1])
    report: dict[str, Any] = {}
    try:
        with explained(Path(asked.folder)):
            try:
                work(asked)
            except torch.OutOfMemoryError as error:
                report = {"kind": "memory", "message": str(error).splitlines()[0], "code": 74}
    except (UserError, Stopped) as error:
        report = {"kind": "message", "message": str(error), "code": error.exit_code}
    except Exception as error:
        kind = "lost" if _of_another(error) else "crash"
        report = {"kind": kind, "message": traceback.format_exc(), "code": 1}
    if report:
        write_json(Path(asked.report) / f"{os.environ['RANK']}.json", report)
        # Without the usual ways out: the other processes may wait for this one in them
        os._exit(report["code"])


if __name__ == "__main__":
    main()
