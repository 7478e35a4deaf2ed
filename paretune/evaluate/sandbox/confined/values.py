"""Python values as JSON, for calls between the tests and the program.

Values of Python's own types go over by value, with their exact type. Everything else, an instance
of the program's own class or a function, stays where it is; the other side gets its number.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
from collections.abc import Callable
from typing import Any

# Types of the standard library that go over as a call of the type with these arguments
_KNOWN: dict[str, tuple[type, Callable[[Any], tuple[Any, ...]]]] = {
    "Counter": (collections.Counter, lambda v: (dict(v),)),
    "OrderedDict": (collections.OrderedDict, lambda v: (list(v.items()),)),
    "defaultdict": (collections.defaultdict, lambda v: (None, dict(v))),
    "deque": (collections.deque, lambda v: (list(v), v.maxlen)),
    "Fraction": (fractions.Fraction, lambda v: (v.numerator, v.denominator)),
    "Decimal": (decimal.Decimal, lambda v: (str(v),)),
    "date": (datetime.date, lambda v: (v.year, v.month, v.day)),
    "time": (datetime.time, lambda v: (v.hour, v.minute, v.second, v.microsecond)),
    "datetime": (
        datetime.datetime,
        lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond),
    ),
    "timedelta": (datetime.timedelta, lambda v: (v.days, v.seconds, v.microseconds)),
    "complex": (complex, lambda v: (v.real, v.imag)),
    "range": (range, lambda v: (v.start, v.stop, v.step)),
    "bytearray": (bytearray, lambda v: (bytes(v),)),
}
_NAME_OF = {kind: name for name, (kind, _) in _KNOWN.items()}
_SEQUENCES: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}
# Bases whose subclasses go over as the base: named tuples, enums of integers, and the like
_BASES: dict[type, Callable[[Any], Any]] = {
    int: int,
    float: float,
    str: str.__str__,  # and not str(): an enum's is its name
    bytes: bytes,
    tuple: tuple,
    list: list,
    dict: dict,
    set: set,
    frozenset: frozenset,
}
_EXACT = 1 << 62


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """``value`` as JSON.

    Args:
        keep: called with what cannot go over by value; returns the JSON that stands for it.
    """
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -_EXACT < value < _EXACT else {"int": hex(value)}
    if kind is list:
        return [encode(each, keep) for each in value]
    if kind is dict:
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    if kind is bytes:
        return {"bytes": value.decode("latin-1")}
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(each, keep) for each in value]}
    if kind in _NAME_OF:
        name = _NAME_OF[kind]
        return {"known": name, "of": [encode(each, keep) for each in _KNOWN[name][1](value)]}
    if kind.__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), keep)
    for base, plain in _BASES.items():
        if isinstance(value, base):
            return encode(plain(value), keep)
    return keep(value)


def decode(message: Any, find: Callable[[dict[str, Any]], Any]) -> Any:
    """The value that ``encode`` wrote.

    Args:
        find: called with what did not go over by value.

    Raises:
        ValueError, TypeError, KeyError: ``message`` is nothing that ``encode`` writes.
    """
    if message is None or isinstance(message, bool | int | float | str):
        return message
    if isinstance(message, list):
        return [decode(each, find) for each in message]
    if "int" in message:
        return int(message["int"], 16)
    if "dict" in message:
        return {decode(k, find): decode(v, find) for k, v in message["dict"]}
    if "bytes" in message:
        return message["bytes"].encode("latin-1")
    for name, kind in _SEQUENCES.items():
        if name in message:
            return kind([decode(each, find) for each in message[name]])
    if "known" in message:
        return _KNOWN[message["known"]][0](*[decode(each, find) for each in message["of"]])
    return find(message)
