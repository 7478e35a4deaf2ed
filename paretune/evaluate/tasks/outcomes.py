"""From a model's answers to per-document outcomes, through the harness's filters and metrics."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paretune.errors import UserError
from paretune.evaluate.items import Items, Side
from paretune.evaluate.tasks.templates import templates_compiled_once
from paretune.study.tasks import EVERY, Task

# The filter that does nothing but take the first answer: its name is left out of a metric's
PLAIN_FILTER = "none"
# In the place of an answer that is not a number, so that the harness can go on
_STAND_IN: dict[str, Any] = {
    "loglikelihood": (0.0, False),
    "loglikelihood_rolling": 0.0,
    "generate_until": "",
}
_ACCURACY = ("acc", "exact_match", "pass@", "pass_at_", "mcq", "prompt_level")


@dataclass(frozen=True)
class Outcome:
    """What one document adds to a metric, ``sum(value) / sum(weight)`` over all documents."""

    value: float
    weight: float


def task_items(
    task: Task,
    parts: Sequence[Any],
    answers: Sequence[Sequence[list[Any] | None]],
    side: Side,
    where: str,
) -> list[Items]:
    """Per-document outcomes of one arm, for each metric that the study asks of a task.

    Args:
        parts: the harness's task objects that the task stands for.
        answers: for each part and request, its answers, one for each repeat; None where the arm's
            logits are not numbers, which makes the outcome of its document NaN.

    Raises:
        UserError: a metric that the task does not have, or that is no mean over documents.
    """
    values: dict[str, list[Any]] = {}
    ids: dict[str, list[str]] = {}
    aggregates: dict[str, list[tuple[Any, list[Any]]]] = {}
    better: dict[str, bool] = {}
    for part, of_part in zip(parts, answers, strict=True):
        prefix = f"{part.task_name}/" if len(parts) > 1 else ""
        with templates_compiled_once():
            found = _results(part, of_part)
        directions, functions = part.higher_is_better(), part.aggregation()
        for (metric, filter_name), by_document in found.items():
            name = _name(metric, filter_name, found)
            values.setdefault(name, []).extend(by_document.values())
            ids.setdefault(name, []).extend(f"{prefix}{number}" for number in by_document)
            better[name] = bool(directions.get(metric, True))
            aggregates.setdefault(name, []).append(
                (functions.get(metric), list(by_document.values()))
            )
    result = []
    wanted, left_out = task.metrics, None
    if wanted == EVERY:
        wanted, left_out = _means(values, aggregates, task, where)
    for metric in wanted:
        _check_known(metric, values, task, where)
        outcomes = [_outcome(metric, value, task, where) for value in values[metric]]
        _check_means(metric, aggregates[metric], task, where)
        result.append(
            Items(
                metric=f"{task.name}/{metric}",
                side=side,
                unit=_unit(metric),
                higher_is_better=better[metric],
                ids=ids[metric],
                groups=ids[metric],
                value=np.array([outcome.value for outcome in outcomes]),
                weight=np.array([outcome.weight for outcome in outcomes]),
                note=left_out,
            )
        )
    return result


def check_metrics(task: Task, parts: Sequence[Any], where: str) -> None:
    """Refuse metrics that a task does not have, before anything is scored.

    The harness tells them only where it judges answers, so it is given empty ones to the first
    document. A task that cannot judge those says so when real ones are there.

    Raises:
        UserError: a metric that the task does not have.
    """
    if task.metrics == EVERY:
        return
    names: set[str] = set()
    for part in parts:
        every = part.instances
        part._instances = [each for each in every if each.doc_id == every[0].doc_id]
        try:
            found = _results(part, [None] * len(part.instances))
        except Exception:  # a task's own code, which may fail on an empty answer as it likes
            return
        finally:
            part._instances = every
        names |= {_name(metric, filter_name, found) for metric, filter_name in found}
    for metric in task.metrics:
        _check_known(metric, names, task, where)


def _check_known(metric: str, known: Collection[str], task: Task, where: str) -> None:
    if metric not in known:
        raise UserError(
            f"{where}.metrics: {task.name} has no metric '{metric}'; "
            f"there is {', '.join(sorted(known))}"
        )


def _means(
    values: Mapping[str, Any], aggregates: Mapping[str, Any], task: Task, where: str
) -> tuple[tuple[str, ...], str | None]:
    """All metrics of a task that are means over documents, and a sentence on the others."""
    kept, others = [], []
    for metric in sorted(values):
        try:
            _check_means(metric, aggregates[metric], task, where)
        except UserError:
            others.append(metric)
        else:
            kept.append(metric)
    note = f"left out, for they are no means over documents: {', '.join(others)}"
    return tuple(kept), note if others else None


def mean_items(metric: str, parts: Sequence[Items], side: Side) -> Items:
    """The unweighted mean of several scores as one score: each counts the same, not each item.

    Items keep their outcomes, scaled so that sum(value) / sum(weight) is the mean of the scores.
    The standard error of the mean then holds a little of the spread between the scores as well;
    that of a difference from another model on the same items does so only where the differences
    spread.
    """
    if {part.unit for part in parts} != {parts[0].unit}:
        raise ValueError("a mean needs scores of one unit")
    totals = [float(part.weight.sum()) * len(parts) for part in parts]
    names = [part.metric.split("/")[0] for part in parts]
    ids = [f"{name}/{i}" for name, part in zip(names, parts, strict=True) for i in part.ids]
    return Items(
        metric=metric,
        side=side,
        unit=parts[0].unit,
        higher_is_better=parts[0].higher_is_better,
        ids=ids,
        groups=ids,
        value=np.concatenate([p.value / t for p, t in zip(parts, totals, strict=True)]),
        weight=np.concatenate([p.weight / t for p, t in zip(parts, totals, strict=True)]),
        note="; ".join(f"{n}: {p.note}" for n, p in zip(names, parts, strict=True) if p.note)
        or None,
    )


def _results(
    part: Any, answers: Sequence[list[Any] | None]
) -> dict[tuple[str, str], dict[int, Any]]:
    """What the harness makes of the answers: by metric and filter, a value for each document."""
    by_document: dict[int, list[Any]] = {}
    broken = set()
    for instance, own in zip(part.instances, answers, strict=True):
        if own is None:
            broken.add(instance.doc_id)
            own = [_STAND_IN[instance.request_type]] * instance.repeats
        instance.resps, instance.filtered_resps = list(own), {}
        by_document.setdefault(instance.doc_id, []).append(instance)
    part.apply_filters()
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for filter_name in part.instances[0].filtered_resps:
        for number, instances in by_document.items():
            instances.sort(key=lambda instance: instance.idx)
            filtered = [instance.filtered_resps[filter_name] for instance in instances]
            for metric, value in part.process_results(instances[0].doc, filtered).items():
                known = math.nan if number in broken else value
                found.setdefault((metric, filter_name), {})[number] = known
    return found


def _name(metric: str, filter_name: str, found: Collection[tuple[str, str]]) -> str:
    """A metric's name: with its filter, as the harness writes it, where that says something.

    Args:
        found: every metric of the task with each of its filters.
    """
    if filter_name == PLAIN_FILTER or sum(other == metric for other, _ in found) == 1:
        return metric
    return f"{metric},{filter_name}"


def _outcome(metric: str, value: Any, task: Task, where: str) -> Outcome:
    if isinstance(value, float) and math.isnan(value):
        return Outcome(math.nan, 1.0)
    if metric == "bits_per_byte":
        log_likelihood, n_bytes = value
        return Outcome(-float(log_likelihood) / math.log(2), float(n_bytes))
    if isinstance(value, list | tuple) and all(isinstance(each, bool | int) for each in value):
        return Outcome(float(sum(value)), float(len(value)))
    if isinstance(value, bool | int | float | np.number):
        return Outcome(float(value), 1.0)
    raise _no_mean(metric, task, where)


def _check_means(
    metric: str, aggregates: Sequence[tuple[Any, list[Any]]], task: Task, where: str
) -> None:
    """Refuse a metric that the harness does not aggregate as a ratio of sums over documents."""
    for function, values in aggregates:
        if function is None or not values:
            continue
        outcomes = [_outcome(metric, value, task, where) for value in values]
        ratio = sum(o.value for o in outcomes) / sum(o.weight for o in outcomes)
        if math.isnan(ratio):
            continue
        theirs = float(function(values))
        if not math.isclose(ratio, theirs, rel_tol=1e-9, abs_tol=1e-12):
            raise _no_mean(metric, task, where)


def _no_mean(metric: str, task: Task, where: str) -> UserError:
    return UserError(
        f"{where}.metrics: {metric} of {task.name} is not a mean over documents, so it has no "
        "outcomes that could be paired; choose another of its metrics"
    )


def _unit(metric: str) -> str:
    if metric == "bits_per_byte":
        return "bits/byte"
    return "accuracy" if metric.startswith(_ACCURACY) or metric.endswith("_acc") else metric
