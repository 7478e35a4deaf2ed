"""The figures of a study as altair charts: one specification gives interactive, PNG and SVG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from paretune.analyse.record import BASE
from paretune.report.chart_parts import (
    TOKENS_LABEL,
    arm_columns,
    chart_over,
    faded,
    layered,
    tips,
    token_axis,
    with_interval,
)
from paretune.report.findings import Findings
from paretune.report.style import OTHER, number, tokens

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

LOSS_BINS = 80  # points of a loss curve: more would not show at this width


def figures(findings: Findings) -> dict[str, alt.LayerChart]:
    """Every figure that the study has data for, by file name, in the order of the page."""
    charts: dict[str, alt.LayerChart | None] = {
        frontier_name(findings, metric): frontier(findings, metric) for metric in findings.points
    }
    charts["learning"] = over_tokens(findings, findings.learning)
    charts["forgetting"] = over_tokens(findings, findings.main)
    charts["rate-learning"] = over_rates(findings, findings.learning)
    charts["rate-forgetting"] = over_rates(findings, findings.main)
    charts["loss"] = loss(findings)
    shown = {findings.learning, findings.main}
    for metric in (m for m in findings.record.metrics() if m not in shown):
        charts[f"change-{_file(metric)}"] = over_tokens(findings, metric)
    return {name: chart for name, chart in charts.items() if chart is not None}


def specifications(charts: dict[str, alt.LayerChart]) -> dict[str, dict[str, Any]]:
    """The charts' Vega-Lite specifications, their data inside, however many rows those are."""
    import altair as alt

    with alt.data_transformers.enable("default", max_rows=None):
        return {name: chart.to_dict(validate=False) for name, chart in charts.items()}


def frontier_name(findings: Findings, metric: str) -> str:
    """File name of the frontier drawn with one forgetting metric; the main one is ``frontier``."""
    return "frontier" if metric == findings.main else f"frontier-{_file(metric)}"


def frontier(findings: Findings, metric: str) -> alt.LayerChart | None:
    """Learning against forgetting: arms joined over budgets from the base, the frontier ringed."""
    import altair as alt
    import pandas as pd

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
    start = arm_columns(findings)
    start = start[start["arm"].isin(set(rows["arm"]))].assign(tokens=0, learning=0, forgetting=0)
    paths = pd.concat([start, rows[start.columns]], ignore_index=True)
    edge = rows[rows["on_frontier"]][["learning", "forgetting"]]
    edge = pd.concat([pd.DataFrame({"learning": [0.0], "forgetting": [0.0]}), edge])
    across = f"learned: {findings.learning} ({findings.unit(findings.learning)})"
    room = alt.Scale(padding=24, nice=False, zero=True)
    ticks = alt.Axis(tickCount=8)
    x = alt.X("learning:Q", title=across, scale=room, axis=ticks)
    up = f"forgot: {metric} ({findings.unit(metric)})"
    y = alt.Y("forgetting:Q", title=up, scale=room)
    chart, encode = chart_over(findings, rows)
    shown = tips(arm="name", budget="budget", learned="learned", forgot="forgot")
    shown += tips(**{"on the frontier": "frontier", "scored on": "n"})
    shape, opacity = encode["shape"], encode["opacity"]
    base = alt.Chart(pd.DataFrame({"learning": [0], "forgetting": [0], "text": ["base"]}))
    return layered(
        f"Learning against forgetting: {metric}",
        "down and right is better; ringed and dashed: the frontier; bars: 95% intervals",
        alt.Chart(edge)
        .mark_line(color=OTHER, strokeDash=[3, 3], strokeWidth=1.5)
        .encode(x=x, y=y, order="learning:Q"),
        alt.Chart(paths)
        .mark_line(strokeWidth=1.5)
        .encode(
            x=x,
            y=y,
            order="tokens:Q",
            detail="arm:N",
            color=encode["color"],
            opacity=faded(0.55),
        ),
        chart.mark_rule(strokeWidth=1.2).encode(
            x=alt.X("learning_low:Q", title=across, scale=room, axis=ticks),
            x2="learning_high:Q",
            y=y,
            color=encode["color"],
            opacity=opacity,
        ),
        chart.mark_rule(strokeWidth=1.2).encode(
            x=x,
            y=alt.Y("forgetting_low:Q", title=up, scale=room),
            y2="forgetting_high:Q",
            color=encode["color"],
            opacity=opacity,
        ),
        chart.transform_filter("datum.on_frontier")
        .mark_point(size=200, strokeWidth=1.3, color=OTHER, filled=False)
        .encode(x=x, y=y, opacity=opacity),
        chart.mark_point(size=75, filled=True).encode(
            x=x, y=y, color=encode["color"], shape=shape, opacity=opacity, tooltip=shown
        ),
        base.mark_point(shape="cross", size=90, filled=True, color=OTHER).encode(x=x, y=y),
        base.mark_text(align="center", dy=16, fontSize=12, color=OTHER).encode(
            x=x, y=y, text="text:N"
        ),
    )


