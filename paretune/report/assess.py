"""The page of an assessment: checkpoints made elsewhere against their base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paretune.analyse.changes import Change
from paretune.report.figures import specifications
from paretune.report.page import render_page
from paretune.report.style import STUDIES, interval, number
from paretune.report.words import metric_note, metric_words, sentence

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


def assessment_page(
    base: str,
    changes: Sequence[Change],
    axes: tuple[str, str] | None,
    places: pd.DataFrame | None,
    tasks: Sequence[Mapping[str, Any]],
) -> str:
    """One self-contained page.

    Args:
        changes: of every checkpoint on every metric.
        axes: the metrics of learning and forgetting that ``places`` is about.
        places: ``analyse.frontier`` of the checkpoints, None without both sides.
        tasks: what was scored: ``Benchmarks.facts``.
    """
    names = list(dict.fromkeys(change.model for change in changes))
    colours = {name: STUDIES[index % len(STUDIES)] for index, name in enumerate(names)}
    charts = {}
    if axes is not None and places is not None and len(places):
        charts["frontier"] = chart(places, axes, colours)
    return render_page(
        "assess.html",
        specifications(charts),
        name=f"Assessment of {base}",
        base=base,
        verdict=verdict(changes),
        models=[{"id": name, "name": name, "colour": colours[name]} for name in names],
        figures=list(charts),
        rows=[_row(change, colours) for change in changes],
        frontier=[] if places is None else [_place(row) for row in places.to_dict("records")],
        tasks=[_facts(task) for task in tasks],
        notes=_notes(changes),
    )


def verdict(changes: Sequence[Change]) -> str:
    """What is established of each checkpoint, in one sentence: p below 0.05 after Holm."""
    said = []
    for model in dict.fromkeys(change.model for change in changes):
        parts = [_established(change) for change in changes if change.model == model]
        if found := [part for part in parts if part]:
            said.append(f"{model} {', '.join(found)}")
    if not said:
        count = len(changes)
        which = f"none of {count} changes has" if count > 1 else "the one change does not have"
        return f"No change from the base is established: {which} p below 0.05."
    return f"{'; '.join(said)}; no other change has p below 0.05."


def _established(change: Change) -> str | None:
    if change.p is None or change.p >= 0.05 or not change.change:
        return None
    better = (change.side == "target") == (change.change > 0)
    words = {"target": ("learned", "became worse at"), "source": ("became better at", "forgot")}
    verb = words[change.side][0 if better else 1]
    return f"{verb} {change.metric} ({number(abs(change.change), 3)})"


def chart(
    places: pd.DataFrame, axes: tuple[str, str], colours: Mapping[str, str]
) -> alt.LayerChart:
    """Learning against forgetting with 95% intervals; the base stands at the origin."""
    import altair as alt

    learned, forgot = (metric_words(metric) for metric in axes)
    colour = alt.Color(
        "arm:N",
        title=None,
        scale=alt.Scale(domain=list(colours), range=list(colours.values())),
    )
    start = alt.Chart(places)
    x = alt.X("learning:Q", title=f"learned: {learned}")
    y = alt.Y("forgetting:Q", title=f"forgot: {forgot}")
    return alt.layer(
        start.mark_rule().encode(
            x=alt.X("learning_low:Q"), x2="learning_high:Q", y=y, color=colour
        ),
        start.mark_rule().encode(
            x=x, y=alt.Y("forgetting_low:Q"), y2="forgetting_high:Q", color=colour
        ),
        start.mark_point(size=90, filled=True).encode(
            x=x, y=y, color=colour, tooltip=["arm", "learning", "forgetting", "probability"]
        ),
    ).properties(
        title=alt.TitleParams(
            text="Learning against forgetting",
            subtitle=["down and right is better", "bars are 95% intervals, paired item by item"],
        ),
        width="container",
    )


def _row(change: Change, colours: Mapping[str, str]) -> dict[str, Any]:
    flips = "–" if change.lost is None else f"{change.gained} gained, {change.lost} lost"
    return {
        "model": change.model,
        "colour": colours[change.model],
        "side": "learned" if change.side == "target" else "forgot",
        "metric": change.metric,
        "base": number(change.base_value),
        "value": number(change.value),
        "change": number(change.change),
        "interval": change.reason or interval(change.low, change.high),
        "p": number(change.p, 2),
        "flips": flips,
        "n": change.n,
    }


def _place(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "model": row["arm"],
        "learned": number(row["learning"]),
        "forgot": number(row["forgetting"]),
        "kept": "yes" if row["on_frontier"] else "no",
        "probability": number(row["probability"], 2),
    }


def _facts(task: Mapping[str, Any]) -> dict[str, Any]:
    parts = task["parts"]
    return {
        "task": task["task"],
        "documents": sum(part["documents"] for part in parts),
        "shots": ", ".join(sorted({str(part["num_fewshot"]) for part in parts})),
        "data": ", ".join(sorted({"/".join(filter(None, part["data"])) for part in parts})[:3]),
        "lm_eval": task["lm_eval"],
        "notes": "; ".join(task["notes"]),
    }


def _notes(changes: Sequence[Change]) -> list[tuple[str, str]]:
    metrics = dict.fromkeys(change.metric for change in changes)
    found = {metric: metric_note(metric) for metric in metrics}
    return [(sentence(metric_words(name)), note) for name, note in found.items() if note]
