"""Studies side by side: their frontiers over each other, tables, and how their settings differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paretune.report import tables
from paretune.report.answer import answer
from paretune.report.chart_parts import (
    axis_scale,
    chart_over,
    layered,
    shaded,
    tips,
    with_interval,
)
from paretune.report.figures import file_name, specifications
from paretune.report.findings import Findings
from paretune.report.layout import axis_range
from paretune.report.page import render_page
from paretune.report.style import OTHER, SHAPES, STUDIES, interval, number, tokens
from paretune.report.words import metric_words, unit_words

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

# Settings that say where files lie or how often to save, not what was asked
ASIDE = ("name", "about", "paretune", "checkpoints")
LONGEST = 120  # letters of a setting's value in the table


@dataclass(frozen=True)
class Studied:
    """A study under the name that it has on the page; no two have the same."""

    name: str
    findings: Findings


def compare_page(studies: Sequence[Studied]) -> str:
    """One self-contained page about two or more studies.

    Frontiers are drawn only for metrics that were scored in every study with the same unit; where
    there are none, the page says so and the tables remain.
    """
    learning, forgetting = shared_metrics(studies)
    charts = {
        f"frontier-{file_name(metric)}": overlay(studies, str(learning), metric)
        for metric in (forgetting if learning else [])
    }
    drawn = specifications({name: chart for name, chart in charts.items() if chart is not None})
    names = " and ".join(one.name for one in studies)
    return render_page(
        "compare.html",
        drawn,
        name=f"Comparison of {names}",
        studies=[
            {
                "id": one.name,
                "name": one.name,
                "colour": colour(index),
                "shape": index,
                "about": one.findings.record.config.about,
                "headline": answer(one.findings).headline,
                "facts": answer(one.findings).facts,
            }
            for index, one in enumerate(studies)
        ],
        learning=metric_words(learning) if learning else None,
        figures=list(drawn),
        summary=[_summary(one, colour(index)) for index, one in enumerate(studies)],
        matched=[{"study": one.name, **row} for one in studies for row in _against_full(one)],
        units=_units(studies),
        differences=differences(studies),
    )


def shared_metrics(studies: Sequence[Studied]) -> tuple[str | None, list[str]]:
    """The learning metric and the forgetting metrics that all studies have, in the same units."""

    def units(one: Studied) -> dict[str, str]:
        rows = one.findings.results.drop_duplicates("metric")
        return dict(zip(rows["metric"].astype(str), rows["unit"].astype(str), strict=True))

    first = studies[0].findings
    known = [units(one) for one in studies]

    def shared(metric: str) -> bool:
        return all(metric in have and have[metric] == known[0].get(metric) for have in known)

    same = all(one.findings.learning == first.learning for one in studies)
    learning = first.learning if same and shared(first.learning) else None
    return learning, [
        metric
        for metric in first.points
        if shared(metric) and all(metric in one.findings.points for one in studies)
    ]


def overlay(studies: Sequence[Studied], learning: str, metric: str) -> alt.LayerChart | None:
    """Learning against forgetting of all studies: points pale, each study's frontier joined."""
    import altair as alt
    import pandas as pd

    parts = [_points(one, metric) for one in studies if not one.findings.frontiers[metric].empty]
    if not parts:
        return None
    rows = pd.concat(parts, ignore_index=True)
    kept = rows[rows["on_frontier"]]
    across = axis_range(rows["learning"], keep=kept["learning"])
    up = axis_range(rows["forgetting"], keep=kept["forgetting"], below=0.1)
    unit = studies[0].findings.unit
    titles = [f"learned ({unit_words(unit(learning))})", f"forgot ({unit_words(unit(metric))})"]
    ticks = alt.Axis(tickCount=8)
    x = alt.X("learning:Q", title=titles[0], scale=axis_scale(across), axis=ticks)
    y = alt.Y("forgetting:Q", title=titles[1], scale=axis_scale(up))
    names = [one.name for one in studies]
    colours = alt.Scale(domain=names, range=[colour(i) for i in range(len(names))])
    shapes = alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in range(len(names))])
    study = alt.Color("study:N", title="study", scale=colours)
    chart, _ = chart_over(studies[0].findings, rows)
    shown = tips(study="study", arm="name", budget="budget", learned="learned", forgot="forgot")
    start = kept.drop_duplicates("study").assign(learning=0.0, forgetting=0.0)
    edge = pd.concat([start, kept])[["study", "series", "lead", "learning", "forgetting"]]
    base = alt.Chart(pd.DataFrame({"learning": [0], "forgetting": [0], "text": ["base"]}))
    bars = shaded(0.9, 0.0)
    return layered(
        f"Frontiers: {metric_words(metric)}",
        [
            f"learned: {metric_words(learning)}; forgot: {metric_words(metric)}",
            "each study against its own base; down and right is better; lines and bold points: "
            "frontiers; bars: 95% intervals",
        ],
        alt.Chart(edge)
        .mark_line(strokeWidth=2)
        .encode(x=x, y=y, order="learning:Q", color=study, detail="study:N", **shaded(0.9, 0.9)),
        chart.mark_rule(strokeWidth=1.1).encode(
            x=alt.X("learning_low:Q", title=titles[0], scale=axis_scale(across), axis=ticks),
            x2="learning_high:Q",
            y=y,
            color=study,
            **bars,
        ),
        chart.mark_rule(strokeWidth=1.1).encode(
            x=x,
            y=alt.Y("forgetting_low:Q", title=titles[1], scale=axis_scale(up)),
            y2="forgetting_high:Q",
            color=study,
            **bars,
        ),
        chart.mark_point(filled=True, opacity=1).encode(
            x=x,
            y=y,
            color=study,
            shape=alt.Shape("study:N", title="study", scale=shapes),
            size=alt.SizeValue(28, condition={"test": "datum.on_frontier", "value": 75}),
            tooltip=shown,
            **shaded(1.0, 0.3, fill=True),
        ),
        base.mark_point(shape="cross", size=90, filled=True, color=OTHER).encode(x=x, y=y),
        base.mark_text(align="center", dy=16, fontSize=12, color=OTHER).encode(
            x=x, y=y, text="text:N"
        ),
    )