def over_tokens(findings: Findings, metric: str) -> alt.LayerChart | None:
    """The change of a metric from the base against training tokens, one line an arm."""
    import altair as alt

    rows = _changes(findings, metric)
    if rows is None:
        return None
    noun, word = _words(rows)
    scale, axis = token_axis(sorted({int(count) for count in rows["tokens"]}))
    x = alt.X("tokens:Q", title="training tokens", scale=scale, axis=axis)
    up = f"{word}: {metric} ({findings.unit(metric)})"
    return layered(
        f"{noun} against tokens: {metric}",
        "paired change from the base; bars: 95% intervals",
        *_lines_and_points(findings, rows, x, up, "arm:N"),
    )


def over_rates(findings: Findings, metric: str) -> alt.LayerChart | None:
    """The change of a metric at the last budget against the learning rate, a line per method."""
    import altair as alt

    rows = _changes(findings, metric)
    if rows is None:
        return None
    last = int(rows["tokens"].max())
    rows = rows[rows["tokens"] == last]
    rates = sorted({float(rate) for rate in rows["learning_rate"]})
    noun, word = _words(rows)
    axis = alt.Axis(values=rates, labelExpr="format(datum.value, '~g')", labelOverlap=True)
    padded = [rates[0] / 1.25, rates[-1] * 1.25]
    scale = alt.Scale(type="log", domain=padded, nice=False)
    x = alt.X("learning_rate:Q", title="learning rate", scale=scale, axis=axis)
    up = f"{word}: {metric} ({findings.unit(metric)})"
    return layered(
        f"{noun} against learning rate: {metric}",
        f"at {tokens(last)} tokens; lines: mean over seeds; bars: 95% intervals",
        *_lines_and_points(findings, rows, x, up, "series:N"),
    )


def loss(findings: Findings) -> alt.LayerChart | None:
    """Training loss against tokens, averaged in at most 80 bins an arm."""
    import altair as alt
    import pandas as pd

    parts = []
    for arm in findings.record.arms:
        curve = _curve(findings, arm)
        if curve is not None:
            parts.append(curve.assign(arm=arm))
    if not parts:
        return None
    rows = pd.concat(parts, ignore_index=True).merge(arm_columns(findings), on="arm")
    rows["at"] = [f"{tokens(int(count))} tokens" for count in rows["tokens"]]
    rows["shown"] = [number(value) for value in rows["loss"]]
    chart, encode = chart_over(findings, rows)
    x = alt.X(
        "tokens:Q", title="training tokens", axis=alt.Axis(labelExpr=TOKENS_LABEL, tickCount=8)
    )
    y = alt.Y("loss:Q", title="training loss (nats/token)", scale=alt.Scale(zero=False))
    shown = tips(arm="name", loss="shown", at="at")
    return layered(
        "Training loss",
        f"mean over steps in at most {LOSS_BINS} bins",
        chart.mark_line(strokeWidth=1.4, clip=True).encode(
            x=x,
            y=y,
            color=encode["color"],
            strokeDash=encode["dash"],
            detail=["arm:N", "leg:N"],
            opacity=encode["opacity"],
            tooltip=shown,
        ),
    )


