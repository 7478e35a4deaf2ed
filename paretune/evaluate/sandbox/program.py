"""What a sandbox is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Status = Literal["passed", "failed", "timeout", "memory"]


@dataclass(frozen=True)
class Program:
    """Python code that nobody trusts, and the tests that it should pass.

    ``tests`` are statements that use names of ``code``; they pass when they end without an
    exception.
    """

    code: str
    tests: str


@dataclass(frozen=True)
class Verdict:
    """How a program fared.

    ``timeout`` and ``memory`` say that a limit ended it, so that nothing is known of its answers;
    they are kept apart from ``failed``. ``cpu_seconds`` is the processor time of tests and
    program, in steps of the kernel's clock (10 ms), ``seconds`` the time that went by.
    """

    status: Status
    reason: str
    cpu_seconds: float
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status == "passed"


@dataclass(frozen=True)
class Limits:
    """What one program may use; all its processes and its tests together, except where said.

    Args:
        seconds: processor time on the machine of reference; a slower machine gives more (see
            ``calibrate``). Three, as in lm-eval's code_eval, where it is time that goes by.
        patience: times ``seconds`` that may go by, not counting time spent waiting for a core.
        memory_bytes: memory of its own; each process gets an address space of 512 MiB more.
        disk_bytes: files in the scratch folder, which is in memory.
        processes: processes and threads at once.
    """

    seconds: float = 3.0
    patience: float = 3.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 64 << 20
    processes: int = 16


class Sandbox(Protocol):
    """Runs programs apart from everything they could harm."""

    name: str

    def run(
        self,
        programs: Sequence[Program],
        *,
        done: Callable[[int], None] | None = None,
    ) -> list[Verdict]:
        """The verdict of each program, in their order; several run at once.

        Args:
            done: called with the number of programs that have their verdict, as it grows.
        """

    def close(self) -> None:
        """End its processes. A sandbox is also a context manager that does so."""
