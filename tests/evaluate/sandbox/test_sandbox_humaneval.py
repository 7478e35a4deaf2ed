"""HumanEval in the sandbox: right solutions pass, wrong ones fail, as in plain Python."""

from __future__ import annotations

import pytest
from humaneval_programs import canonical, mutants, plain_python, problems, silent

from paretune.evaluate.sandbox import Limits, open_sandbox

pytestmark = pytest.mark.shared


def test_canonical_solutions_pass_and_silent_ones_fail() -> None:
    rows = problems()
    assert len(rows) == 164
    programs = [each for row in rows for each in (canonical(row), silent(row))]
    with open_sandbox() as sandbox:
        verdicts = sandbox.run(programs)
    wrong = [
        (rows[index // 2]["task_id"], verdict)
        for index, verdict in enumerate(verdicts)
        if verdict.status != ("failed" if index % 2 else "passed")
    ]
    assert wrong == []


def test_mutants_fare_as_in_plain_python() -> None:
    programs = [each for row in problems()[::4] for each in mutants(row, count=2, seed=0)]
    with open_sandbox(limits=Limits(seconds=1.0)) as sandbox:
        statuses = [verdict.status for verdict in sandbox.run(programs)]
    assert statuses == [plain_python(program, seconds=3) for program in programs]
    assert 0.5 < statuses.count("failed") / len(statuses) < 1
