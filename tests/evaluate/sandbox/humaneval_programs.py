"""HumanEval's canonical solutions as programs, mutants of them, and plain Python's verdict."""

from __future__ import annotations

import ast
import copy
import gzip
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

from paretune.evaluate.sandbox import Program

FILE = Path(__file__).parents[4] / "shared" / "data" / "eval" / "humaneval-test.jsonl.gz"
_SWAPPED: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def problems() -> list[dict[str, Any]]:
    """HumanEval's rows."""
    with gzip.open(FILE, "rt") as file:
        return [json.loads(line) for line in file]


def tests_of(problem: dict[str, Any]) -> str:
    """Its tests as lm-eval's task asks code_eval for them."""
    return f"{problem['test']}\ncheck({problem['entry_point']})"


def canonical(problem: dict[str, Any]) -> Program:
    """The solution that comes with the problem."""
    return Program(problem["prompt"] + problem["canonical_solution"], tests_of(problem))


def silent(problem: dict[str, Any]) -> Program:
    """The canonical solution, whose answer is thrown away: wrong in every problem."""
    name = problem["entry_point"]
    code = canonical(problem).code
    code += f"\n_right = {name}\ndef {name}(*arguments):\n    _right(*arguments)\n"
    return Program(code, tests_of(problem))


def mutants(problem: dict[str, Any], count: int, seed: int) -> list[Program]:
    """Canonical solutions with one operator or constant changed; a few may still be right."""
    tree = ast.parse(canonical(problem).code)
    function = next(
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == problem["entry_point"]
    )
    places = [
        index
        for index, node in enumerate(ast.walk(function))
        if type(node) in _SWAPPED or (isinstance(node, ast.Constant) and type(node.value) is int)
    ]
    chosen = random.Random(f"{seed} {problem['task_id']}").sample(places, min(count, len(places)))
    return [Program(_mutated(tree, function.name, at), tests_of(problem)) for at in sorted(chosen)]


def _mutated(tree: ast.Module, name: str, at: int) -> str:
    changed = copy.deepcopy(tree)
    function = next(n for n in changed.body if isinstance(n, ast.FunctionDef) and n.name == name)
    node = list(ast.walk(function))[at]
    if isinstance(node, ast.Constant):
        node.value += 1  # type: ignore[operator]
        return ast.unparse(changed)
    new = _SWAPPED[type(node)]()
    for parent in ast.walk(function):
        for field, value in ast.iter_fields(parent):
            if value is node:
                setattr(parent, field, new)
            elif isinstance(value, list):
                value[:] = [new if each is node else each for each in value]
    return ast.unparse(changed)


def plain_python(program: Program, seconds: int = 10) -> str:
    """The reference: passed, failed or timeout by Python alone, in a fresh process, unconfined.

    As in lm-eval's code_eval, code and tests are executed as one text in one namespace.
    """
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        nothing = os.open("/dev/null", os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        try:
            exec(f"{program.code}\n{program.tests}", {})
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {0: "passed", -signal.SIGALRM: "timeout"}.get(code, "failed")
