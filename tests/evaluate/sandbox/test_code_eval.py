"""The metric code_eval, in the form that lm-eval's tasks ask for it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence

import pytest

from paretune.evaluate.sandbox import Program, Verdict, open_sandbox
from paretune.evaluate.sandbox.code_eval import CodeEval, installed, pass_at_k


@pytest.mark.parametrize("programs", [1, 2, 5, 10, 200])
def test_pass_at_k_is_the_chance_of_a_draw(programs: int) -> None:
    """Against the quotient of binomials in exact integers."""
    for passed in range(0, programs + 1, max(1, programs // 7)):
        for k in {1, 2, programs // 2, programs} - {0}:
            if k <= programs:
                missed = math.comb(programs - passed, k) / math.comb(programs, k)
                assert pass_at_k(programs, passed, k) == pytest.approx(1 - missed, abs=1e-12)


def test_pass_at_k_of_too_few() -> None:
    with pytest.raises(ValueError, match="pass@3 needs at least 3 programs, and there are 2"):
        pass_at_k(2, 1, 3)


class Counting:
    """A sandbox that passes what has ``right`` in it, and counts."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def run(self, programs: Sequence[Program], *, done: object = None) -> list[Verdict]:
        self.asked.append(len(programs))
        status = {"right": "passed", "slow": "timeout"}
        return [
            Verdict(status.get(each.code, "failed"), "why", 0.0, 0.0)  # type: ignore[arg-type]
            for each in programs
        ]

    def close(self) -> None: ...


def test_compute_is_that_of_evaluate() -> None:
    sandbox = Counting()
    scores, outcomes = CodeEval(sandbox).compute(
        references=["t1", "t2"],
        predictions=[["right", "wrong", "slow"], ["right", "right", "wrong"]],
        k=[1, 2, 10],
    )
    assert scores == {"pass@1": pytest.approx(0.5), "pass@2": pytest.approx((2 / 3 + 1) / 2)}
    assert outcomes[0][1] == (
        1,
        {"task_id": 0, "passed": False, "result": "failed: why", "completion_id": 1},
    )
    assert [each["result"] for _, each in outcomes[0]] == ["passed", "failed: why", "timed out"]
    assert sandbox.asked == [5], "a program that comes twice runs once"


def test_prepared_programs_are_looked_up() -> None:
    sandbox = Counting()
    metric = CodeEval(sandbox)
    metric.prepare([Program("right", "t"), Program("wrong", "t"), Program("right", "t")])
    for code, expected in (("right", 1.0), ("wrong", 0.0)):
        scores, _ = metric.compute(references=["t"], predictions=[[code]], k=[1])
        assert scores == {"pass@1": expected}
    assert sandbox.asked[0] == 2
    assert sum(sandbox.asked) == 2


LM_EVAL = """
import os
os.environ.pop("HF_ALLOW_CODE_EVAL", None)
from paretune.evaluate.sandbox import open_sandbox
from paretune.evaluate.sandbox.code_eval import CodeEval, installed
with open_sandbox(workers=1) as first, installed(CodeEval(first)):
    from lm_eval.tasks.humaneval import utils
    from lm_eval.tasks.mbpp import utils as mbpp
with open_sandbox(workers=1) as second, installed(CodeEval(second)):
    docs = [{"prompt": "def add(a, b):\\n"}, {"prompt": "def sub(a, b):\\n"}]
    bodies = [["    return a + b", "    return a"], ["    pass"] * 2]
    answers = utils.build_predictions(bodies, docs)
    print(utils.pass_at_k(["assert add(1, 2) == 3", "assert sub(2, 1) == 1"], answers, k=[1, 2]))
    print(mbpp.pass_at_1("assert add(1, 2) == 3", ["def add(a, b): return a + b"]))
try:
    mbpp.pass_at_1("assert True", [""])
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_lm_eval_imports_and_asks_it() -> None:
    """lm-eval's own modules of both tasks, offline and without leave to execute code itself."""
    pytest.importorskip("lm_eval")
    done = subprocess.run([sys.executable, "-c", LM_EVAL], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[-3:] == [
        "{'pass@1': 0.25, 'pass@2': 0.5}",
        "1.0",
        "code_eval is asked outside of sandbox.code_eval.installed",
    ], done.stderr


def test_other_metrics_are_loaded_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr(evaluate, "load", lambda name, **named: (name, named))
    with installed(CodeEval(Counting())) as metric:
        assert evaluate.load("exact_match", seed=1) == ("exact_match", {"seed": 1})
        assert evaluate.load("code_eval").compute(references=[], predictions=[]) == ({}, {})
        assert isinstance(metric, CodeEval)
    assert evaluate.load("code_eval") == ("code_eval", {})


def test_a_real_sandbox_behind_it() -> None:
    with open_sandbox(workers=1) as sandbox:
        scores, outcomes = CodeEval(sandbox).compute(
            references=["assert add(2, 3)==5"], predictions=[["def add(a,b): return a*b"]], k=[1]
        )
    assert scores == {"pass@1": 0.0}
    assert outcomes[0][0][1]["result"] == "failed: AssertionError"
