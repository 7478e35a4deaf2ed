"""The main figure: learning against forgetting, every arm at every budget, the frontier ringed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from paretune.report.chart_parts import (
    arm_columns,
    axis_scale,
    chart_over,
    cut_note,
    labels,
    layered,
    shaded,
    tips,
    with_interval,
)
from paretune.report.findings import Findings
from paretune.report.layout import NARROW, WIDE, Range, axis_range, labels_that_fit
from paretune.report.style import OTHER, number, tokens
from paretune.report.words import unit_words

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

LABELS = 8  # of frontier points
MANY = 30  # beyond so many points, only those of the frontier show their intervals unasked


def frontier(findings: Findings, metric: str) -> alt.LayerChart | None:
    """Learning against forgetting: arms joined over budgets from the base, the frontier ringed."""
    import altair as alt
    import pandas as pd

    rows = _points(findings, metric)
    if rows is None:
        return None
    columns = arm_columns(findings)
    start = columns[columns["arm"].isin(set(rows["arm"]))]
    start = start.assign(tokens=0, learning=0.0, forgetting=0.0)
    paths = pd.concat([start, rows[start.columns]], ignore_index=True)
    edge = rows.loc[rows["on_frontier"], ["learning", "forgetting"]]
    edge = pd.concat([pd.DataFrame({"learning": [0.0], "forgetting": [0.0]}), edge])
    across, up = _ranges(rows)
    titles = [f"{verb} ({unit_words(findings.unit(name))})"
              for verb, name in (("learned", findings.learning), ("forgot", metric))]  # fmt: skip
    wide, high = axis_scale(across), axis_scale(up)
    ticks = alt.Axis(tickCount=8)
    x = alt.X("learning:Q", title=titles[0], scale=wide, axis=ticks)
    y = alt.Y("forgetting:Q", title=titles[1], scale=high)
    chart, encode = chart_over(findings, rows)
    shown = tips(arm="name", budget="budget", learned="learned", forgot="forgot")
    shown += tips(**{"on the frontier": "frontier", "scored on": "n"})
    colour = encode["color"]
    bars = shaded(0.9, 0.0, "datum.bar")
    base = alt.Chart(pd.DataFrame({"learning": [0], "forgetting": [0], "text": ["base"]}))
    layers = [
        alt.Chart(edge)
        .mark_line(color=OTHER, strokeDash=[3, 3], strokeWidth=1.5)
        .encode(x=x, y=y, order="learning:Q"),
        alt.Chart(paths)
        .mark_line(strokeWidth=1.4)
        .encode(
            x=x, y=y, order="tokens:Q", detail="arm:N", color=colour, **shaded(0.6, 0.22)
        ),
        chart.mark_rule(strokeWidth=1.1).encode(
            x=alt.X("learning_low:Q", title=titles[0], scale=wide, axis=ticks),
            x2="learning_high:Q",
            y=y,
            color=colour,
            **bars,
        ),
        chart.mark_rule(strokeWidth=1.1).encode(
            x=x,
            y=alt.Y("forgetting_low:Q", title=titles[1], scale=high),
            y2="forgetting_high:Q",
            color=colour,
            **bars,
        ),
        chart.transform_filter("datum.on_frontier")
        .mark_point(size=190, strokeWidth=1.3, color=OTHER, filled=False, opacity=1)
        .encode(x=x, y=y, **shaded(1.0, 1.0)),
        labels(
            rows[rows["on_frontier"]], x, y, "width > 520 ? datum.wide : datum.narrow",
            colour, dy=9,
        ),
        base.mark_point(shape="cross", size=90, filled=True, color=OTHER).encode(x=x, y=y),
        base.mark_text(align="center", dy=16, fontSize=12, color=OTHER).encode(
            x=x, y=y, text="text:N"
        ),
        chart.mark_point(size=65, filled=True, opacity=1).encode(
            x=x,
            y=y,
            color=colour,
            shape=encode["shape"],
            tooltip=shown,
            **shaded(1.0, 0.55, "datum.lead || datum.on_frontier", fill=True),
        ),
    ]  # fmt: skip
    words = findings.words
    return layered(
        f"Learning against forgetting: {words(metric)}",
        [
            f"learned: {words(findings.learning)}; forgot: {words(metric)}",
            "down and right is better; ringed and dashed: the frontier; bars: 95% intervals"
            + (" of the frontier and of what is chosen" if len(rows) > MANY else ""),
            _left_out(rows, across, up),
        ],
        *layers,
    )


def _points(findings: Findings, metric: str) -> pd.DataFrame | None:
    """The frontier's table with names, words for tooltips and labels; None where it is empty."""
    table = findings.frontiers.get(metric)
    if table is None or table.empty:
        return None
    rows = table.merge(arm_columns(findings), on="arm")
    rows["budget"] = [tokens(int(count)) for count in rows["tokens"]]
    rows["learned"] = with_interval(rows, "learning", "learning_low", "learning_high")
    rows["forgot"] = with_interval(rows, "forgetting", "forgetting_low", "forgetting_high")
    rows["frontier"] = [
        ("yes" if on else "no") + ("" if math.isnan(share) else f", in {share:.0%} of resamples")
        for on, share in zip(rows["on_frontier"], rows["probability"], strict=True)
    ]
    rows["n"] = [
        f"{a:.0f} and {b:.0f} items"
        for a, b in zip(rows["n_learning"], rows["n_forgetting"], strict=True)
    ]
    rows["bar"] = rows["on_frontier"] | (len(rows) <= MANY)
    names = {one.id: one.name.replace(" lr ", " ") for one in findings.series}
    rows["text"] = [f"{names[key]}, {budget}" for key, budget in rows[["series", "budget"]].values]
    return _with_fits(rows)


def _with_fits(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns ``narrow`` and ``wide``: whether the label of a frontier point fits such a chart."""
    across, up = _ranges(rows)
    places = [
        ((x - across.low) / (across.high - across.low), (y - up.low) / (up.high - up.low))
        for x, y in rows[["learning", "forgetting"]].values
    ]
    # Most learning first, and a series' largest budget before its smaller ones
    kept = rows[rows["on_frontier"]].sort_values("learning", ascending=False, kind="stable")
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for index, series in kept["series"].items():
        (second if series in seen else first).append(int(index))  # type: ignore[call-overload]
        seen.add(str(series))
    order = first + second
    for name, size in (("narrow", (NARROW, 300)), ("wide", (WIDE, 360))):
        fits = labels_that_fit(
            [places[i] for i in order], [str(rows["text"][i]) for i in order], places, size
        )
        chosen = set([i for i, fit in zip(order, fits, strict=True) if fit][:LABELS])
        rows[name] = [i in chosen for i in range(len(rows))]
    return rows


def _ranges(rows: pd.DataFrame) -> tuple[Range, Range]:
    """Axes with room for labels on the right, and for the base's name beneath it."""
    kept = rows[rows["on_frontier"] | rows["lead"]]
    return (
        axis_range(rows["learning"], keep=kept["learning"], above=0.28),
        axis_range(rows["forgetting"], keep=kept["forgetting"], below=0.1),
    )


def _left_out(rows: pd.DataFrame, across: Range, up: Range) -> str:
    """What lies beyond the axes, in words."""
    beyond = sorted({*across.outside(rows["learning"]), *up.outside(rows["forgetting"])})
    if not beyond:
        return ""
    far = rows.iloc[beyond]
    most = (
        f"learned {number(float(far['learning'].min()), 3)} or more, "
        f"forgot up to {number(float(far['forgetting'].max()), 3)}"
    )
    return cut_note(len(far), list(far["name"]), most)
