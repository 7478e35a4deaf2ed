"""A live view of a study in the terminal: arms, losses, throughput, time left, memory.

It reads the ledger alone, so it works on any machine that sees the folder, while any number of
processes write.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.errors import Damaged
from paretune.files import read_rows
from paretune.runner.leases import Leases
from paretune.runner.ledger import Ledger
from paretune.runner.status import running_or_stopped
from paretune.study.units import duration, size

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class ArmView:
    """One arm at a moment.

    Attributes:
        share: of its training that is done, 0 to 1.
        loss: mean over its last ten steps, nats; None before the first.
        losses: of all steps, for a small curve.
        rate: training tokens a second of its own.
        left: seconds until its training ends at that rate; None where it is not known.
        memory: bytes its process took at most.
        scored: budgets (tokens) with scores.
    """

    arm: str
    label: str
    state: str
    share: float
    loss: float | None
    losses: tuple[float, ...]
    rate: float | None
    left: float | None
    memory: int | None
    scored: tuple[int, ...]
    worker: str


def look(folder: Path | str) -> list[ArmView]:
    """Every arm as its files say now, in the order of the cohorts.

    Raises:
        UserError: the folder holds no study.
    """
    ledger = Ledger.open(Path(folder))
    facts = ledger.facts()
    arms = ledger.arms()
    order = [arm_id for group in ledger.cohorts() for arm_id in group if arm_id in arms]
    leases = Leases(ledger.folder)
    views = []
    for arm_id in [*order, *(other for other in arms if other not in order)]:
        status = _status(ledger, arm_id)
        rows, _ = read_rows(ledger.arm_folder(arm_id) / "train.jsonl", sealed=False)
        losses = tuple(float(row["loss"]) for row in rows if row["loss"] is not None)
        steps, per_step = facts.get("steps"), facts.get("tokens_per_step", 0)
        done = len(rows) / steps if steps else 0.0
        rate = len(rows) * per_step / status["seconds"] if status["seconds"] and rows else None
        ended = status["state"] in ("done", "diverged")
        holder = None if ended else leases.holder(arm_id)
        state = status["state"]
        if state == "running":
            state = running_or_stopped(holder)
        left = None
        if steps and rate and state == "running":
            left = max(0, steps - len(rows)) * per_step / rate
        views.append(
            ArmView(
                arm=arm_id,
                label=arms[arm_id].label,
                state=state,
                share=1.0 if state == "done" else min(1.0, done),
                loss=sum(losses[-10:]) / len(losses[-10:]) if losses else None,
                losses=losses,
                rate=rate,
                left=left,
                memory=status.get("memory"),
                scored=tuple(sorted({row["tokens"] for row in _scores(ledger, arm_id)})),
                worker=f"{holder['host']} {holder['device']}" if holder else "",
            )
        )
    return views


def watch(folder: Path, *, every: float = 2.0, once: bool = False) -> None:
    """Show the study until it ends, or until Ctrl-C.

    Args:
        every: seconds between looks.
        once: show it once and return.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if once:
        console.print(picture(folder, look(folder), console.width))
        return
    first = picture(folder, look(folder), console.width)
    with Live(first, console=console, auto_refresh=False) as live:
        while True:
            views = look(folder)
            live.update(picture(folder, views, console.width), refresh=True)
            if views and all(view.state in ("done", "diverged") for view in views):
                return
            time.sleep(every)


def picture(folder: Path, views: list[ArmView], width: int = 120) -> RenderableType:
    """The table that :func:`watch` shows.

    Args:
        width: columns of the terminal; a narrow one gets fewer columns of the table, but whole.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    # Title, what it holds, and its width; the last of _SPARED is the first to go
    columns: dict[str, tuple[str, list[RenderableType], int]] = {
        "arm": _texts("arm", [view.label for view in views]),
        "state": (
            "state",
            [Text(view.state, style=_STYLES.get(view.state, "")) for view in views],
            max((len(view.state) for view in views), default=5),
        ),
        "share": _texts("trained", [f"{view.share:4.0%}" for view in views]),
        "bar": ("", [ProgressBar(1.0, view.share, width=16) for view in views], 16),
        "loss": _texts("loss", ["" if v.loss is None else f"{v.loss:.3f}" for v in views]),
        "curve": _texts("", [sparkline(view.losses, 16) for view in views]),
        "rate": _texts("tok/s", ["" if v.rate is None else f"{v.rate:,.0f}" for v in views]),
        "left": _texts("left", ["" if v.left is None else duration(v.left) for v in views]),
        "memory": _texts("memory", ["" if v.memory is None else size(v.memory) for v in views]),
        "scored": _texts("scored", [str(len(view.scored)) for view in views]),
        "on": _texts("on", [view.worker for view in views]),
    }
    for spared in reversed(_SPARED):
        if sum(max(wide, len(title)) + 2 for title, _, wide in columns.values()) <= width:
            break
        del columns[spared]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, _, _ in columns.values():
        table.add_column(title, no_wrap=True)
    for cells in zip(*(cells for _, cells, _ in columns.values()), strict=True):
        table.add_row(*cells)
    done = sum(view.state in ("done", "diverged") for view in views)
    # Arms of a cohort advance together, so the longest says when training ends
    left = max((view.left for view in views if view.left is not None), default=None)
    summary = f"{done} of {len(views)} arms have ended"
    if left is not None:
        summary += f"; about {duration(left)} of training left for those that run"
    return Group(Text(str(folder), style="bold"), table, Text(summary))


def sparkline(values: tuple[float, ...], width: int) -> str:
    """A curve in one line of text, from its means over ``width`` stretches."""
    if len(values) < 2:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    marks = "▁▂▃▄▅▆▇█"
    scale = (len(marks) - 1) / (high - low) if high > low else 0.0
    return "".join(marks[round((mean - low) * scale)] for mean in means)


_STYLES = {
    "done": "green",
    "running": "cyan",
    "stopped": "yellow",
    "diverged": "red",
    "planned": "dim",
}
# What a narrow terminal does without, from what is missed most to what is missed least
_SPARED = ("loss", "share", "left", "rate", "scored", "curve", "bar", "memory", "on")


def _texts(title: str, texts: list[str]) -> tuple[str, list[RenderableType], int]:
    from rich.text import Text

    return title, [Text(text) for text in texts], max(map(len, texts), default=0)


def _status(ledger: Ledger, arm_id: str) -> dict[str, Any]:
    try:
        return ledger.status(arm_id)
    except Damaged:
        return {"state": "damaged", "seconds": 0.0}


def _scores(ledger: Ledger, arm_id: str) -> list[dict[str, Any]]:
    try:
        return ledger.scores(arm_id)
    except Damaged:
        return []
