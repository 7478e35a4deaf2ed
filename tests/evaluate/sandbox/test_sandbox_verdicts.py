"""What honest programs and tests may do, and what a verdict says of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from paretune.errors import Stopped, UserError
from paretune.evaluate.sandbox import Limits, Program, Sandbox, Verdict, open_sandbox, registry
from paretune.evaluate.sandbox.pool import REFERENCE_PROGRAM, Pool


@pytest.fixture(scope="module")
def pool() -> Iterator[Sandbox]:
    """The sandbox that a run would choose."""
    with Pool("namespaces", "namespaces", workers=1, limits=Limits(seconds=1.0)) as pool:
        yield pool


def judge(pool: Sandbox, code: str, tests: str) -> Verdict:
    """One verdict."""
    return pool.run([Program(code, tests)])[0]


# (code, tests) that pass when executed one after the other in one namespace
HONEST = {
    "arguments by name": (
        "def f(a, *b, c=1, **d): return a, b, c, d",
        "assert f(1, 2, 3, c=4, e=5) == (1, (2, 3), 4, {'e': 5})",
    ),
    "exact types": (
        "def f(x): return x",
        """
for x in (None, True, 7, 1 << 200, -(1 << 70), 1.5, 'é\\ud800', b'\\x00\\xff', [1, (2, {3: {4}})],
          frozenset({1}), 2j, range(3, 9, 2), bytearray(b'x'), {(1, 2): None}):
    y = f(x)
    assert y == x and type(y) is type(x), x
assert f(float('nan')) != f(float('nan')) and f(-0.0).hex() == '-0x0.0p+0'
""",
    ),
    "types of the standard library": (
        """
import collections, datetime, decimal, fractions
def f(): return [collections.Counter('aab'), collections.OrderedDict([(1, 2)]),
    collections.deque([1, 2], maxlen=2), collections.defaultdict(list, {1: [2]}),
    fractions.Fraction(1, 3), decimal.Decimal('1.10'), datetime.date(2020, 1, 2),
    datetime.timedelta(hours=3), collections.namedtuple('P', 'x y')(1, 2)]
""",
        """
from collections import *
import datetime, decimal, fractions
assert f() == [{'a': 2, 'b': 1}, {1: 2}, deque([1, 2]), {1: [2]}, fractions.Fraction(1, 3),
    decimal.Decimal('1.10'), datetime.date(2020, 1, 2), datetime.timedelta(hours=3), (1, 2)]
""",
    ),
    "changed in place": (
        "def f(a, d): a.sort(); d['k'].append(1)",
        "a, d = [3, 1, 2], {'k': []}\nf(a, d)\nassert a == [1, 2, 3] and d == {'k': [1]}",
    ),
    "exceptions": (
        "class Own(ValueError): pass\ndef f(x):\n    if x: raise Own('no')\n    return [][0]",
        """
for x, kind in ((1, ValueError), (0, IndexError)):
    try:
        f(x)
    except kind as error:
        assert x == 0 or str(error) == 'no'
    else:
        assert False
""",
    ),
    "own classes": (
        """
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def __eq__(self, other): return (self.a, self.b) == (other.a, other.b)
    def __len__(self): return 2
def longest(pairs): return max(len(p) + p.a for p in pairs)
def make(): return Pair(1, 2)
""",
        """
assert longest([Pair(5, 24), Pair(39, 60)]) == 41
pair = make()
pair.b = 7
assert pair.a == 1 and pair == Pair(1, 7) and len(pair) == 2 and isinstance(pair, Pair)
""",
    ),
    "linked nodes": (
        """
class Node:
    def __init__(self, value): self.value, self.left, self.right = value, None, None
def depth(n): return 0 if n is None else 1 + max(depth(n.left), depth(n.right))
""",
        "root = Node(1)\nroot.left = Node(2)\nroot.left.right = Node(3)\nassert depth(root) == 3",
    ),
    "generators": (
        "def f(n):\n    for i in range(n):\n        yield [i]",
        "assert list(f(3)) == [[0], [1], [2]]\nassert next(f(1)) == [0]",
    ),
    "functions of the tests": (
        "def f(g, x): return sorted(map(g, x), key=str)",
        "assert f(lambda x: x * 2, [3, 1]) == [2, 6]\nassert f(int, ['3']) == [3]",
    ),
    "functions that it returns": ("def add(n): return lambda x: x + n", "assert add(2)(3) == 5"),
    "calls both ways": (
        "def f(g, n): return g(n - 1) if n else 'end'",
        "def g(n): return f(g, n)\nassert f(g, 5) == 'end'",
    ),
    "global names": (
        "import math\nLIMIT = 3\nfrom collections import deque\ndef f(): return LIMIT",
        "assert f() == LIMIT == math.floor(3.5)\nassert deque([1]) == deque([1])",
    ),
    "a built-in name": ("def sum(a, b): return a + b", "assert sum(10, 15) == 25"),
    "a module's name": ("def copy(x): return x + 1", "assert copy(1) == 2"),
    "futures": (
        "from __future__ import annotations\ndef f(x: Unknown) -> Also: return x",
        "assert f(1) == 1",
    ),
    "data classes": (
        """
