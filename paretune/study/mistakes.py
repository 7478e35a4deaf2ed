"""A mistake in a study file: where it is and what to say about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """One mistake: where in the document, and what to say about it."""

    path: Path
    message: str
    meant: str | None = None  # the key that an unknown key probably stands for

    def __str__(self) -> str:
        return f"{shown(self.path)}: {self.message}" if self.path else self.message


class MistakesError(ValueError):
    """What a validator found, each placed at a key below the value that it looks at."""

    def __init__(self, *found: Mistake) -> None:
        self.found = found
        super().__init__("; ".join(map(str, found)))


def shown(path: Path) -> str:
    """A path as people write it: ``arms[1].learning_rate``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` is probably a slip of, or None."""
    by_lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def suggestion(word: str, known: Sequence[str]) -> str:
    """``; did you mean X?``, or the list of what is known."""
    near = closest(word, known)
    return f"; did you mean {near}?" if near else f"; known here: {', '.join(known)}"
