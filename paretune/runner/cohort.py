"""Running one cohort to its end: legs, states to resume from, checkpoints and scores."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from paretune.model.export import save_adapter, save_full
from paretune.model.layers import linear_layers
from paretune.model.load import load_shape
from paretune.model.trainee import Trainee, full_arm, lora_cohort
from paretune.runner.ledger import Ledger
from paretune.runner.progress import Progress
from paretune.runner.workspace import Workspace
from paretune.study.arms import ArmConfig
from paretune.train.legs import Leg
from paretune.train.state import load_state, prune, save_state, saved_steps
from paretune.train.trainer import Trainer


@dataclass
class Seconds:
    """Time one process spent, by phase."""

    train: float = 0.0
    score: float = 0.0
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
    ) -> None:
        self.workspace = workspace
        self.ledger = ledger
        self.progress = progress
        self.seconds = seconds
        self.legs = workspace.legs(arms[0])
        self.metrics = workspace.config.metric_names()
        config = workspace.config
        self.trainee: Trainee = (
            full_arm(config.base, arms[0], device)
            if arms[0].method == "full"
            else lora_cohort(config.base, arms, device)
        )
        self.arms = self.trainee.arms
        self.trainer = Trainer(self.trainee, workspace.prepared.blocks, config.training.batch_size)
        self.transposed = any(
            layer.transposed for layer in linear_layers(load_shape(config.base)).values()
        )

    def run(self) -> None:
        """Train and score until every budget of every arm is done."""
        self.trainer.fit_memory()
        for arm in self.arms:
            if self.ledger.status(arm.id)["state"] == "planned":
                self.ledger.set_status(arm.id, state="running")
        for leg in self.legs:
            if not self._complete(leg):
                self._run_leg(leg)
        for arm in self.arms:
            if self.ledger.status(arm.id)["state"] == "running":
                self.ledger.set_status(arm.id, state="done")
            shutil.rmtree(self._states(arm), ignore_errors=True)

    def _run_leg(self, leg: Leg) -> None:
        step = self._restore(leg)
        for arm in self.arms:
            self.ledger.cut_curve(arm.id, leg.name, step)
        schedules = [self.workspace.schedule(arm, leg) for arm in self.arms]
        arms = f"{len(self.arms)} arms" if len(self.arms) > 1 else self.arms[0].label
        self.progress.begin(f"training {arms}", leg.stop)
        self.progress.advance(step)
        if step in leg.scored and not self._scored(step):
            self._score(leg, step)
        started = saved = time.monotonic()
        for t in range(step, leg.stop):
            self.trainer.step(t, schedules)
            self.progress.advance()
            now = time.monotonic()
            pause = t + 1 in leg.stops
            if pause or now - saved > self.workspace.config.checkpoints.every_seconds:
                self._save(leg, t + 1)
                now = saved = time.monotonic()
                self._spent("train", now - started)
                started = now
            if t + 1 in leg.scored:
                self._score(leg, t + 1)
                started = saved = time.monotonic()

    def _save(self, leg: Leg, step: int) -> None:
        """Flush curves and write every arm's state; older states go when all new ones are there."""
        for arm, rows in zip(self.arms, self.trainer.curve(), strict=True):
            self.ledger.append_curve(arm.id, leg.name, rows)
        for position, arm in enumerate(self.arms):
            tensors, watch = self.trainer.state(position)
            save_state(self._states(arm), leg.name, step, tensors, watch)
        verdicts = self.trainer.divergence.verdicts()
        for position, arm in enumerate(self.arms):
            prune(self._states(arm), leg.name, {step, *leg.kept})
            changes = {"step": step, "tokens": self.workspace.tokens(step)}
            if position in verdicts:
                at, reason = verdicts[position]
                if self.ledger.status(arm.id)["state"] != "diverged":
                    self.progress.line(f"{arm.label}: diverged at step {at}: {reason}")
                self.ledger.set_status(
                    arm.id, **changes, state="diverged", diverged_at=at, leg=leg.name, reason=reason
                )
            else:
                self.ledger.set_status(arm.id, **changes)

    def _score(self, leg: Leg, step: int) -> None:
        """Checkpoint and score the arms that are alive at a budget."""
        started = time.monotonic()
        tokens = self.workspace.tokens(step)
        lost = self.trainer.divergence.verdicts()
        for group in self.trainee.passes:
            positions = [p for p in range(group.start, group.stop) if p not in lost]
            if not positions:
                continue
            results = self.workspace.suite.score(self.trainee.view(group))
            for position in positions:
                arm, items = self.arms[position], results[position - group.start]
                self._checkpoint(position, tokens)
                self.ledger.write_scores(arm.id, tokens, items)
                shown = self.ledger.shown(arm.id, tokens, self.metrics)
                self.progress.line(f"{arm.label}, {tokens:,} tokens: {shown}")
        self._spent("score", time.monotonic() - started)

    def _checkpoint(self, position: int, tokens: int) -> None:
        config = self.workspace.config
        keep = config.checkpoints.keep
        arm = self.arms[position]
        if keep == "none":
            return
        if not self.ledger.checkpoint(arm.id, tokens).exists():
            weights = self.trainer.weights(position)
            with self.ledger.writing_checkpoint(arm.id, tokens) as folder:
                if arm.method == "full":
                    save_full(folder, weights, config.base)
                else:
                    save_adapter(folder, arm, weights, config.base, transposed=self.transposed)
        if keep == "last":
            for step in self.workspace.budgets:
                if self.workspace.tokens(step) < tokens:
                    earlier = self.ledger.checkpoint(arm.id, self.workspace.tokens(step))
                    shutil.rmtree(earlier, ignore_errors=True)

    def _restore(self, leg: Leg) -> int:
        """Bring all arms to the latest step of ``leg`` that every one of them has on disk."""
        common = set.intersection(*(saved_steps(self._states(a), leg.name) for a in self.arms))
        for step in sorted(common, reverse=True):
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
        states = [load_state(self._states(arm), leg, step) for arm in self.arms]
        if any(state is None for state in states):
            return False
        self.trainer.restart()
        for position, state in enumerate(states):
            if state is not None:
                self.trainer.restore(position, *state)
        return True

    def _complete(self, leg: Leg) -> bool:
        if leg.scored:
            return all(self._scored(step) for step in leg.scored)
        later = [other for other in self.legs if other.parent == leg.name]
        return all(
            self._complete(other)
            or all(other.start in saved_steps(self._states(arm), leg.name) for arm in self.arms)
            for other in later
        )

    def _scored(self, step: int) -> bool:
        """Whether every arm has its scores of a budget, or diverged before it."""
        tokens = self.workspace.tokens(step)
        for arm in self.arms:
            status = self.ledger.status(arm.id)
            gone = status["state"] == "diverged" and status["step"] >= step
            if not gone and not self.ledger.scored(arm.id, tokens, self.metrics):
                return False
        return True

    def _states(self, arm: ArmConfig) -> Path:
        return self.ledger.arm_folder(arm.id) / "resume"

    def _spent(self, phase: str, seconds: float) -> None:
        setattr(self.seconds, phase, getattr(self.seconds, phase) + seconds)
        share = seconds / len(self.arms)
        for arm in self.arms:
            before = self.ledger.status(arm.id)["seconds"]
            self.ledger.set_status(arm.id, seconds=before + share)
