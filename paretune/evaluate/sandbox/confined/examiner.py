"""The process that runs the tests, apart from the program they test.

The tests hold stand-ins for what the program defined; calling one calls the program in its own
process and brings back plain values, which are compared here. So a program cannot pass by leaving
early, by patching ``assert``, by an object that equals everything, or by reading the expected
answer: neither the tests nor their verdict are ever in its process.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Callable
from typing import Any

from paretune.evaluate.sandbox.confined import values, wire

_MOST_REASON = 300
# Modules that a program may have imported for its tests, beside the standard library
_ALSO_IMPORTED = frozenset({"numpy"})
_NOT_IMPORTED = frozenset({"antigravity", "this", "idlelib", "turtle", "turtledemo"})


class Failed(Exception):
    """The program did not behave; the message says how."""


def examine(channel: int, tests: str) -> dict[str, str]:
    """Wait for the program to be defined, run ``tests`` and say how they went.

    Returns:
        status: passed or failed; reason: for a reader, empty where passed.
    """
    program = Program(channel)
    try:
        program.wait_defined()
        tree = ast.parse(tests, "<tests>")
        namespace: dict[str, Any] = program.names(tree)
        exec(compile(tree, "<tests>", "exec", dont_inherit=True), namespace)
    except BaseException as error:
        return {"status": "failed", "reason": _reason(error)}
    return {"status": "passed", "reason": ""}


class Program:
    """The program under test, as the tests see it."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._functions: list[Callable[..., Any]] = []

    def wait_defined(self) -> None:
        """Wait until the program's own statements have run.

        Raises:
            Failed: they raised an exception, or the process ended.
        """
        reply = self._reply()
        if "raised" in reply:
            raise Failed(f"{reply.get('name')}: {reply.get('text')}")

    def names(self, tests: ast.Module) -> dict[str, Any]:
        """The names that ``tests`` use and the program defines, as stand-ins or values.

        Where a name means something without the program, a built-in function or a module of the
        standard library, the program cannot put its own in place of it, with one exception: when
        the tests call no other name than built-in ones, those are what is tested (MBPP 126 tests
        a ``sum`` of its own).
        """
        used = {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
        called = {
            node.func.id
            for node in ast.walk(tests)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        own = {name for name in used if not hasattr(builtins, name)}
        modules = {
            node.value.id
            for node in ast.walk(tests)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        } & (_importable() - called)
        if not called & own:
            own |= called
        defined = self.ask("names", sorted(own))
        if not isinstance(defined, dict) or not defined.keys() <= own:
            raise Failed("answered with names that were not asked for")
        for name in modules & defined.keys():
            if isinstance(defined[name], Remote):
                defined[name] = importlib.import_module(name)
        return defined

    def ask(self, what: str, *arguments: Any) -> Any:
        """Have the program's process do something, and return the value that comes back."""
        sent = [self._encode(each) for each in arguments]
        wire.send(self._channel, [what, *sent])
        while True:
            reply = self._reply()
            if "call_back" not in reply:
                break
            wire.send(self._channel, self._called_back(reply))
        if "raised" in reply:
            raise _exception(str(reply["raised"]), str(reply.get("text", "")))
        if "changed" in reply:
            for old, new in zip(arguments[1:], self._decode(reply["changed"]), strict=True):
                _update(old, new)
        return self._decode(reply["value"])

    def _reply(self) -> dict[str, Any]:
        try:
            reply = wire.receive(self._channel)
        except wire.Ended as error:
            raise Failed(f"the program's process {error}") from error
        if not isinstance(reply, dict):
            raise Failed("the program's process wrote what is no answer")
        return reply

    def _called_back(self, request: dict[str, Any]) -> dict[str, Any]:
        function = self._functions[int(request["call_back"])]
        positional, named = self._decode(request["with"])
        try:
            return {"value": self._encode(function(*positional, **named))}
        except Exception as error:
            return {"raised": type(error).__name__, "text": str(error)[:_MOST_REASON]}

    def _encode(self, value: Any) -> Any:
        return values.encode(value, self._keep)

    def _decode(self, message: Any) -> Any:
        return values.decode(message, self._find)

    def _keep(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"object": object.__getattribute__(value, "_number")}
        if isinstance(value, type):
            name = value.__name__
            if getattr(builtins, name, None) is value:
                return {"type": name}
        if callable(value):
            self._functions.append(value)
            return {"function": len(self._functions) - 1}
        raise TypeError(f"a {type(value).__name__} of the tests cannot be given to the program")

    def _find(self, message: dict[str, Any]) -> Any:
        if "module" in message:
            name = str(message["module"])
            if name.partition(".")[0] in _importable():
                return importlib.import_module(name)
            raise Failed(f"the module {name} is not known to the tests")
        if "function" in message:
            return self._functions[int(message["function"])]
        return Remote(self, int(message["object"]))


class Remote:
    """A function, class or instance of the program, by its number; every use is a call there.

    It equals a plain value never, and another of its kind when the program says so.
    """

    def __init__(self, program: Program, number: int) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_number", number)

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return _ask("call", self, list(positional), named)

    def __getattr__(self, name: str) -> Any:
        return _ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask("set", self, name, value)

    def __iter__(self) -> Any:
        return _ask("iter", self)

    def __next__(self) -> Any:
        return _ask("next", self)

    def __len__(self) -> int:
        return int(_ask("len", self))

    def __getitem__(self, key: Any) -> Any:
        return _ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask("set_item", self, key, value)

    def __contains__(self, key: Any) -> bool:
        return _ask("contains", self, key) is True

    def __bool__(self) -> bool:
        return _ask("bool", self) is True

    def __str__(self) -> str:
        return str(_ask("str", self))

    def __repr__(self) -> str:
        return str(_ask("repr", self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and _ask("equal", self, other) is True

    def __hash__(self) -> int:
        return int(_ask("hash", self))

    def __instancecheck__(self, value: Any) -> bool:
        return _ask("isinstance", self, value) is True


def _ask(what: str, remote: Remote, *arguments: Any) -> Any:
    program: Program = object.__getattribute__(remote, "_program")
    return program.ask(what, remote, *arguments)


def _exception(name: str, text: str) -> BaseException:
    """The built-in exception of that name, or the nearest that a text is enough to make."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        for each in kind.__mro__:
            try:
                made = each(text)
            except TypeError:
                continue
            if isinstance(made, BaseException):
                return made
    return Failed("raised what is no exception")


def _importable() -> frozenset[str]:
    return (sys.stdlib_module_names | _ALSO_IMPORTED) - _NOT_IMPORTED


def _update(old: Any, new: Any) -> None:
    """Make ``old``, an argument of a call, what the call left of it."""
    if type(old) is not type(new):
        return
    if isinstance(old, list):
        if len(old) == len(new):
            for index, (a, b) in enumerate(zip(old, new, strict=True)):
                if isinstance(a, list | dict | set | bytearray):
                    _update(a, b)
                else:
                    old[index] = b
        else:
            old[:] = new
    elif isinstance(old, dict | set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray):
        old[:] = new


def _reason(error: BaseException) -> str:
    if isinstance(error, Failed):
        return str(error)[:_MOST_REASON]
    try:
        text = str(error)
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:_MOST_REASON].rstrip(": ")
