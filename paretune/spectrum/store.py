"""Spectra on disk: a log that grows matrix by matrix, and the tables it becomes."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paretune.files import append_jsonl, read_jsonl, write_with
from paretune.spectrum.measuring import Found, Options

if TYPE_CHECKING:
    import pandas as pd

TABLE, VALUES, LOG = "spectrum.parquet", "singular_values.parquet", "spectrum.log.jsonl"
_WHOLE = (
    "tokens", "layer", "d_out", "d_in", "rank90", "above_noise", "base_rank90", "tuned_rank90",
    "unresolved", "top", "intruders", "control_intruders",
)  # fmt: skip
_TEXT = ("model", "matrix", "module", "kind", "route")


class Store:
    """The spectra of one folder: an arm's, by ``tokens``, or a comparison's, by ``model``.

    A row is in the log as soon as it is measured, so an interrupted run goes on; ``finish`` turns
    the log into ``spectrum.parquet``, a row a matrix, and ``singular_values.parquet``.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def add(self, found: Iterable[tuple[Any, Found]]) -> None:
        """Append measured matrices under their key."""
        append_jsonl(
            self.folder / LOG,
            (
                {
                    "row": {self.key: key, **one.row},
                    "values": {name: _packed(values) for name, values in one.values.items()},
                }
                for key, one in found
            ),
        )

    def done(self, options: Options) -> set[tuple[Any, str]]:
        """Key and matrix of the rows that hold all that ``options`` ask for."""
        rows = [entry["row"] for entry in read_jsonl(self.folder / LOG)]
        if (self.folder / TABLE).exists():
            rows += self.table().to_dict("records")
        return {(row[self.key], row["matrix"]) for row in rows if _holds(row, options)}

    def finish(self) -> pd.DataFrame:
        """Write the tables from the log and what was there; the last row of a matrix counts.

        Returns:
            The table of measures.
        """
        import pandas as pd

        log = read_jsonl(self.folder / LOG)
        if log:
            rows, values = [entry["row"] for entry in log], self._value_rows(log)
            table, spectra = _typed(pd.DataFrame(rows)), pd.DataFrame(values)
            if (self.folder / TABLE).exists():
                table = pd.concat([self.table(), table], ignore_index=True)
                spectra = pd.concat([self.values(), spectra], ignore_index=True)
            table = _latest(table, [self.key, "matrix"])
            spectra = _latest(spectra, [self.key, "matrix", "of"])
            table = table.sort_values([self.key, "layer", "matrix"], ignore_index=True)
            for name, frame in ((TABLE, table), (VALUES, spectra)):
                write_with(
                    self.folder / name,
                    lambda path, frame=frame: frame.to_parquet(  # type: ignore[misc]
                        path, index=False, compression="zstd"
                    ),
                )
            (self.folder / LOG).unlink()
        return self.table()

    def table(self) -> pd.DataFrame:
        """The table of measures."""
        import pandas as pd

        return _typed(pd.read_parquet(self.folder / TABLE))

    def values(self) -> pd.DataFrame:
        """Singular values: key, matrix, of (base, tuned, delta), values (descending, float32)."""
        import pandas as pd

        return pd.read_parquet(self.folder / VALUES)

    def _value_rows(self, log: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                self.key: entry["row"][self.key],
                "matrix": entry["row"]["matrix"],
                "of": name,
                "values": np.frombuffer(base64.b64decode(text), np.float32),
            }
            for entry in log
            for name, text in entry["values"].items()
        ]


def _holds(row: dict[str, Any], options: Options) -> bool:
    """Whether a row was measured with these options or with more."""
    if options.vectors:
        return row.get("top") == min(options.top, row["d_out"], row["d_in"]) and (
            row.get("threshold") == options.threshold
        )
    if options.exact and row["route"] == "gram":
        return False
    return options.delta_only or _known(row.get("base_rank90"))


def _known(value: Any) -> bool:
    import pandas as pd

    return value is not None and not pd.isna(value)


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers as Int64, names as strings, all else as floats."""
    kinds = {
        name: "Int64" if name in _WHOLE else "string" if name in _TEXT else "float64"
        for name in frame.columns
    }
    return frame.astype(kinds)


def _latest(frame: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    return frame.drop_duplicates(key, keep="last", ignore_index=True)


def _packed(values: torch.Tensor) -> str:
    """Values as base64 of float32: short, and the same when read back."""
    return base64.b64encode(values.to(torch.float32).numpy().tobytes()).decode()
