"""Rows of a data set on the Hugging Face hub: streamed, at one commit, and through failures."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from paretune.data.rows import AnyRow, Fields
from paretune.data.stream import resumed
from paretune.errors import Fault, UserError, first_line
from paretune.study.sources import Hub


class HubRows:
    """A data set's rows, each time from the start; all reads are of the commit of the first.

    Attributes:
        facts: what the manifest keeps: name, split, the commit read.
    """

    def __init__(self, data: Hub, *, where: str, pairs: bool) -> None:
        self._data = data
        self._where = where
        self._fields = Fields(data.text, data.prompt, data.response, data.group, pairs)
        self.facts: dict[str, Any] = {
            "name": data.name,
            "config": data.config,
            "data_dir": data.data_dir,
            "split": data.split,
            "revision": data.revision,
        }

    def __call__(self) -> Iterator[AnyRow]:
        """Read the rows.

        Raises:
            UserError: no such data set, split or field; Fault: the hub does not answer.
        """
        data = self._data
        what = f"{self._where}: the data set '{data.name}'"
        try:
            for number, raw in enumerate(resumed(self._open, what=what)):
                if data.limit is not None and number >= data.limit:
                    return
                place = f"{data.name} {data.split} row {number}"
                yield self._fields.read(raw, id=f"{data.name}/{data.split}/{number}", place=place)
        except UserError as error:
            if not isinstance(error, Fault):
                raise
            raise Fault(f"{error}. {_check()}") from error
        except Exception as error:  # the hub's client raises many kinds, of several libraries
            raise UserError(
                f"{what} could not be read from the Hugging Face hub "
                f"({type(error).__name__}: {first_line(error)}). {_check()}"
            ) from error

    def _open(self, start: int) -> Iterator[dict[str, Any]]:
        import datasets

        if self.facts["revision"] is None:
            self.facts["revision"] = _commit(self._data.name)
        if hasattr(datasets, "config"):
            # Its own retries read the same connection again; a new one at the row is ours to open
            datasets.config.STREAMING_READ_MAX_RETRIES = 1
        stream: Any = datasets.load_dataset(
            self._data.name,
            self._data.config,
            data_dir=self._data.data_dir,
            split=self._data.split,
            revision=self.facts["revision"],
            streaming=True,
        )
        rows = stream.skip(start) if hasattr(stream, "skip") else islice(stream, start, None)
        return (dict(row) for row in rows)


def _commit(name: str) -> str | None:
    """The commit a data set is at now, so that later reads see the same; None where unknown."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(name, timeout=10).sha
    except Exception:  # opening the data set says what is wrong
        return None


def _check() -> str:
    return (
        "Check its name, config, split and revision, the network, and for a gated one that you "
        "are logged in (hf auth login)"
    )
