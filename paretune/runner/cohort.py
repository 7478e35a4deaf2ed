"""Running one cohort to its end: legs, states to resume from, checkpoints and scores."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from paretune.model.full_cohort import full_cohort
from paretune.model.layers import linear_layers
from paretune.model.load import load_shape
from paretune.model.lora_cohort import lora_cohort
from paretune.model.shape import model_shape
from paretune.model.trainee import Trainee, full_arm
from paretune.runner.checkpoints import Checkpoints
from paretune.runner.complete import has, reached
from paretune.runner.device import most_memory
from paretune.runner.ledger import Ledger
from paretune.runner.progress import Progress
from paretune.runner.repair import Repair, Say
from paretune.runner.stop import STOP
from paretune.runner.workspace import Workspace
from paretune.runner.writes import Writes
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.train.legs import Leg
from paretune.train.state import (
    intact,
    prune,
    save_state,
    saved_steps,
    shards_of,
    state_path,
)
from paretune.train.trainer import Trainer

# Steps between which a run's pace is measured: compilation and capture lie before them
_PACE_FROM, _PACE_TO = 4, 12
# States of 100 GB take as long to write as the minute between them: then saves wait longer, so
# that they take a tenth of the time. Quick ones come as often as the study says.
_QUICK_SECONDS, _REST = 1.0, 9.0


@dataclass
class Seconds:
    """Time one process spent, by phase.

    Attributes:
        start: the device, and what is checked before the study's folder exists.
        load: building cohorts on the device.
        save: waiting for states; what is written while arms are scored takes no time of its own.
        other: data, tasks, and the base's scores.
    """

    train: float = 0.0
    score: float = 0.0
    save: float = 0.0
    load: float = 0.0
    start: float = 0.0
    other: float = 0.0


class CohortRun:
    """Takes the arms of one cohort through every leg, from wherever the ledger says they are."""

    def __init__(
        self,
        workspace: Workspace,
        arms: list[ArmConfig],
        ledger: Ledger,
        device: torch.device,
        progress: Progress,
        seconds: Seconds,
        *,
        guard: Callable[[], None] = lambda: None,
        say: Say = lambda path, reason: None,
        log: Callable[..., None] = lambda event, **facts: None,
        trainer: Trainer | None = None,
    ) -> None:
        """Build the arms on the device.

        Args:
            trainer: of the arms, where they are built already.
            guard: called before anything is written; raises when the arms are no longer ours.
            say: told of damaged files that were set aside.
            log: keeps an event and its facts.
        """
        began = time.monotonic()
        self.log = log
        self._pace_began = 0.0
        self._writes = Writes()
        self.guard = guard
        self.repair = Repair(ledger, say)
        self.workspace = workspace
        self.ledger = ledger
        self.progress = progress
        self.seconds = seconds
        self.legs = workspace.legs(arms[0])
        self.metrics = workspace.config.metric_names()
        config = workspace.config
        if trainer is None:
            trainee = _trainee(config.base, arms, device)
            batch_size = config.training.batch_size
            trainer = Trainer(trainee, workspace.prepared.blocks, batch_size)
        self.trainer, self.trainee = trainer, trainer.trainee
        self.arms = self.trainee.arms
        self.meta = load_shape(config.base)
        self._shape = model_shape(self.meta, quantised=config.base.quantise is not None)
        transposed = any(layer.transposed for layer in linear_layers(self.meta).values())
        self.checkpoints = Checkpoints(workspace, ledger, transposed=transposed)
        seconds.load += time.monotonic() - began

    def run(self) -> None:
        """Train and score until every budget of every arm is done."""
        self.trainer.fit_memory(self._shape, surplus=self._surplus())
        for arm in self.arms:
            if self.ledger.status(arm.id)["state"] in ("planned", "done"):
                self.ledger.set_status(arm.id, state="running")
        with self._writes:
            for leg in self.legs:
                if not self._complete(leg):
                    self._run_leg(leg)
        for arm in self.arms:
            if self.ledger.status(arm.id)["state"] == "running":
                self.ledger.set_status(arm.id, state="done")
            shutil.rmtree(self._states(arm), ignore_errors=True)

    def _run_leg(self, leg: Leg) -> None:
        step = self._saved = self._restore(leg)
        self.guard()
        self._note_verdicts(leg, step, moved=False)
        for arm in self.arms:
            self.ledger.cut_curve(arm.id, leg.name, step)
        arms = f"{len(self.arms)} arms" if len(self.arms) > 1 else self.arms[0].label
        self.progress.begin(f"training {arms}", leg.stop)
        self.progress.advance(step)
        if step in leg.scored and not self._scored(step):
            self._score(leg, step)
        with STOP.deferred():
            self._steps(leg, step)

    def _steps(self, leg: Leg, step: int) -> None:
        """Train ``leg`` from ``step`` to its end, saving and scoring on the way."""
        schedules = [self.workspace.schedule(arm, leg) for arm in self.arms]
        started = saved = time.monotonic()
        asked = every = self.workspace.config.checkpoints.every_seconds
        for t in range(step, leg.stop):
            self.trainer.step(t, schedules)
            self.progress.advance()
            self._note_pace(t - step)
            now = time.monotonic()
            pause = t + 1 in leg.stops or STOP.asked
            if pause or now - saved > every:
                self.trainer.seconds_until_idle()  # the device's steps are no part of the save
                now = time.monotonic()
                self._spent("train", now - started)
                self._save(leg, t + 1)
                if t + 1 not in leg.scored or STOP.asked:
                    self._settle(leg, t + 1)
                saved = time.monotonic()
                every = _between_saves(asked, saved - now)
                self._spent("save", saved - now)
                started = saved
            STOP.now()
            if t + 1 in leg.scored:
                with STOP.at_once():
                    self._score(leg, t + 1)
                started = saved = time.monotonic()

    def _surplus(self) -> float:
        """By how much the study's cohorts so far needed more memory than expected."""
        surplus = 1.0
        for row in self.ledger.log():
            if row["event"] == "pace" and row.get("expected_bytes"):
                surplus = max(surplus, float(row["measured_bytes"] / row["expected_bytes"]))
        return surplus

    def _note_pace(self, done: int) -> None:
        """After a few steps: how the plan's time and memory compare with what they take."""
        if done not in (_PACE_FROM, _PACE_TO):
            return
        seconds = self.trainer.seconds_until_idle()
        if done == _PACE_FROM:
            self._pace_began = seconds
            return
        self.log(
            "pace",
            arms=[arm.id for arm in self.arms],
            rows=self.trainee.rows,
            without=self.trainer.runner.without,
            seconds_a_step=(seconds - self._pace_began) / (_PACE_TO - _PACE_FROM),
            **self.trainer.peak_memory(),
        )

    def _save(self, leg: Leg, step: int) -> None:
        """Flush curves and begin to write every arm's state; no step may come before it is written.

        The state before it stays until the next call, in case this one turns out damaged.
        """
        self.guard()
        for arm, rows in zip(self.arms, self.trainer.curve(), strict=True):
            self.ledger.append_curve(arm.id, leg.name, rows)
        for position, arm in enumerate(self.arms):
            prune(self._states(arm), leg.name, {self._saved, *leg.kept})
            place = shards_of(self._states(arm), leg.name, step)
            shutil.rmtree(place, ignore_errors=True)
            shards = self.trainer.save_shards(position, place)
            tensors, watch = self.trainer.state(position)
            size, tensors = _on_host(tensors)
            write = partial(save_state, shards=shards)
            given = (self._states(arm), leg.name, step, tensors, watch)
            self._writes.start(size, partial(self._guarded, write, *given))

    def _guarded(self, write: Callable[..., None], *given: Any) -> None:
        self.guard()
        write(*given)

    def _settle(self, leg: Leg, step: int) -> None:
        """Wait for what :meth:`_save` has begun."""
        self._writes.finish()
        if self._saved != step:
            self._saved = step
            self._note_verdicts(leg, step, moved=True)

    def _note_verdicts(self, leg: Leg, step: int, *, moved: bool) -> None:
        """Write which arms have diverged, and after a step how far all of them are."""
        place = {"step": step, "tokens": self.workspace.tokens(step)}
        verdicts = self.trainer.divergence.verdicts()
        for position, arm in enumerate(self.arms):
            if position in verdicts:
                at, reason = verdicts[position]
                new = self.ledger.status(arm.id)["state"] != "diverged"
                if new:
                    self.progress.line(f"{arm.label}: diverged at step {at}: {reason}")
                verdict = {
                    "state": "diverged",
                    "diverged_at": at,
                    "leg": leg.name,
                    "reason": reason,
                }
                self.ledger.set_status(arm.id, **(place if new or moved else {}), **verdict)
            elif moved:
                self.ledger.set_status(arm.id, **place)

    def _score(self, leg: Leg, step: int) -> None:
        """Checkpoint and score the arms that are alive at a budget."""
        started = time.monotonic()
        tokens = self.workspace.tokens(step)
        lost = self.trainer.divergence.verdicts()
        for group in self.trainee.passes:
            positions = [
                position
                for position in range(group.start, group.stop)
                if position not in lost and not self._has(self.arms[position], step)
            ]
            if not positions:
                continue
            results = self.workspace.suite.score(self.trainee.view(group))
            # States are on disk before checkpoints, and these before the scores that they gave
            self._settle(leg, step)
            for position in positions:
                self._checkpoint(position, tokens)
            self._writes.finish()
            for position in positions:
                arm, items = self.arms[position], results[position - group.start]
                self.guard()
                self.checkpoints.forget_earlier(arm, tokens)
                if not self.ledger.scored(arm.id, tokens, self.metrics):
                    self.ledger.write_scores(arm.id, tokens, items)
                shown = self.ledger.shown(arm.id, tokens, self.metrics)
                self.progress.line(f"{arm.label}, {tokens:,} tokens: {shown}")
        self._settle(leg, step)
        self._spent("score", time.monotonic() - started)

    def _checkpoint(self, position: int, tokens: int) -> None:
        """Begin to write an arm's checkpoint, where it is kept and not there."""
        arm = self.arms[position]
        if self.checkpoints.wanted(arm, tokens):
            self.guard()
            size, weights = _on_host(self.trainer.weights(position))
            write = self.checkpoints.write
            self._writes.start(size, partial(self._guarded, write, arm, tokens, weights))

    def _restore(self, leg: Leg) -> int:
        """Bring all arms to the latest step of ``leg`` that every one of them has on disk.

        Not beyond what is still to be made: a score or a kept state that was lost comes again.
        """
        common = set.intersection(*(saved_steps(self._states(a), leg.name) for a in self.arms))
        missing = [step for step in leg.scored if not self._scored(step)]
        missing += [step for step in leg.kept if step not in common and self._branches(leg, step)]
        most = min(missing, default=leg.stop)
        for step in sorted((step for step in common if step <= most), reverse=True):
            if self._load(leg.name, step):
                return step
        if leg.parent is not None and self._load(leg.parent, leg.start):
            return leg.start
        if leg.parent is not None:
            # The trunk's state is gone or damaged: train the trunk again
            trunk = next(other for other in self.legs if other.name == leg.parent)
            self._run_leg(trunk)
            if not self._load(leg.parent, leg.start):
                raise OSError(f"the state of {leg.parent} at step {leg.start} cannot be read back")
            return leg.start
        self.trainer.restart()
        return leg.start

    def _load(self, leg: str, step: int) -> bool:
        whole = True
        for arm in self.arms:
            path = state_path(self._states(arm), leg, step)
            if not intact(self._states(arm), leg, step):
                whole = False
                if path.exists():
                    self.guard()
                    self.repair.aside(path, "its checksum differs")
        if not whole:
            return False
        self.trainer.restart()
        for position, arm in enumerate(self.arms):
            self.trainer.resume(position, self._states(arm), leg, step)
        return True

    def _complete(self, leg: Leg) -> bool:
        if leg.scored:
            return all(self._scored(step) for step in leg.scored)
        return all(
            all(step in saved_steps(self._states(arm), leg.name) for arm in self.arms)
            for step in leg.kept
            if self._branches(leg, step)
        )

    def _branches(self, leg: Leg, step: int) -> bool:
        """Whether a leg that is not complete begins from ``step`` of ``leg``."""
        later = [other for other in self.legs if (other.parent, other.start) == (leg.name, step)]
        return not all(self._complete(other) for other in later)

    def _scored(self, step: int) -> bool:
        """Whether every arm has its scores of a budget, or diverged before it."""
        return all(reached(self.ledger, self.workspace, arm, step) for arm in self.arms)

    def _has(self, arm: ArmConfig, step: int) -> bool:
        return has(self.ledger, self.workspace, arm, step)

    def _states(self, arm: ArmConfig) -> Path:
        return self.ledger.arm_folder(arm.id) / "resume"

    def _spent(self, phase: str, seconds: float) -> None:
        setattr(self.seconds, phase, getattr(self.seconds, phase) + seconds)
        share = seconds / len(self.arms)
        memory = most_memory(self.trainee.device)
        for arm in self.arms:
            before = self.ledger.status(arm.id)["seconds"]
            self.ledger.set_status(arm.id, seconds=before + share, memory=memory)


def _on_host(tensors: Mapping[str, torch.Tensor]) -> tuple[int, dict[str, torch.Tensor]]:
    """Tensors in the host's memory, and their bytes.

    A thread that copied them from a GPU could break the capture of a graph in another.
    """
    held = {name: value.detach().cpu() for name, value in tensors.items()}
    return sum(value.nbytes for value in held.values()), held


def _between_saves(asked: float, last: float) -> float:
    """Seconds to the next save, where the last took so long."""
    return asked if last <= _QUICK_SECONDS else max(asked, _REST * last)


def _trainee(base: Base, arms: list[ArmConfig], device: torch.device) -> Trainee:
    """The arms of one cohort with the model that carries them."""
    if arms[0].method == "lora":
        return lora_cohort(base, arms, device)
    return full_arm(base, arms[0], device) if len(arms) == 1 else full_cohort(base, arms, device)
