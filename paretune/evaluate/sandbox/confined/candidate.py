"""The process that runs the program under test and then answers calls of its functions.

Nothing it says is trusted: it can answer a call, rightly or wrongly, and nothing more. Whether
the answer is right is decided in the examiner's process.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable
from typing import Any

from paretune.evaluate.sandbox.confined import values, wire


def serve(channel: int, code: str) -> None:
    """Execute ``code``, then answer what the examiner asks until it closes the channel."""
    namespace: dict[str, Any] = {}
    try:
        # As lm-eval's code_eval does: in an empty namespace, in which __name__ is not "__main__"
        exec(compile(code, "<program>", "exec", dont_inherit=True), namespace)
    except BaseException as error:
        wire.send(channel, raised(error))
        return
    wire.send(channel, {"value": None})
    program = _Program(channel, namespace)
    while True:
        program.answer(wire.receive(channel))


class _Program:
    """What the program defined, and the objects it has handed out by number."""

    def __init__(self, channel: int, namespace: dict[str, Any]) -> None:
        self._channel = channel
        self._namespace = namespace
        self._objects: list[Any] = []
        self._number: dict[int, int] = {}

    def answer(self, request: list[Any]) -> None:
        """Do what one request asks for and send the outcome."""
        do: dict[str, Callable[..., Any]] = {
            "names": self._names,
            "call": self._call,
            "get": getattr,
            "set": setattr,
            "iter": iter,
            "next": next,
            "len": len,
            "item": lambda of, key: of[key],
            "set_item": lambda of, key, value: of.__setitem__(key, value),
            "contains": lambda of, key: key in of,
            "bool": bool,
            "str": str,
            "repr": repr,
            "hash": hash,
            "equal": lambda a, b: bool(a == b),
            "isinstance": lambda of, value: isinstance(value, of),
        }
        what, *arguments = request
        try:
            given = [self._decode(each) for each in arguments]
            before = arguments if what == "call" else None
            reply = {"value": self._encode(do[what](*given))}
            if before is not None:
                after = [self._encode(each) for each in given]
                if after != before:  # the function changed its arguments in place
                    reply["changed"] = after[1:]
        except BaseException as error:
            reply = raised(error)
        wire.send(self._channel, reply)

    def _names(self, names: list[str]) -> dict[str, Any]:
        return {name: self._namespace[name] for name in names if name in self._namespace}

    def _call(self, function: Any, positional: list[Any], named: dict[str, Any]) -> Any:
        return function(*positional, **named)

    def _encode(self, value: Any) -> Any:
        return values.encode(value, self._keep)

    def _decode(self, message: Any) -> Any:
        return values.decode(message, self._find)

    def _keep(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__}
        if isinstance(value, _Callback):
            return {"function": value.number}
        number = self._number.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)
        return {"object": number}

    def _find(self, message: dict[str, Any]) -> Any:
        if "object" in message:
            return self._objects[message["object"]]
        if "type" in message:
            return getattr(builtins, message["type"])
        return _Callback(self, message["function"])

    def call_back(self, number: int, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call a function of the tests that they passed as an argument."""
        request = {"call_back": number, "with": self._encode([list(positional), named])}
        wire.send(self._channel, request)
        while True:
            reply = wire.receive(self._channel)
            if isinstance(reply, dict):
                break
            self.answer(reply)  # the tests call the program while it calls them
        if "raised" in reply:
            raise getattr(builtins, reply["raised"], RuntimeError)(reply["text"])
        return self._decode(reply["value"])


class _Callback:
    """A function of the tests, called in their process."""

    def __init__(self, program: _Program, number: int) -> None:
        self._program = program
        self.number = number

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._program.call_back(self.number, positional, named)


def raised(error: BaseException) -> dict[str, Any]:
    """An exception as the first of its classes that Python itself defines."""
    # Found by identity: in the program's namespace every class says that it is of builtins
    known = next(k for k in type(error).__mro__ if getattr(builtins, k.__name__, None) is k)
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return {"raised": known.__name__, "name": type(error).__name__, "text": text}
