"""Tasks that execute what a model wrote: their programs run in the sandbox, all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from paretune.evaluate.sandbox.code_eval import CodeEval, installed
from paretune.evaluate.sandbox.program import Program, Sandbox
from paretune.evaluate.sandbox.registry import open_sandbox

Result = TypeVar("Result")


def runs_code(parts: Sequence[Any]) -> bool:
    """Whether any of the harness's tasks runs what a model wrote."""
    return any(getattr(part, "UNSAFE_CODE", False) for part in parts)


class Code:
    """Runs the programs of tasks that ask ``evaluate``'s code_eval; the sandbox opens when asked.

    Args:
        sandbox: its name in the registry.
    """

    def __init__(self, sandbox: str) -> None:
        self._name = sandbox

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Within this context a task may be imported: what it executes then runs in the sandbox."""
        code_eval = _OnDemand(self._name)
        try:
            with installed(code_eval):
                yield
        finally:
            code_eval.close()

    def judged(self, results: Callable[[], Result]) -> tuple[Result, str | None]:
        """What ``results`` gives when all programs that it asks for have run, side by side.

        The harness asks for one document at a time. So it is called twice: first to learn which
        programs it will ask for, then to look their outcomes up.

        Returns:
            The results, and a sentence on programs that a limit ended.
        """
        with closing(open_sandbox(self._name)) as sandbox:
            gathering = _Gathering(sandbox)
            with installed(gathering):
                results()
            verdicts = gathering.prepare(gathering.programs)
            with installed(gathering.judge):
                found = results()
        ended = Counter(verdict.status for verdict in verdicts)
        words = {"timeout": "ran out of time", "memory": "ran out of memory"}
        said = [
            f"{ended[kind]} of {len(verdicts)} programs {words[kind]}"
            for kind in words
            if ended[kind]
        ]
        return found, "; ".join(said) or None


class _Gathering(CodeEval):
    """Notes which programs are asked for, and answers that none passes."""

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.programs: list[Program] = []
        self.judge = CodeEval(sandbox)

    def prepare(self, programs: Any, **settings: Any) -> Any:
        return self.judge.prepare(programs, **settings)

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        for tests, codes in zip(references, predictions, strict=True):
            self.programs += [Program(code, tests) for code in codes]
        return {f"pass@{each}": 0.0 for each in k}, {}


class _OnDemand(CodeEval):
    """Opens its sandbox with the first program."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._opened: Sandbox | None = None

    def compute(self, **arguments: Any) -> Any:
        if self._opened is None:
            self._opened = open_sandbox(self._name)
            super().__init__(self._opened)
        return super().compute(**arguments)

    def close(self) -> None:
        """End the sandbox, where it was opened."""
        if self._opened is not None:
            self._opened.close()
