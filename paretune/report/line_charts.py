"""Figures of lines: changes over tokens and over learning rates, and the training loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from paretune.analyse.record import BASE
from paretune.report.chart_parts import (
    TOKENS_LABEL,
    arm_columns,
    axis_scale,
    chart_over,
    cut_note,
    end_labels,
    layered,
    shaded,
    tips,
    token_axis,
    with_interval,
)
from paretune.report.findings import Findings
from paretune.report.layout import Range, axis_range
from paretune.report.series import ALL_BOLD
from paretune.report.style import number, tokens
from paretune.report.words import unit_words

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

LOSS_BINS = 80  # points of a loss curve: more would not show at this width


def over_tokens(findings: Findings, metric: str) -> alt.LayerChart | None:
    """The change of a metric from the base against training tokens, one line a series."""
    import altair as alt

    rows = _changes(findings, metric)
    if rows is None:
        return None
    noun, _ = _verbs(rows)
    scale, axis = token_axis(sorted({int(count) for count in rows["tokens"]}))
    x = alt.X("tokens:Q", title="training tokens", scale=scale, axis=axis)
    height = axis_range(rows["change"], keep=rows.loc[rows["lead"], "change"])
    means = _means(rows, ["series", "group", "rate", "lead", "tokens"])
    ends = means.sort_values("tokens", kind="stable").groupby("series", sort=False).tail(1)
    parts = _lines_and_points(findings, rows, means, x, "series:N", height, metric)
    up = _up(findings, rows, metric)
    parts.append(end_labels(findings, ends, x, "change", height, up, parts[0].encoding.color))
    return layered(
        f"{noun} over tokens: {findings.words(metric)}",
        [
            "change from the base, paired by item; lines: mean over seeds; bars: 95% intervals",
            _emphasis(findings),
            _beyond(rows, height),
        ],
        *parts,
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
    noun, _ = _verbs(rows)
    axis = alt.Axis(values=rates, labelExpr="format(datum.value, '~g')", labelOverlap=True)
    padded = [rates[0] / 1.25, rates[-1] * 1.25]
    scale = alt.Scale(type="log", domain=padded, nice=False)
    x = alt.X("learning_rate:Q", title="learning rate", scale=scale, axis=axis)
    height = axis_range(rows["change"], keep=rows.loc[rows["lead"], "change"])
    rows = rows.assign(lead=True)  # a line is a method here, and all methods count alike
    means = _means(rows, ["sweep", "group", "learning_rate"])
    return layered(
        f"{noun} over learning rates: {findings.words(metric)}",
        [
            f"at {tokens(last)} tokens; lines: mean over seeds; bars: 95% intervals",
            _beyond(rows, height),
        ],
        *_lines_and_points(findings, rows, means, x, "sweep:N", height, metric),
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
    rows = pd.concat(parts, ignore_index=True).merge(
        arm_columns(findings).drop(columns="sweep"), on="arm"
    )
    rows["loss"] = rows["loss"].round(4)
    rows["tokens"] = rows["tokens"].round().astype(int)
    height = axis_range(rows["loss"], keep=rows.loc[rows["lead"], "loss"], zero=False)
    chart, encode = chart_over(findings, rows)
    last = float(rows["tokens"].max())
    ticks = alt.Axis(labelExpr=TOKENS_LABEL, tickCount=8)
    room = alt.Scale(domain=[0, 1.14 * last], nice=False)
    x = alt.X("tokens:Q", title="training tokens", axis=ticks, scale=room)
    y = alt.Y("loss:Q", title="nats per token", scale=axis_scale(height))
    ends = rows.groupby("arm", sort=False).tail(1).groupby("series", sort=False).head(1)
    shown = [alt.Tooltip("name:N", title="arm"), alt.Tooltip("loss:Q", format=".4")]
    shown.append(alt.Tooltip("tokens:Q", format=".3~s"))
    return layered(
        "Training loss",
        [
            f"mean over steps in at most {LOSS_BINS} bins",
            _emphasis(findings),
            _beyond(rows, height),
        ],
        chart.mark_line().encode(
            x=x,
            y=y,
            color=encode["color"],
            detail=["arm:N", "leg:N"],
            strokeWidth=_stroke(),
            tooltip=shown,
            **shaded(0.95, 0.3),
        ),
        end_labels(findings, ends, x, "loss", height, "nats per token", encode["color"]),
    )


def _lines_and_points(
    findings: Findings,
    rows: pd.DataFrame,
    means: pd.DataFrame,
    x: Any,
    detail: str,
    height: Range,
    metric: str,
) -> list[alt.Chart]:
    import altair as alt

    rows = rows.copy()
    up, scale = _up(findings, rows, metric), axis_scale(height)
    y = alt.Y("change:Q", title=up, scale=scale)
    rows["shown"] = with_interval(rows, "change", "change_low", "change_high")
    rows["budget"] = [tokens(int(count)) for count in rows["tokens"]]
    rows["score"] = [number(value) for value in rows["value"]]
    chart, encode = chart_over(findings, rows)
    shown = tips(arm="name", budget="budget", change="shown", score="score", items="n")
    bars = rows.dropna(subset=["change_low"])
    colour = encode["color"]
    # A line over learning rates belongs to no one series, so no choice fades it
    line = (
        {"strokeOpacity": alt.value(0.55), "strokeWidth": alt.value(1.6)}
        if detail == "sweep:N"
        else shaded(0.9, 0.3) | {"strokeWidth": _stroke()}
    )
    layers = [alt.Chart(means).mark_line().encode(x=x, y=y, color=colour, detail=detail, **line)]
    several = means[means["low"] < means["high"]] if detail == "series:N" else means.iloc[:0]
    if len(several):
        layers.append(
            alt.Chart(several)
            .mark_area(opacity=1)
            .encode(
                x=x,
                y=alt.Y("low:Q", title=up, scale=scale),
                y2="high:Q",
                color=colour,
                detail=detail,
                **shaded(0.18, 0.06, fill=True),
            )
        )
    if len(bars):
        layers.append(
            alt.Chart(bars)
            .mark_rule(strokeWidth=1.2)
            .encode(
                x=x,
                y=alt.Y("change_low:Q", title=up, scale=scale),
                y2="change_high:Q",
                color=colour,
                **shaded(0.8, 0.0),
            )
        )
    layers.append(
        chart.mark_point(size=42, filled=True, opacity=1).encode(
            x=x,
            y=y,
            color=colour,
            shape=encode["shape"],
            tooltip=shown,
            **shaded(1.0, 0.4, fill=True),
        )
    )
    return layers


def _stroke() -> Any:
    import altair as alt

    return alt.StrokeWidthValue(1, condition=[{"test": "datum.lead", "value": 2}])


def _emphasis(findings: Findings) -> str:
    if len(findings.series) <= ALL_BOLD:
        return ""
    return "bold: each method at the rate with which it learned most; thin: its other rates"


def _beyond(rows: pd.DataFrame, height: Range) -> str:
    """What lies beyond the axis, in words."""
    values = rows["loss" if "loss" in rows else "change"]
    far = rows.iloc[height.outside(values)]
    if far.empty:
        return ""
    ends = values.loc[far.index]
    most = f"{number(float(ends.min()), 3)} to {number(float(ends.max()), 3)}"
    return cut_note(len(far), list(far["name"]), most)


def _changes(findings: Findings, metric: str) -> pd.DataFrame | None:
    """Rows of the arms whose change on a metric is defined; None where there are none."""
    rows = findings.results
    rows = rows[(rows["metric"] == metric) & (rows["arm"] != BASE)].dropna(subset=["change"])
    if rows.empty:
        return None
    columns = ["arm", "tokens", "learning_rate", "side", "value", "change", "change_low",
               "change_high", "n"]  # fmt: skip
    return rows[columns].merge(arm_columns(findings), on="arm")


def _means(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Mean, smallest and largest change over the arms of each combination of ``keys``."""
    named = {"change": ("change", "mean"), "low": ("change", "min"), "high": ("change", "max")}
    means: pd.DataFrame = rows.groupby(keys, sort=True, as_index=False).agg(**named)
    return means.sort_values(keys, kind="stable", ignore_index=True)


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


def _up(findings: Findings, rows: pd.DataFrame, metric: str) -> str:
    return f"{_verbs(rows)[1]} ({unit_words(findings.unit(metric))})"


def _verbs(rows: pd.DataFrame) -> tuple[str, str]:
    """Noun and verb for the change of a metric, by its side."""
    return ("Learning", "learned") if rows["side"].iloc[0] == "target" else ("Forgetting", "forgot")