def _lines_and_points(
    findings: Findings, rows: pd.DataFrame, x: Any, up: str, detail: str
) -> list[alt.Chart]:
    import altair as alt

    rows = rows.copy()
    y = alt.Y("change:Q", title=up)
    rows["shown"] = with_interval(rows, "change", "change_low", "change_high")
    rows["budget"] = [tokens(int(count)) for count in rows["tokens"]]
    rows["score"] = [number(value) for value in rows["value"]]
    chart, encode = chart_over(findings, rows)
    shown = tips(arm="name", budget="budget", change="shown", score="score", items="n")
    bars = rows.dropna(subset=["change_low"])
    mean = alt.Y("mean(change):Q", title=up) if detail == "series:N" else y
    dash = {} if detail == "series:N" else {"strokeDash": encode["dash"]}
    opacity = alt.value(0.55) if detail == "series:N" else faded(0.8)
    layers = [
        chart.mark_line(strokeWidth=1.6).encode(
            x=x, y=mean, color=encode["color"], detail=detail, opacity=opacity, **dash
        )
    ]
    if len(bars):
        layers.append(
            alt.Chart(bars)
            .mark_rule(strokeWidth=1.2)
            .encode(
                x=x,
                y=alt.Y("change_low:Q", title=up),
                y2="change_high:Q",
                color=encode["color"],
                opacity=encode["opacity"],
            )
        )
    layers.append(
        chart.mark_point(size=60, filled=True).encode(
            x=x,
            y=y,
            color=encode["color"],
            shape=encode["shape"],
            opacity=encode["opacity"],
            tooltip=shown,
        )
    )
    return layers


def _changes(findings: Findings, metric: str) -> pd.DataFrame | None:
    """Rows of the arms whose change on a metric is defined; None where there are none."""
    rows = findings.results
    rows = rows[(rows["metric"] == metric) & (rows["arm"] != BASE)].dropna(subset=["change"])
    if rows.empty:
        return None
    columns = ["arm", "tokens", "learning_rate", "side", "value", "change", "change_low",
               "change_high", "n"]  # fmt: skip
    return rows[columns].merge(arm_columns(findings), on="arm")


def _curve(findings: Findings, arm: str) -> pd.DataFrame | None:
    """An arm's loss in bins, each leg of its run apart; None where nothing was recorded."""
    import pandas as pd

    try:
        curve = findings.record.curve(arm)
    except (OSError, KeyError):
        return None
    curve = curve[[math.isfinite(x) for x in pd.to_numeric(curve["loss"], errors="coerce")]]
    if curve.empty:
        return None
    leg = curve["leg"].astype(str) if "leg" in curve else pd.Series("", index=curve.index)
    per_bin = max(1, math.ceil(len(curve) / LOSS_BINS))
    place = leg.groupby(leg, sort=False).cumcount() // per_bin
    frame = pd.DataFrame(
        {"leg": leg, "bin": place, "tokens": curve["tokens"], "loss": curve["loss"]}
    )
    means = frame.astype({"loss": float}).groupby(["leg", "bin"], sort=False, as_index=False)
    return means.agg({"tokens": "mean", "loss": "mean"}).drop(columns="bin")


def _words(rows: pd.DataFrame) -> tuple[str, str]:
    """Noun and verb for the change of a metric, by its side."""
    return ("Learning", "learned") if rows["side"].iloc[0] == "target" else ("Forgetting", "forgot")


def _file(metric: str) -> str:
    return metric.replace("/", "-")