from dataclasses import dataclass
from enum import IntEnum
@dataclass
class P: x: int
class Colour(IntEnum): RED = 1
def f(): return P(3).x, Colour.RED
""",
        "assert f() == (3, 1)",
    ),
    "scratch files": (
        """
import tempfile, os
def f():
    with tempfile.NamedTemporaryFile('w+') as file:
        file.write('x'); file.seek(0)
        return file.read()
""",
        "assert f() == 'x'",
    ),
    "threads": (
        """
import threading
def f():
    seen = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start()
    thread.join()
    return seen
""",
        "assert f() == [1]",
    ),
    "processes": (
        """
import multiprocessing
def f():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=lambda i=i: queue.put(i * i)) for i in range(3)]
    for each in workers:
        each.start()
    answers = sorted(queue.get() for _ in workers)
    for each in workers:
        each.join()
    return answers
""",
        "assert f() == [0, 1, 4]",
    ),
    "asynchronous": (
        "import asyncio\nasync def g(): return 1\ndef f(): return asyncio.run(g())",
        "assert f() == 1",
    ),
    "its own signals": (
        """
import signal, time
def f():
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *a: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    while not seen:
        time.sleep(0.001)
    signal.signal(signal.SIGALRM, before)
    return seen
""",
        "assert f() == [1]",
    ),
    "installed packages": (
        "import numpy as np\ndef f(x): return np.sum(x)",
        "assert f([1, 2]) == 3",
    ),
    "not main": (
        "if __name__ == '__main__':\n    raise ValueError\ndef f(): return 1",
        "assert f() == 1",
    ),
    "input and output": (
        "import sys\nprint('x' * 10**6); print('y', file=sys.stderr)\n"
        "def f():\n    try: return input()\n    except EOFError: return 'none'",
        "assert f() == 'none'",
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(pool: Sandbox, name: str) -> None:
    code, tests = HONEST[name]
    verdict = judge(pool, code, tests)
    assert verdict.passed, verdict


IN_ONE_NAMESPACE = [n for n in HONEST if n not in ("a built-in name", "input and output")]


@pytest.mark.parametrize("name", IN_ONE_NAMESPACE)
def test_they_do_so_in_plain_python_too(name: str) -> None:
    """The reference: Python itself, which executes one after the other."""
    code, tests = HONEST[name]
    namespace: dict[str, object] = {}
    exec(compile(code, "code", "exec", dont_inherit=True), namespace)
    exec(compile(tests, "tests", "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x): return x + 1", "AssertionError: the answer"),
        ("def f(x): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(x) return x", "SyntaxError"),
        ("raise ValueError('at once')", "ValueError: at once"),
        ("def g(x): return x", "NameError: name 'f' is not defined"),
        ("def f(): return 1", "TypeError: f() takes 0 positional arguments but 1 was given"),
    ],
)
def test_wrong_programs_fail_with_the_reason(pool: Sandbox, code: str, reason: str) -> None:
    verdict = judge(pool, code, "assert f(1) == 1, 'the answer'")
    assert verdict.status == "failed"
    assert reason in verdict.reason


def test_a_timeout_is_no_wrong_answer(pool: Sandbox) -> None:
    """Busy or asleep, in the program or in its tests."""
    slow = "def f():\n    while True: pass"
    asleep = "import time\ndef f(): time.sleep(60)"
    ready = "def f(): pass"
    cases = [(slow, "f()"), (asleep, "f()"), (slow[9:], ""), (ready, "while True: f()")]
    verdicts = pool.run([Program(code, tests) for code, tests in cases[:2] + cases[3:]])
    assert [verdict.status for verdict in verdicts] == ["timeout"] * 3
    assert all(verdict.seconds >= 1.0 for verdict in verdicts)


def test_time_is_scaled_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is four times slower than the one of reference, limits are four times."""
    verdicts = []
    for reference in (10.0, 0.02):
        monkeypatch.setattr("paretune.evaluate.sandbox.pool.REFERENCE_SECONDS", reference)
        with Pool("namespaces", "namespaces", workers=1, limits=Limits(seconds=0.05)) as pool:
            assert pool.slowness == 1.0 if reference == 10.0 else pool.slowness > 2
            verdicts += pool.run([REFERENCE_PROGRAM])
    assert [verdict.status for verdict in verdicts] == ["timeout", "passed"]


