"""Local files in the place of the hub's data sets, so that tasks run without a network."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paretune.data.local_files import table
from paretune.errors import UserError


class Mirror:
    """Which data sets of the hub lie in local files.

    Args:
        paths: by a data set's name on the hub (``allenai/ai2_arc``, or with its configuration
            ``allenai/ai2_arc/ARC-Challenge``), a path with ``{split}``, and ``{config}`` where one
            entry serves several configurations. JSON lines (also .gz) or Parquet.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = dict(paths)

    def holds(self, name: str, config: str | None) -> bool:
        """Whether the data set is mirrored."""
        return self._key(name, config) is not None

    def loader(self, name: str, config: str | None, splits: set[str]) -> Callable[..., Any]:
        """A function that gives the data set as ``datasets.DatasetDict``.

        Args:
            splits: what the task names; one that has no file is empty.

        Raises:
            UserError: no split has a file, or a file cannot be read.
        """

        def load(**_: Any) -> Any:
            from datasets import Dataset, DatasetDict

            found = {split: Dataset(table(path)) for split, path in self._files(name, config)}
            some = next(iter(found.values()))
            for split in splits - set(found):
                found[split] = some.select(range(0))
            return DatasetDict(found)

        return load

    def _key(self, name: str, config: str | None) -> str | None:
        for key in (f"{name}/{config}", name):
            if key in self._paths:
                return key
        return None

    def _files(self, name: str, config: str | None) -> list[tuple[str, Path]]:
        key = self._key(name, config)
        assert key is not None
        pattern = os.path.expanduser(self._paths[key]).replace("{config}", config or "")
        before, _, after = pattern.partition("{split}")
        named = re.compile(re.escape(before) + r"([\w-]+?)" + re.escape(after))
        files = []
        for path in sorted(glob.glob(glob.escape(before) + "*" + glob.escape(after))):
            match = named.fullmatch(path)
            if match is not None:
                files.append((match.group(1), Path(path)))
        if not files:
            raise UserError(f"mirror.{key}: no file matches {pattern}")
        return files
