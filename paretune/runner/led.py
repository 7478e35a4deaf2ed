"""Several processes that work on one sharded cohort: the first leads, the others do as it does.

Only the first reads and writes the study's folder, and it alone decides. What takes all processes
(a step, a forward pass, a state) it calls through :class:`Leader`, which sends the call to the
others before it makes it; they run :func:`follow`. So they never disagree on what comes next,
whatever signal or file made the first decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from paretune.data.blocks import Blocks
from paretune.model.sharded import ShardedTrainee, sharded_base, sharded_cohort, sharded_full
from paretune.model.tree import TreeRow
from paretune.model.view import ArmView
from paretune.study.arms import ArmConfig
from paretune.study.config import StudyConfig
from paretune.study.sharding import Sharding
from paretune.train.sharded import ShardedCohort, ShardedFull, ShardedTrainer

# The others wait for the first for as long as it takes: when it ends, so do they
_PATIENCE = timedelta(days=30)


class Member:
    """What one process holds, and all that can be asked of it; the same calls in every process.

    Args:
        data: the folder of the study's prepared data.
    """

    def __init__(
        self, config: StudyConfig, data: Path, device: torch.device, *, offload: bool
    ) -> None:
        self.config = config
        self.device = device
        self._data = data
        self._offload = offload
        self._base: ShardedTrainee | None = None
        self._trainer: ShardedTrainer | None = None
        self._pasts: dict[int, Any] = {}

    @property
    def trainer(self) -> ShardedTrainer:
        """Of the cohort that :meth:`hold_cohort` has built."""
        assert self._trainer is not None
        return self._trainer

    def hold_base(self, rows: int) -> None:
        """Load the frozen base, for scoring."""
        self._base = sharded_base(self.config.base, self.device, offload=self._offload)
        self._base.rows = rows

    def drop_base(self) -> None:
        """Forget the frozen base, and give its memory back."""
        self._base = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def hold_cohort(self, arms: list[ArmConfig], sharding: Sharding) -> None:
        """Build a cohort's arms, and what trains them."""
        settings = {"recompute": sharding.recompute, "offload": sharding.offload}
        blocks = Blocks(self._data, self.config.regime)
        batch_size = self.config.training.batch_size
        on_gpu = sharding.rows if self.device.type == "cuda" else None
        base = self.config.base
        if arms[0].method == "full":
            full = sharded_full(base, arms[0], self.device, **settings)
            self._trainer = ShardedFull(full, blocks, batch_size, on_gpu, sharding.memory)
        else:
            cohort = sharded_cohort(base, arms, self.device, **settings)
            self._trainer = ShardedCohort(cohort, blocks, batch_size, on_gpu, sharding.memory)

    def train(self, name: str, *given: Any) -> Any:
        """Call a method of the trainer."""
        return getattr(self.trainer, name)(*given)

    def view(self, group: int | None) -> ArmView:
        """Arms of a pass (its number) as scorers see them; None: the base."""
        if group is None:
            held = self._base or self.trainer.trainee
            return held.view(None)
        trainee = self.trainer.trainee
        return trainee.view(trainee.passes[group])

    def logits(self, group: int | None, *given: torch.Tensor | None) -> torch.Tensor:
        """``ArmView.logits``."""
        return self.view(group).logits(*(_on(value, self.device) for value in given))

    def step(
        self, group: int | None, past: int, ids: torch.Tensor, settings: dict[str, Any]
    ) -> torch.Tensor:
        """``ArmView.step``; the cache stays here, under the number ``past``."""
        moved = {name: _on(value, self.device) for name, value in settings.items()}
        logits, cache = self.view(group).step(
            _on(ids, self.device), past=self._pasts.get(past), **moved
        )
        if cache is not None:
            self._pasts[past] = cache
        return logits

    def reorder(self, past: int, rows: torch.Tensor) -> None:
        """Give a cache's rows another order."""
        self._pasts[past].reorder_cache(rows.to(self.device))

    def forget(self, pasts: list[int]) -> None:
        """Free caches that are no longer in use."""
        for past in pasts:
            self._pasts.pop(past, None)

    def tree_refusal(self, group: int | None, longest: int) -> str | None:
        """``ArmView.tree_refusal``."""
        return self.view(group).tree_refusal(longest)

    def tree(
        self, group: int | None, row: TreeRow, tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``ArmView.tree``."""
        return self.view(group).tree(row, tokens)


class Leader:
    """The first process's hold on all of them."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._group = commands()
        self._pasts = 0
        self._forgotten: list[int] = []

    def past(self) -> Past:
        """A cache that is to be filled; those no longer in use are freed."""
        if self._forgotten:
            gone, self._forgotten[:] = list(self._forgotten), []
            self.call("forget", gone)
        self._pasts += 1
        return Past(self, self._pasts, self._forgotten)

    def call(self, name: str, *given: Any) -> Any:
        """Call a method of :class:`Member` in every process; what it returns in this one."""
        _send(self._group, (name, given))
        return getattr(self.member, name)(*given)

    def end(self) -> None:
        """Let the others end."""
        _send(self._group, None)


def follow(member: Member) -> None:
    """Do what the first process does, until it lets this one end."""
    group = commands()
    while True:
        command = _receive(group)
        if command is None:
            return
        name, given = command
        getattr(member, name)(*given)


class LedTrainer:
    """The trainer of a sharded cohort as ``CohortRun`` sees it: what takes all processes is led."""

    _OF_ALL = frozenset({"step", "restart", "resume", "save_shards", "weights"})

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        self._own = leader.member.trainer
        self.trainee = LedTrainee(leader)

    def __getattr__(self, name: str) -> Any:
        if name in self._OF_ALL:
            return lambda *given: self._leader.call("train", name, *given)
        return getattr(self._own, name)


class LedTrainee:
    """Arms of a sharded cohort, with views that all processes compute."""

    def __init__(self, leader: Leader) -> None:
        self._leader = leader
        own = leader.member.trainer.trainee
        self.arms, self.passes = own.arms, own.passes
        self.device, self.rows = own.device, own.rows

    def view(self, group: Any) -> LedView:
        """The arms of a pass, or the base (None)."""
        return LedView(self._leader, None if group is None else self.passes.index(group))


class Past:
    """A cache that every process has, by its number."""

    def __init__(self, leader: Leader, number: int, forgotten: list[int]) -> None:
        self.number = number
        self._leader = leader
        self._forgotten = forgotten

    def reorder_cache(self, rows: torch.Tensor) -> None:
        """As transformers' caches do it."""
        self._leader.call("reorder", self.number, rows.cpu())

    def __del__(self) -> None:
        self._forgotten.append(self.number)


class LedView:
    """``ArmView`` in all processes (``evaluate.items.ArmModel``); the first has the results."""

    def __init__(self, leader: Leader, group: int | None) -> None:
        self._leader = leader
        self._of = group
        own = leader.member.view(group)
        self.count, self.device, self.rows = own.count, own.device, own.rows

    def logits(
        self,
        input_ids_BS: torch.Tensor,
        attention_mask_BS: torch.Tensor | None = None,
        position_ids_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [K, B, S, V] of the same rows for every arm."""
        given = (_off(v) for v in (input_ids_BS, attention_mask_BS, position_ids_BS))
        logits: torch.Tensor = self._leader.call("logits", self._of, *given)
        return logits

    def step(
        self,
        input_ids_KBS: torch.Tensor,
        *,
        past: Any = None,
        attention_mask_KBS: torch.Tensor | None = None,
        position_ids_KBS: torch.Tensor | None = None,
        use_cache: bool = True,
    ) -> tuple[torch.Tensor, Any]:
        """Logits [K, B, S, V] for each arm's own rows, and the cache."""
        past = past or self._leader.past()
        settings = {
            "attention_mask_KBS": _off(attention_mask_KBS),
            "position_ids_KBS": _off(position_ids_KBS),
            "use_cache": use_cache,
        }
        logits = self._leader.call("step", self._of, past.number, _off(input_ids_KBS), settings)
        return logits, past if use_cache else None

    def tree_refusal(self, longest: int) -> str | None:
        """Why rows packed as trees cannot be scored, or None."""
        reason: str | None = self._leader.call("tree_refusal", self._of, longest)
        return reason

    @property
    def sparse_trees(self) -> bool:
        """Whether long packed rows cost no more a token than short ones."""
        return self._leader.member.view(self._of).sparse_trees

    def tree(self, row: TreeRow, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and likeliest tokens of a packed row: [K, M] each."""
        found: tuple[torch.Tensor, torch.Tensor] = self._leader.call("tree", self._of, row, tokens)
        return found


def commands() -> dist.ProcessGroup:
    """The group through which commands go: by host memory, and with patience."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return group


def _send(group: dist.ProcessGroup, command: tuple[str, Sequence[Any]] | None) -> None:
    dist.broadcast_object_list([command], src=0, group=group, device=torch.device("cpu"))


def _receive(group: dist.ProcessGroup) -> Any:
    held: list[Any] = [None]
    dist.broadcast_object_list(held, src=0, group=group, device=torch.device("cpu"))
    return held[0]


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _off(value: torch.Tensor | None) -> torch.Tensor | None:
    return None if value is None else value.cpu()
