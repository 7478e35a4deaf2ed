"""Spectra of finished checkpoints: of any models against their base, or of a whole study."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from paretune.errors import UserError
from paretune.runner.device import choose
from paretune.runner.ledger import Ledger
from paretune.runner.progress import Progress, Silent
from paretune.runner.tuned import base_of, checkpoints, tuned_in, tuned_of
from paretune.spectrum.compute import spectra
from paretune.spectrum.matrices import Matrix, left_out
from paretune.spectrum.measuring import Found, Options, Tuned
from paretune.spectrum.store import Store
from paretune.spectrum.weights import Weights

if TYPE_CHECKING:
    import pandas as pd

_SAY_EVERY = 20.0  # seconds between lines where there is no bar
_FLUSH_EVERY = 1.0  # seconds that a measured row may wait to be written


def model_spectra(
    base: str,
    tuned: Sequence[str],
    out: Path | str,
    *,
    options: Options | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    any_vocabulary: bool = False,
) -> pd.DataFrame:
    """Measure every matrix of each tuned model against its base, into ``out``.

    Args:
        base: ``pocket``, a folder, or a name on the hub.
        tuned: folders, PEFT adapters, names on the hub, or STUDY:ARM[@BUDGET].
        out: gets spectrum.parquet and singular_values.parquet; a run that was interrupted goes on.
        device: ``cpu``, ``cuda``, ``cuda:1``; by default every GPU there is.
        any_vocabulary: compare models whose embeddings differ in rows.

    Returns:
        The table: a row for each matrix of each model.

    Raises:
        UserError: a model is missing, damaged or quantised, or is no finetune of the base.
    """
    options, progress = options or Options(), progress or Silent()
    weights, matrices = base_of(base)
    models = [tuned_of(one, weights, matrices, any_vocabulary=any_vocabulary) for one in tuned]
    twice = {model.key for model in models if sum(other.key == model.key for other in models) > 1}
    if twice:
        raise UserError(f"{next(iter(twice))}: given twice")
    _say_left_out(weights, matrices, progress)
    store = Store(Path(out), "model")
    _measure(weights, matrices, models, options, device, progress, lambda key: (store, key))
    return store.finish()


def study_spectra(
    folder: Path | str,
    arms: Sequence[str] = (),
    *,
    options: Options | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure every kept checkpoint of a study, into its ledger: arms/<arm-id>/spectrum.parquet.

    Args:
        folder: the study.
        arms: only these, as ARM or ARM@BUDGET.

    Returns:
        The tables of the arms that were measured, with an ``arm`` column.

    Raises:
        UserError: no study, no checkpoint, or a damaged one.
    """
    import pandas as pd

    options, progress = options or Options(), progress or Silent()
    ledger = Ledger.open(Path(folder))
    base = ledger.study().config.base
    found = checkpoints(ledger, arms)
    weights, matrices = base_of(base.name, base.revision)
    models = [tuned_in((arm, tokens), path, weights, matrices) for arm, tokens, path in found]
    stores = {arm: Store(ledger.arm_folder(arm), "tokens") for arm, _, _ in found}
    _say_left_out(weights, matrices, progress)

    def place(key: Any) -> tuple[Store, Any]:
        return stores[key[0]], key[1]

    _measure(weights, matrices, models, options, device, progress, place)
    tables = [store.finish().assign(arm=arm) for arm, store in stores.items()]
    return pd.concat(tables, ignore_index=True)


def devices(name: str | None) -> list[torch.device]:
    """The named device; every GPU by default, the CPU where there is none.

    Raises:
        UserError: no such device.
    """
    if name is None and torch.cuda.device_count() > 1:
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [choose(name)]


def summary(table: pd.DataFrame) -> str:
    """Medians over a model's matrices of each kind, for people."""
    lines = []
    key = ["arm", "tokens"] if "arm" in table.columns else ["model"]
    for name, group in table.groupby(key, sort=False):
        label = "@".join(str(part) for part in name) if isinstance(name, tuple) else str(name)
        lines.append(label)
        for kind, part in group.groupby("kind", sort=True):
            median = part[
                ["rank90", "rank90_relative", "effective_rank", "stable_rank", "frobenius_relative"]
            ].median()
            moved = median["frobenius_relative"]
            lines.append(
                f"  {kind}, {len(part)} matrices: 90% of the update's variance in rank "
                f"{median['rank90']:.0f} ({median['rank90_relative']:.2f} of noise), effective "
                f"rank {median['effective_rank']:.0f}, stable rank {median['stable_rank']:.1f}"
                + (f", size {moved:.2g} of W0's" if moved == moved else "")
            )
    return "\n".join([*lines, "medians over matrices; noise is a random matrix of the same shape"])


def _measure(
    weights: Weights,
    matrices: list[Matrix],
    models: list[Tuned],
    options: Options,
    device: str | None,
    progress: Progress,
    place: Callable[[Any], tuple[Store, Any]],
) -> None:
    """Compute what is not there yet and log each row as it comes."""
    have: dict[int, set[tuple[Any, str]]] = {}

    def wanted(key: Any, matrix: str) -> bool:
        store, own = place(key)
        if id(store) not in have:
            have[id(store)] = store.done(options)
        return (own, matrix) not in have[id(store)]

    total = sum(wanted(model.key, m.name) for model in models for m in matrices)
    skipped = len(models) * len(matrices) - total
    if skipped:
        progress.line(f"{skipped} of {len(models) * len(matrices)} matrices are there already")
    progress.begin("measuring matrices", total)
    started = said = time.monotonic()
    found = spectra(weights, matrices, models, options, devices(device), wanted=wanted)
    with _Rows(place) as rows:
        for done, one in enumerate(found, start=1):
            rows.add(one)
            progress.advance()
            now = time.monotonic()
            if now - said > _SAY_EVERY:
                said = now
                left = (now - started) / done * (total - done)
                progress.line(f"{done} of {total} matrices, about {left:.0f} s left")


class _Rows:
    """Rows on their way to their stores: written together, as each write waits for the disk."""

    def __init__(self, place: Callable[[Any], tuple[Store, Any]]) -> None:
        self._place = place
        self._waiting: dict[int, tuple[Store, list[tuple[Any, Found]]]] = {}
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._flush()

    def add(self, one: Found) -> None:
        """Keep a row, and write all that wait when the oldest has waited long enough."""
        store, own = self._place(one.key)
        self._waiting.setdefault(id(store), (store, []))[1].append((own, one))
        if time.monotonic() - self._since > _FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        for store, rows in self._waiting.values():
            store.add(rows)
        self._waiting.clear()
        self._since = time.monotonic()


def _say_left_out(weights: Weights, matrices: list[Matrix], progress: Progress) -> None:
    names = left_out(weights, matrices)
    if names:
        progress.line(f"not measured, as they stand outside the layers: {', '.join(names)}")
