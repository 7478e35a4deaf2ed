"""The figures of a study as altair charts: one specification gives interactive, PNG and SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from paretune.analyse.record import BASE
from paretune.report.findings import Findings
from paretune.report.style import (
    DASHES,
    OTHER,
    SHAPES,
    group_colour,
    groups_in_order,
    interval,
    number,
    tokens,
)

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

WIDTH, HEIGHT = 620, 380
LOSS_BINS = 80  # points of a loss curve: more would not show at this width
CHOSEN = "length(selected) == 0 || indexof(selected, datum.arm) >= 0"
TOKENS_LABEL = "replace(format(datum.value, '.3~s'), 'G', 'B')"


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
    rows = table.merge(_arm_columns(findings), on="arm")
    rows["budget"] = [tokens(int(count)) for count in rows["tokens"]]
    rows["learned"] = _with_interval(rows, "learning", "learning_low", "learning_high")
    rows["forgot"] = _with_interval(rows, "forgetting", "forgetting_low", "forgetting_high")
    rows["frontier"] = [
        f"{'yes' if on else 'no'}, in {share:.0%} of resamples"
        for on, share in zip(rows["on_frontier"], rows["probability"], strict=True)
    ]
    rows["n"] = [
        f"{a:.0f} and {b:.0f} items"
        for a, b in zip(rows["n_learning"], rows["n_forgetting"], strict=True)
    ]
    start = _arm_columns(findings)
    start = start[start["arm"].isin(set(rows["arm"]))].assign(tokens=0, learning=0, forgetting=0)
    paths = pd.concat([start, rows[start.columns]], ignore_index=True)
    edge = rows[rows["on_frontier"]][["learning", "forgetting"]]
    edge = pd.concat([pd.DataFrame({"learning": [0.0], "forgetting": [0.0]}), edge])
    across = f"learned: {findings.learning} ({findings.unit(findings.learning)})"
    room = alt.Scale(padding=24, nice=False, zero=True)
    x = alt.X("learning:Q", title=across, scale=room)
    up = f"forgot: {metric} ({findings.unit(metric)})"
    y = alt.Y("forgetting:Q", title=up, scale=room)
    chart, encode = _chart(findings, rows)
    tips = _tips(arm="name", budget="budget", learned="learned", forgot="forgot")
    tips += _tips(**{"on the frontier": "frontier", "scored on": "n"})
    shape, opacity = encode["shape"], encode["opacity"]
    base = alt.Chart(alt.InlineData(values=[{"learning": 0, "forgetting": 0, "text": "base"}]))
    return _layer(
        f"Learning against forgetting: {metric}",
        "down and right is better; ringed and dashed: the frontier; bars: 95% intervals",
        alt.Chart(_data(edge))
        .mark_line(color=OTHER, strokeDash=[3, 3], strokeWidth=1.5)
        .encode(x=x, y=y, order="learning:Q"),
        alt.Chart(_data(paths))
        .mark_line(strokeWidth=1.5)
        .encode(
            x=x,
            y=y,
            order="tokens:Q",
            detail="arm:N",
            color=encode["color"],
            opacity=_opacity(0.55),
        ),
        chart.mark_rule(strokeWidth=1.2).encode(
            x=alt.X("learning_low:Q", title=across, scale=room),
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
            x=x, y=y, color=encode["color"], shape=shape, opacity=opacity, tooltip=tips
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
    scale, axis = _token_axis(sorted({int(count) for count in rows["tokens"]}))
    x = alt.X("tokens:Q", title="training tokens", scale=scale, axis=axis)
    up = f"{word}: {metric} ({findings.unit(metric)})"
    return _layer(
        f"{noun} against tokens: {metric}",
        "change from the base, paired item by item; bars: 95% intervals",
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
    return _layer(
        f"{noun} against learning rate: {metric}",
        f"at {tokens(last)} tokens; lines join the mean over seeds; bars: 95% intervals",
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
    rows = pd.concat(parts, ignore_index=True).merge(_arm_columns(findings), on="arm")
    rows["at"] = [f"{tokens(int(count))} tokens" for count in rows["tokens"]]
    rows["shown"] = [number(value) for value in rows["loss"]]
    chart, encode = _chart(findings, rows)
    x = alt.X("tokens:Q", title="training tokens", axis=alt.Axis(labelExpr=TOKENS_LABEL))
    y = alt.Y("loss:Q", title="training loss (nats/token)", scale=alt.Scale(zero=False))
    tips = _tips(arm="name", loss="shown", at="at")
    return _layer(
        "Training loss",
        f"mean over steps in at most {LOSS_BINS} bins",
        chart.mark_line(strokeWidth=1.4, clip=True).encode(
            x=x,
            y=y,
            color=encode["color"],
            strokeDash=encode["dash"],
            detail=["arm:N", "leg:N"],
            opacity=encode["opacity"],
            tooltip=tips,
        ),
    )


def _lines_and_points(
    findings: Findings, rows: pd.DataFrame, x: Any, up: str, detail: str
) -> list[alt.Chart]:
    import altair as alt

    rows = rows.copy()
    y = alt.Y("change:Q", title=up)
    rows["shown"] = _with_interval(rows, "change", "change_low", "change_high")
    rows["budget"] = [tokens(int(count)) for count in rows["tokens"]]
    rows["score"] = [number(value) for value in rows["value"]]
    chart, encode = _chart(findings, rows)
    tips = _tips(arm="name", budget="budget", change="shown", score="score", items="n")
    bars = rows.dropna(subset=["change_low"])
    mean = alt.Y("mean(change):Q", title=up) if detail == "series:N" else y
    dash = {} if detail == "series:N" else {"strokeDash": encode["dash"]}
    opacity = alt.value(0.55) if detail == "series:N" else _opacity(0.8)
    layers = [
        chart.mark_line(strokeWidth=1.6).encode(
            x=x, y=mean, color=encode["color"], detail=detail, opacity=opacity, **dash
        )
    ]
    if len(bars):
        layers.append(
            alt.Chart(_data(bars))
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
            tooltip=tips,
        )
    )
    return layers


def _chart(findings: Findings, rows: pd.DataFrame) -> tuple[alt.Chart, dict[str, Any]]:
    """A chart over ``rows`` and the encodings that all figures share."""
    import altair as alt

    groups = groups_in_order(set(findings.groups.values()))
    rates = rate_names(findings)
    colours = [group_colour(group) for group in groups]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(rates))]
    dashes = [DASHES[i % len(DASHES)] for i in range(len(rates))]
    encode = {
        "color": alt.Color(
            "group:N", title="method", scale=alt.Scale(domain=groups, range=colours)
        ),
        "shape": alt.Shape(
            "rate:N", title="learning rate", scale=alt.Scale(domain=rates, range=shapes)
        ),
        "dash": alt.StrokeDash(
            "rate:N", title="learning rate", scale=alt.Scale(domain=rates, range=dashes)
        ),
        "opacity": _opacity(1.0),
    }
    return alt.Chart(_data(rows)), encode


def rate_names(findings: Findings) -> list[str]:
    """The study's learning rates as legends show them, ascending."""
    return [
        f"{rate:g}" for rate in sorted({a.learning_rate for a in findings.record.arms.values()})
    ]