def differences(studies: Sequence[Studied]) -> list[tuple[str, list[str]]]:
    """Settings in which the studies differ, and each study's value; – where it has none."""
    settings = [dict(_flat(one.findings.record.config.model_dump(mode="json"))) for one in studies]
    settings = [
        values | {"arms": _methods(one.findings)}
        for values, one in zip(settings, studies, strict=True)
    ]
    names = list(dict.fromkeys(name for values in settings for name in values))
    rows = []
    for name in names:
        shown = [values.get(name, "–") for values in settings]
        if len(set(shown)) > 1 and name.partition(".")[0] not in ASIDE:
            rows.append((name, shown))
    return rows


def colour(index: int) -> str:
    """The colour of a study by its place."""
    return STUDIES[index % len(STUDIES)]


def _points(one: Studied, metric: str) -> pd.DataFrame:
    """A study's points with names and words; its series is the study itself."""
    rows = one.findings.frontiers[metric].copy()
    rows["study"] = rows["series"] = one.name
    rows["lead"] = rows["on_frontier"]
    rows["name"] = [one.findings.names[arm] for arm in rows["arm"]]
    rows["budget"] = [tokens(int(count)) for count in rows["tokens"]]
    rows["learned"] = with_interval(rows, "learning", "learning_low", "learning_high")
    rows["forgot"] = with_interval(rows, "forgetting", "forgetting_low", "forgetting_high")
    return rows


def _summary(one: Studied, shade: str) -> dict[str, Any]:
    findings, config = one.findings, one.findings.record.config
    frame = findings.frontiers[findings.main]
    row: dict[str, Any] = {
        "id": one.name,
        "colour": shade,
        "base": config.base.name,
        "regime": config.regime,
        "arms": len(findings.record.arms),
        "budget": tokens(max(findings.record.budgets, default=0)),
        "points": len(frame),
        "kept": int(frame["on_frontier"].sum()) if len(frame) else 0,
        "best": "–",
        "learned": "–",
        "forgot": "–",
        "sort": "",
    }
    if len(frame):
        most = frame.sort_values("learning", kind="stable").iloc[-1]
        row |= {
            "best": f"{findings.names[most['arm']]}, {tokens(int(most['tokens']))}",
            "sort": float(most["learning"]),
        }
        for key, axis, metric in (
            ("learned", "learning", findings.learning),
            ("forgot", "forgetting", findings.main),
        ):
            ends = interval(most[f"{axis}_low"], most[f"{axis}_high"], 3)
            unit = unit_words(findings.unit(metric))
            row[key] = f"{number(most[axis], 3)} ({ends}) {unit}"
    return row


def _against_full(one: Studied) -> list[dict[str, str]]:
    """Matched pairs of full finetuning and LoRA; all pairs where the study has no full arm."""
    rows = tables.matched_rows(one.findings)
    return [row for row in rows if row["a"] == "full"] or rows


def _units(studies: Sequence[Studied]) -> list[tuple[str, str]]:
    """What each study's columns of learning and forgetting are in."""
    return [
        (
            one.name,
            f"learned: {one.findings.words(one.findings.learning)}; "
            f"forgot: {one.findings.words(one.findings.main)} "
            f"({unit_words(one.findings.unit(one.findings.main))})",
        )
        for one in studies
    ]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a configuration, the arms' apart."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            if path or key != "arms":
                yield from _flat(part, f"{path}.{key}" if path else str(key))
    elif path and value is not None:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield path, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _methods(findings: Findings) -> str:
    """The methods of a study, each with its learning rates: ``full 1e-4, 1e-3``."""
    rates: dict[str, list[str]] = {}
    for one in findings.series:
        rates.setdefault(one.group, []).append(one.short.removeprefix("lr "))
    return "; ".join(f"{group}: {', '.join(values)}" for group, values in rates.items())
