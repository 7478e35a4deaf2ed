"""Checkpoints made elsewhere against their base: what each learned and forgot, with intervals."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paretune.analyse.changes import changes
from paretune.analyse.frontier import frontier
from paretune.analyse.record import StudyRecord
from paretune.analyse.results import tidy, to_csv
from paretune.errors import UserError
from paretune.evaluate.items import Items
from paretune.files import read_json, write_json, write_text
from paretune.model.checkpoint import load_checkpoint
from paretune.model.fingerprint import changes_of, fingerprint
from paretune.runner.device import choose
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.progress import Progress, Silent
from paretune.runner.score import Asked, benchmarks, scored
from paretune.runner.tuned import checkpoint_place
from paretune.study.config import Base, StudyConfig
from paretune.study.tasks import FORGETTING_SCORE


def assess(
    base: str,
    tuned: Sequence[str],
    asked: Asked,
    out: Path,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Score a base and checkpoints of it; write scores, items, statistics and a page.

    Scores that are in ``out`` already are not computed again.

    Args:
        tuned: folders or names of whole models, PEFT adapters, or STUDY:ARM[@BUDGET].
        out: the folder to write.

    Returns:
        ``out/report.html``.

    Raises:
        UserError: a model, adapter, task or data set that cannot be read, the same name twice, or
            an ``out`` that holds another assessment, or scores of files that have changed since.
    """
    progress = progress or Silent()
    names = _names(tuned)
    ledger = _ledger(out, base, names, asked)
    _check_files(ledger, {BASE: base, **{name: str(place) for name, place in names.items()}})
    built = benchmarks(Base(name=base), asked)
    write_json(out / "base" / "tasks.json", built.facts())
    where = choose(device)
    for name, place in {BASE: None, **names}.items():
        progress.begin(f"scoring {name}", 1)
        if not ledger.scores(name):
            ledger.write_scores(name, 0, _score(base, place, built, where))
        progress.line(f"{name}: {ledger.shown(name, 0, _metrics(ledger))}")
    metrics = _metrics(ledger)
    record = _record(ledger, out.name, list(names))
    found = changes(record, list(names), metrics)
    write_json(out / "assessment.json", [vars(each) for each in found])
    write_text(out / "results.csv", to_csv(tidy(record)))
    # Charts need libraries that a machine without a screen may lack
    from paretune.report.assess import assessment_page, verdict

    axes = _axes(record)
    places = frontier(record, *axes) if axes else None
    write_text(out / "report.html", assessment_page(base, found, axes, places, built.facts()))
    write_text(out / "answer.txt", f"{verdict(found)}\n")
    return out / "report.html"


def _score(base: str, place: Path | None, built: Any, device: torch.device) -> list[Items]:
    """Scores of the base (None), of a whole model, or of an adapter over the base."""
    adapter = place if place is not None and (place / "adapter_config.json").exists() else None
    model = base if place is None or adapter is not None else str(place)
    trainee = load_checkpoint(model, adapter, device)
    items = scored(trainee, built)
    del trainee
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return items


def _names(tuned: Sequence[str]) -> dict[str, Path]:
    """A short name for each checkpoint, and its folder."""
    found: dict[str, Path] = {}
    for text in tuned:
        name = text.rstrip("/").replace("\\", "/").split("/")[-1].replace(":", "-") or text
        if name in found or name == BASE:
            raise UserError(f"{text}: another checkpoint is called {name}; rename its folder")
        found[name] = checkpoint_place(text)
    return found


def _ledger(out: Path, base: str, names: dict[str, Path], asked: Asked) -> Ledger:
    """The folder of results, new or of the same assessment."""
    tasks = {side: list(of_side) for side, of_side in asked.tasks.items()}
    settings = {
        "base": base,
        "models": {name: str(place) for name, place in names.items()},
        **{key: value for key, value in vars(asked).items() if key != "mirror"},
        "tasks": tasks,
    }
    path = out / "settings.json"
    if path.exists():
        before = read_json(path)
        if {**before, "models": settings["models"]} != settings:
            raise UserError(f"{out}: holds an assessment with other settings; give another --out")
        # More models may come later, and those of before are not given again each time
        known = {**before["models"], **settings["models"]}
        for name, place in before["models"].items():
            if known[name] != place:
                raise UserError(
                    f"{out}: holds scores of another checkpoint called {name} ({place}); rename "
                    "the folder, or give another --out"
                )
        settings["models"] = known
    elif out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: not empty and no assessment; give another --out")
    write_json(path, settings)
    return Ledger(out)


def _check_files(ledger: Ledger, models: dict[str, str]) -> None:
    """Keep what each model's files are, and refuse a scored one whose files have changed since."""
    path = ledger.folder / "models.json"
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    for name, model in models.items():
        before = known.get(name)
        now = known[name] = fingerprint(Base(name=model), before)
        changed = [] if before is None else changes_of(before, now)
        if changed and ledger.scores(name):
            raise UserError(
                f"{ledger.folder}: {model} changed since it was scored: {'; '.join(changed[:3])}. "
                "Scores of both must not be mixed: put the old one back, or give another --out"
            )
    write_json(path, known)


def _record(ledger: Ledger, name: str, models: list[str]) -> StudyRecord:
    """What was scored, in the form that the statistics of studies take."""
    import pandas as pd

    rows = [{"arm": arm, **row} for arm in (BASE, *models) for row in ledger.scores(arm)]
    return StudyRecord(
        config=StudyConfig.model_construct(name=name),
        arms={},
        status={model: {"state": "done"} for model in models},
        scores=pd.DataFrame(rows),
        items=ledger.items,
        curve=lambda _: pd.DataFrame(),
        budgets=[0],
    )


def _metrics(ledger: Ledger) -> list[str]:
    """What the base was scored on: learning first."""
    rows = sorted(ledger.scores(BASE), key=lambda row: (row["side"] != "target", row["metric"]))
    return [row["metric"] for row in rows]


def _axes(record: StudyRecord) -> tuple[str, str] | None:
    """The metrics of learning and forgetting that are drawn against each other, where both are."""
    by_side = {
        side: list(dict.fromkeys(record.scores.loc[record.scores["side"] == side, "metric"]))
        for side in ("target", "source")
    }
    if not all(by_side.values()):
        return None
    source = by_side["source"]
    return by_side["target"][0], FORGETTING_SCORE if FORGETTING_SCORE in source else source[0]
