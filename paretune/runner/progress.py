"""What a user sees while a study runs: bars with an ETA, and a line for each scored checkpoint."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self


class Progress(Protocol):
    """Where a run reports what it does."""

    def begin(self, name: str, total: int) -> None:
        """Start a bar of ``total`` units; the one before it is finished."""

    def advance(self, amount: int = 1) -> None:
        """Move the current bar on."""

    def line(self, text: str) -> None:
        """Print a line that stays."""


class Silent:
    """Reports nothing; for use from Python."""

    def begin(self, name: str, total: int) -> None:
        """Ignore."""

    def advance(self, amount: int = 1) -> None:
        """Ignore."""

    def line(self, text: str) -> None:
        """Ignore."""


class Terminal:
    """Bars and lines on standard output; plain lines only where it is not a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self._console = Console(highlight=False, soft_wrap=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: Any = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def begin(self, name: str, total: int) -> None:
        """Start a bar of ``total`` units; the one before it disappears."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=total)

    def advance(self, amount: int = 1) -> None:
        """Move the current bar on."""
        if self._task is not None:
            self._bars.advance(self._task, amount)

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False)
