"""The metric ``code_eval`` of Hugging Face's evaluate, computed in a sandbox.

lm-eval's tasks humaneval and mbpp load that metric when they are imported, which executes code in
the importing process's own interpreter, and ask for one document at a time. ``installed`` puts
this one in its place; ``CodeEval.prepare`` runs all programs at once beforehand, so that each
question is only looked up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from paretune.evaluate.sandbox.program import Program, Sandbox, Verdict


class CodeEval:
    """Verdicts of a sandbox in the form of ``evaluate``'s code_eval; each program runs once."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._verdicts: dict[Program, Verdict] = {}

    def prepare(
        self, programs: Iterable[Program], *, done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        """Run the programs that have no verdict yet, several at once; return those of all."""
        wanted = list(programs)
        new = [program for program in dict.fromkeys(wanted) if program not in self._verdicts]
        self._verdicts.update(zip(new, self._sandbox.run(new, done=done), strict=True))
        return [self._verdicts[program] for program in wanted]

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        **_: Any,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """pass@k over documents, and every outcome.

        Args:
            references: a document's tests.
            predictions: a document's programs, each its whole code.
            k: those larger than the fewest programs of a document are left out.

        Returns:
            ``pass@k`` for each k, and for each document (number of the program, its outcome) with
            task_id, completion_id, passed, and result: "passed", "timed out" or "failed: why".
        """
        programs = [
            [Program(code, tests) for code in codes]
            for tests, codes in zip(references, predictions, strict=True)
        ]
        self.prepare(program for of_one in programs for program in of_one)
        outcomes = {
            task: [(n, _outcome(task, n, self._verdicts[each])) for n, each in enumerate(of_one)]
            for task, of_one in enumerate(programs)
        }
        passed = [[each["passed"] for _, each in of_one] for of_one in outcomes.values()]
        fewest = min(map(len, passed), default=0)
        scores = {
            f"pass@{each}": float(np.mean([pass_at_k(len(p), sum(p), each) for p in passed]))
            for each in k
            if each <= fewest
        }
        return scores, outcomes


def pass_at_k(programs: int, passed: int, k: int) -> float:
    """Chance that at least one of k programs, drawn from these without replacement, passes.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of Chen et al. 2021 (Evaluating Large Language
    Models Trained on Code, section 2.1), as a product so that no binomial overflows.

    Raises:
        ValueError: there are fewer than k programs.
    """
    if not 1 <= k <= programs:
        raise ValueError(f"pass@{k} needs at least {k} programs, and there are {programs}")
    if programs - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(programs - passed + 1, programs + 1)))


class _Installed:
    """What ``evaluate.load("code_eval")`` gives out: it stays valid as CodeEvals come and go."""

    current: CodeEval | None = None

    def compute(self, **arguments: Any) -> Any:
        if self.current is None:
            raise RuntimeError("code_eval is asked outside of sandbox.code_eval.installed")
        return self.current.compute(**arguments)


_INSTALLED = _Installed()


@contextlib.contextmanager
def installed(code_eval: CodeEval) -> Iterator[CodeEval]:
    """Within this context, ``evaluate.load("code_eval")`` answers with ``code_eval``.

    What was loaded in an earlier context answers with it too, so that a task imported once can be
    used with one sandbox after another.
    """
    import evaluate

    load = evaluate.load
    before = _INSTALLED.current

    def load_this(path: str, *arguments: Any, **named: Any) -> Any:
        return _INSTALLED if path == "code_eval" else load(path, *arguments, **named)

    evaluate.load = load_this
    _INSTALLED.current = code_eval
    try:
        yield code_eval
    finally:
        evaluate.load = load
        _INSTALLED.current = before


def _outcome(task: int, number: int, verdict: Verdict) -> dict[str, Any]:
    words = {"passed": "passed", "timeout": "timed out"}
    return {
        "task_id": task,
        "passed": verdict.passed,
        "result": words.get(verdict.status, f"failed: {verdict.reason}"),
        "completion_id": number,
    }
