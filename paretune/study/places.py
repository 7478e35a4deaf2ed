"""Where the keys of a study stand in its file, for mistakes that only base or data reveal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from paretune.errors import Fault, UserError

KeyPath = tuple[str | int, ...]
_KEY = re.compile(r"^([A-Za-z_]\w*(?:\[\d+\]|\.\w+)*):")


class Places:
    """Lines of a study file by key; empty for a study that was made in Python.

    Args:
        name: how messages call the file.
        line: the line of a path of keys, such as ("arms", 1, "rank"); of the nearest key above it
            where the file does not hold it.
        entries: which entry under ``arms`` an arm comes from, by arm id.
    """

    def __init__(
        self,
        name: str = "",
        line: Callable[[KeyPath], int] | None = None,
        entries: Mapping[str, int] | None = None,
    ) -> None:
        self._name = name
        self._line = line
        self._entries = dict(entries or {})

    def __eq__(self, other: object) -> bool:
        # The same study is the same study in whatever file it stands
        return isinstance(other, Places)

    __hash__ = None  # type: ignore[assignment]

    def arm_key(self, arm_id: str, setting: str) -> str:
        """How messages call an arm's setting: ``arms[1].rank``, or the arm's id and the setting."""
        if arm_id in self._entries:
            return f"arms[{self._entries[arm_id]}].{setting}"
        return f"{arm_id}, {setting}"

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put file and line before the message of a UserError that begins with a key."""
        try:
            yield
        except UserError as error:
            match = _KEY.match(str(error))
            if match is None or self._line is None:
                raise
            parts = re.findall(r"\w+", match.group(1))
            path = tuple(int(part) if part.isdigit() else part for part in parts)
            # A failure from outside stays one: its exit code says that the same command goes on
            kind = Fault if isinstance(error, Fault) else UserError
            raise kind(f"{self._name}, line {self._line(path)}: {error}") from error
