"""Scoring models that were made elsewhere, task by task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paretune.errors import UserError
from paretune.evaluate.items import Items, Side, score
from paretune.evaluate.tasks.benchmarks import Benchmarks
from paretune.evaluate.tasks.harness import generates
from paretune.model.checkpoint import load_checkpoint
from paretune.model.load import end_of_text, load_config, load_tokenizer
from paretune.model.trainee import Trainee
from paretune.runner.device import choose
from paretune.study.config import Base
from paretune.study.tasks import EVERY, USUAL_METRICS, GenerationKwargs, Task


@dataclass(frozen=True)
class Asked:
    """What is scored, and how.

    Attributes:
        tasks: names by side, as the harness calls them.
        mirror: local files in the place of data sets of the hub.
        limit: documents of each task.
        max_gen_toks: longest answer of tasks that generate.
    """

    tasks: Mapping[Side, Sequence[str]]
    mirror: Mapping[str, str]
    limit: int | None = None
    num_fewshot: int | None = None
    max_gen_toks: int | None = None
    sandbox: str = "auto"


def read_mirror(entries: Sequence[str]) -> dict[str, str]:
    """``NAME=PATH`` entries of the command line.

    Raises:
        UserError: an entry of another form.
    """
    found = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or "{split}" not in path:
            raise UserError(
                f"--mirror {entry}: write DATASET=PATH with {{split}} in the path, such as "
                "Rowan/hellaswag=eval/hellaswag-{split}.jsonl"
            )
        found[name] = path
    return found


def asked_for(
    learning: str,
    forgetting: str,
    mirror: Sequence[str] | None,
    limit: int | None,
    num_fewshot: int | None,
    max_gen_toks: int | None,
    sandbox: str,
) -> Asked:
    """What the command line asks for; task names are written with commas.

    Raises:
        UserError: no task, or a mirror of another form.
    """
    sides: dict[Side, list[str]] = {
        "target": [name.strip() for name in learning.split(",") if name.strip()],
        "source": [name.strip() for name in forgetting.split(",") if name.strip()],
    }
    if not sides["target"] + sides["source"]:
        raise UserError("--tasks: no task is named, for example --tasks hellaswag,winogrande")
    return Asked(sides, read_mirror(mirror or ()), limit, num_fewshot, max_gen_toks, sandbox)


def benchmarks(base: Base, asked: Asked) -> Benchmarks:
    """The tasks, ready for any checkpoint of this base."""
    try:
        return Benchmarks(
            {side: [_task(name, asked) for name in names] for side, names in asked.tasks.items()},
            asked.mirror,
            load_tokenizer(base),
            load_config(base),
            end_of_text(base),
            asked.sandbox,
        )
    except UserError as error:
        # The places of a study file, as options of the command line
        text = re.sub(r"^source\.tasks\[\d+\]: ", "--tasks: ", str(error))
        text = re.sub(r"^target\.tasks\[\d+\]: ", "--learning: ", text)
        raise type(error)(re.sub(r"^mirror\.", "--mirror ", text)) from error


def score_model(
    model: str, asked: Asked, *, adapter: Path | None = None, device: str | None = None
) -> list[Items]:
    """Per-document outcomes of a model, with or without a PEFT adapter, metric by metric.

    Raises:
        UserError: a model, adapter, task or data set that cannot be read.
    """
    if adapter is not None and not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter}: no PEFT adapter here (adapter_config.json is missing)")
    built = benchmarks(Base(name=model), asked)
    return scored(load_checkpoint(model, adapter, choose(device)), built)


def scored(model: Trainee, built: Benchmarks) -> list[Items]:
    """Outcomes of one model."""
    (found,) = built.score(model.view(None))
    return list(found.values())


def score_table(results: Sequence[Items]) -> str:
    """Scores as text: metric, value, standard error, n, and notes below."""
    from paretune.runner.tables import columns

    rows, notes = [], []
    for items in results:
        own = score(items)
        error = "" if own.stderr is None else f"± {own.stderr:.4f}"
        rows.append((items.metric, f"{own.value:.4f}", error, f"n {own.n}", items.unit))
        notes += [f"{items.metric}: {text}" for text in (own.reason, items.note) if text]
    return "\n".join([*columns(("metric", "score", "", "", "unit"), rows), *notes])


def score_rows(results: Sequence[Items]) -> list[dict[str, object]]:
    """Scores as JSON values."""
    rows: list[dict[str, object]] = []
    for items in results:
        own = score(items)
        rows.append(
            {
                "metric": items.metric,
                "side": items.side,
                "unit": items.unit,
                "higher_is_better": items.higher_is_better,
                "value": own.value if own.value == own.value else None,
                "stderr": own.stderr,
                "n": own.n,
                "reason": own.reason,
                "note": items.note,
            }
        )
    return rows


def _task(name: str, asked: Asked) -> Task:
    """A task with its usual metric, or with all of its metrics where none is usual."""
    settings = None
    if asked.max_gen_toks is not None and generates(name):
        settings = GenerationKwargs(max_gen_toks=asked.max_gen_toks)
    usual = USUAL_METRICS.get(name)
    return Task(
        name=name,
        metrics=(usual,) if usual else EVERY,
        limit=asked.limit,
        num_fewshot=asked.num_fewshot,
        generation_kwargs=settings,
    )