def _layer(title: str, subtitle: str, *layers: alt.Chart) -> alt.LayerChart:
    """Layers as one figure with the selection of arms: click a point, shift-click for more."""
    import altair as alt

    pick = alt.selection_point(name="pick", fields=["arm"])
    selected = alt.param(name="selected", expr="pick.arm || []")
    index = max(i for i, layer in enumerate(layers) if _has_tips(layer))
    parts = [layer.add_params(pick) if i == index else layer for i, layer in enumerate(layers)]
    return (
        alt.layer(*parts)
        .add_params(selected)
        .properties(
            width=WIDTH,
            height=HEIGHT,
            title=alt.TitleParams(title, subtitle=subtitle, anchor="start", offset=12),
        )
        .configure_view(stroke=None)
        .configure_axis(
            gridOpacity=0.5, labelFontSize=12, titleFontSize=12, titleFontWeight=500, titlePadding=8
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, symbolSize=80, symbolOpacity=1)
        .configure_title(fontSize=15, subtitleFontSize=12, subtitleColor="#666")
    )


def _has_tips(layer: alt.Chart) -> bool:
    import altair as alt

    return layer.encoding.tooltip is not alt.Undefined


def _opacity(full: float) -> Any:
    import altair as alt

    return alt.condition(CHOSEN, alt.value(full), alt.value(0.08))


def _tips(**fields: str) -> list[Any]:
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for title, name in fields.items()]


def _data(frame: pd.DataFrame) -> alt.InlineData:
    """Rows inside the specification; NaN becomes null, since JSON has no NaN."""
    import altair as alt

    return alt.InlineData(values=json.loads(frame.to_json(orient="records", double_precision=12)))


def _arm_columns(findings: Findings) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [
            (
                arm,
                findings.names[arm],
                findings.groups[arm],
                f"{config.learning_rate:g}",
                config.model_copy(update={"seed": 0, "learning_rate": 1.0}).id,
            )
            for arm, config in findings.record.arms.items()
        ],
        columns=["arm", "name", "group", "rate", "series"],
    )


def _changes(findings: Findings, metric: str) -> pd.DataFrame | None:
    """Rows of the arms whose change on a metric is defined; None where there are none."""
    rows = findings.results
    rows = rows[(rows["metric"] == metric) & (rows["arm"] != BASE)].dropna(subset=["change"])
    if rows.empty:
        return None
    columns = ["arm", "tokens", "learning_rate", "side", "value", "change", "change_low",
               "change_high", "n"]  # fmt: skip
    return rows[columns].merge(_arm_columns(findings), on="arm")


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


def _with_interval(rows: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    shown: Callable[[Any], str] = lambda row: (  # noqa: E731
        f"{number(row[0])} ({interval(row[1], row[2])})"
    )
    return [shown(row) for row in rows[[value, low, high]].to_numpy(dtype=float).tolist()]


def _token_axis(counts: list[int]) -> tuple[Any, Any]:
    import altair as alt

    spread = counts[-1] / counts[0]
    axis = alt.Axis(values=counts, labelExpr=TOKENS_LABEL, labelOverlap=True)
    if spread < 4:
        margin = 0.06 * (counts[-1] - counts[0]) or 0.2 * counts[0]
        domain = [counts[0] - margin, counts[-1] + margin]
        return alt.Scale(domain=domain, nice=False, zero=False), axis
    domain = [counts[0] / spread**0.06, counts[-1] * spread**0.06]
    return alt.Scale(type="log", domain=domain, nice=False), axis


def _words(rows: pd.DataFrame) -> tuple[str, str]:
    """Noun and verb for the change of a metric, by its side."""
    return ("Learning", "learned") if rows["side"].iloc[0] == "target" else ("Forgetting", "forgot")


def _file(metric: str) -> str:
    return metric.replace("/", "-")