def test_memory_is_no_wrong_answer() -> None:
    """Eight processes, each far below what one may have."""
    limits = Limits(seconds=30.0, memory_bytes=200 << 20)
    code = "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n"
    code += "        held = bytearray(b'x' * (50 << 20)); time.sleep(60)\ntime.sleep(60)"
    with Pool("namespaces", "namespaces", workers=1, limits=limits) as pool:
        assert judge(pool, code, "").status == "memory"


def test_the_same_every_time(pool: Sandbox) -> None:
    """Order of sets and random numbers are those of the run before."""
    code = "import random\ndef f(): return list({'a', 'b', 'c', 'd', 'e'}), random.random()"
    first = judge(pool, code, "assert f() == 0, repr(f())").reason
    again = judge(pool, code, "assert f() == 0, repr(f())").reason
    with Pool("namespaces", "namespaces", workers=1) as other:
        third = judge(other, code, "assert f() == 0, repr(f())").reason
    assert first == again == third


def test_order_and_progress() -> None:
    seen: list[int] = []
    programs = [Program(f"def f(): return {i}", f"assert f() == {i - i % 2}") for i in range(20)]
    with open_sandbox(workers=3) as pool:
        verdicts = pool.run(programs, done=seen.append)
    assert [verdict.passed for verdict in verdicts] == [True, False] * 10
    assert seen == list(range(1, 21))


def test_a_warden_that_dies_is_replaced(pool: Sandbox) -> None:
    """Its process killed under it, the next program is judged all the same."""
    assert isinstance(pool, Pool)
    pool._wardens[0]._process.kill()
    assert judge(pool, "def f(): return 1", "assert f() == 1").passed


def test_closing_ends_every_process() -> None:
    with open_sandbox(workers=2) as pool:
        assert isinstance(pool, Pool)
        wardens = [warden._process for warden in pool._wardens]
    assert all(process.poll() is not None for process in wardens)


def test_unknown_name() -> None:
    with pytest.raises(
        UserError, match="there is no 'docker'; give one of auto, bubblewrap, namespaces"
    ):
        open_sandbox("docker")


def test_where_none_can_be_had_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has neither is one on which both fail to start; unsafe has to be asked for."""

    def refuse(**_: object) -> Sandbox:
        raise UserError("the kernel says no")

    for name in ("bubblewrap", "namespaces", "landlock"):
        monkeypatch.setitem(registry._FACTORIES, name, refuse)
    with pytest.raises(UserError) as raised:
        open_sandbox()
    said = ", ".join(f"{n} (the kernel says no)" for n in ("bubblewrap", "namespaces", "landlock"))
    assert said in str(raised.value)
    assert "sandbox: unsafe" in str(raised.value)
    with open_sandbox("unsafe", workers=1) as nothing:
        assert judge(nothing, "def f(): return 1", "assert f() == 1").passed


@pytest.mark.parametrize("name", ["auto", "namespaces"])
def test_being_asked_to_stop_is_no_refusal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM while one starts: the process stops, instead of saying that it cannot be had."""

    def stop(**_: object) -> Sandbox:
        raise Stopped("stopped by SIGTERM")

    for each in ("bubblewrap", "namespaces", "landlock"):
        monkeypatch.setitem(registry._FACTORIES, each, stop)
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"):
        open_sandbox(name)


def test_a_kernel_without_user_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Really refused by the kernel: in a namespace whose limit of user namespaces is 0."""
    if os.geteuid() != 0:
        pytest.skip("only root can lower the limit")
    script = tmp_path / "limited.py"
    script.write_text(
        "from paretune.evaluate.sandbox.confined import linux\n"
        "linux.unshare(linux.CLONE_NEWUSER)\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "from paretune.errors import Stopped, UserError\n"
        "from paretune.evaluate.sandbox import open_sandbox\n"
        "try:\n    open_sandbox('namespaces', workers=1)\n"
        "except UserError as error:\n    print(error)\n"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert "sandbox namespaces: not possible here" in done.stdout, done.stderr
    assert "unshare" in done.stdout


def test_register() -> None:
    class Mine:
        name = "mine"

    registry.register("mine", lambda **_: Mine())  # type: ignore[arg-type,return-value]
    try:
        assert open_sandbox("mine").name == "mine"
    finally:
        del registry._FACTORIES["mine"]


def test_values_that_are_equal_in_every_order(pool: Sandbox) -> None:
    """Arguments arrive as they were given: all small combinations of values and containers."""
    values = [None, 0, 1.0, "x", (), [], {}, set(), b""]
    pairs = [list(pair) for pair in itertools.product(values, repeat=2)]
    tests = f"pairs = {pairs!r}\nfor pair in pairs:\n    assert f(pair) == repr(pair), pair"
    assert judge(pool, "f = repr", tests).passed
