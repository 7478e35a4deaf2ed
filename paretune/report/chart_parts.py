"""What all figures share: colours and shapes of arms, the choice of arms, tooltips, axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paretune.report.findings import Findings
from paretune.report.layout import LETTER, LINE, Range, spread
from paretune.report.style import SHAPES, group_colour, groups_in_order, interval, number

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

WIDTH, HEIGHT = 620, 380
NONE_CHOSEN = "length(selected) == 0"
CHOSEN = "indexof(selected, datum.series) >= 0"
FADED = 0.08
TOKENS_LABEL = "replace(format(datum.value, '.3~s'), 'G', 'B')"
LABEL_ROOM = 0.24  # share of the x range kept free on the right for labels of lines


def chart_over(findings: Findings, rows: pd.DataFrame) -> tuple[alt.Chart, dict[str, Any]]:
    """A chart over ``rows`` and the encodings that all figures share."""
    import altair as alt

    groups = groups_in_order(set(findings.groups.values()))
    rates = rate_names(findings)
    colours = [group_colour(group) for group in groups]
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(rates))]
    encode = {
        "color": alt.Color(
            "group:N", title="method", scale=alt.Scale(domain=groups, range=colours)
        ),
        "shape": alt.Shape(
            "rate:N", title="learning rate", scale=alt.Scale(domain=rates, range=shapes)
        ),
    }
    return alt.Chart(rows), encode


def layered(title: str, subtitle: Sequence[str], *layers: alt.Chart) -> alt.LayerChart:
    """Layers as one figure with the choice of series: click a point, shift-click for more.

    ``whole`` shows all of an axis that would otherwise leave out far points.
    """
    import altair as alt

    pick = alt.selection_point(name="pick", fields=["series"])
    selected = alt.param(name="selected", expr="pick.series || []")
    whole = alt.param(name="whole", value=False)
    index = max(i for i, layer in enumerate(layers) if _has_tips(layer))
    parts = [layer.add_params(pick) if i == index else layer for i, layer in enumerate(layers)]
    return (
        alt.layer(*parts)
        .add_params(selected, whole)
        .properties(
            width=WIDTH,
            height=HEIGHT,
            title=alt.TitleParams(
                title, subtitle=[line for line in subtitle if line], anchor="start", offset=12
            ),
        )
        .configure_view(stroke=None)
        .configure_axis(
            gridOpacity=0.5, labelFontSize=12, titleFontSize=12, titleFontWeight=500, titlePadding=8
        )
        .configure_legend(labelFontSize=12, titleFontSize=12, symbolSize=80, symbolOpacity=1)
        .configure_title(fontSize=15, subtitleFontSize=12, subtitleColor="#666")
    )


def shaded(
    bold: float, thin: float, lead: str = "datum.lead", *, fill: bool = False
) -> dict[str, Any]:
    """Encoding of opacity: ``bold`` for what is chosen, or leads where nothing is; else ``thin``.

    It is the stroke's or the fill's, as SVG viewers are slow with an opacity of the whole mark.
    """
    import altair as alt

    condition = [
        {"test": f"{NONE_CHOSEN} && ({lead})", "value": bold},
        {"test": NONE_CHOSEN, "value": thin},
        {"test": CHOSEN, "value": bold},
    ]
    faded = min(FADED, thin)
    if fill:
        return {"fillOpacity": alt.FillOpacityValue(faded, condition=condition)}
    return {"strokeOpacity": alt.StrokeOpacityValue(faded, condition=condition)}


def labels(rows: pd.DataFrame, x: Any, y: Any, test: str, colour: Any, dy: int = 0) -> alt.Chart:
    """Text right of points, shown where ``test`` holds and its series is not faded."""
    import altair as alt

    shown = f"({NONE_CHOSEN} || {CHOSEN}) && ({test})"
    return (
        alt.Chart(rows)
        .mark_text(align="left", dx=8, dy=dy, fontSize=11, fontWeight=600, baseline="middle")
        .encode(
            x=x,
            y=y,
            text="text:N",
            color=colour,
            fillOpacity=alt.FillOpacityValue(0, condition=[{"test": shown, "value": 1}]),
        )
    )


def end_labels(
    findings: Findings, ends: pd.DataFrame, x: Any, column: str, axis: Range, up: str, colour: Any
) -> alt.Chart:
    """The names of the leading lines, where those end, kept apart from each other.

    ``ends`` has a row a line: series, group, lead, the x column and ``column``, its last height.
    """
    import altair as alt

    ends = ends[ends["lead"]].copy()
    ends["text"] = [line_name(findings, key) for key in ends["series"]]
    gap = 1.15 * LINE / 240 * (axis.high - axis.low)
    heights = [float(height) for height in ends[column]]
    inside = [min(max(height, axis.low), axis.high) for height in heights]
    margin = 0.02 * (axis.high - axis.low)
    ends["label_y"] = spread(inside, gap, axis.low + margin, axis.high - margin)
    y = alt.Y("label_y:Q", title=up, scale=axis_scale(axis))
    fits = f"width * {LABEL_ROOM / (1.06 + LABEL_ROOM):.3f} > 10 + {LETTER} * length(datum.text)"
    return labels(ends, x, y, fits, colour)


def line_name(findings: Findings, key: str) -> str:
    """What a line is called at its end: ``full`` or ``r16``, with the rest where that is shared."""
    series = findings.series_by_id[key]
    leads = [
        one for one in findings.series if one.group == series.group and one.id in findings.leads
    ]
    if len(leads) == 1:
        return series.group.removeprefix("lora ")
    return f"{series.group} {series.short.removeprefix('lr ')}".removeprefix("lora ")


def axis_scale(axis: Range) -> Any:
    """A linear scale over a range, or over the whole of it when the reader asks for that.

    What lies beyond is drawn at the edge. Cutting it off instead would take seconds a figure:
    every line is then clipped by itself.
    """
    import altair as alt

    if not axis.cut:
        return alt.Scale(domain=[axis.low, axis.high], nice=False, zero=False, clamp=True)
    return alt.Scale(
        domainMin=alt.ExprRef(f"whole ? {axis.whole_low!r} : {axis.low!r}"),
        domainMax=alt.ExprRef(f"whole ? {axis.whole_high!r} : {axis.high!r}"),
        nice=False,
        zero=False,
        clamp=True,
    )


def cut_note(count: int, names: Sequence[str], most: str) -> str:
    """What an axis leaves out, in words; empty where it leaves out nothing."""
    if not count:
        return ""
    shown = list(dict.fromkeys(names))
    listed = ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if shown[3:] else "")
    points = "1 far point is" if count == 1 else f"{count} far points are"
    return f"axis cut: {points} drawn at its edge ({listed}; {most})"


def tips(**fields: str) -> list[Any]:
    """Tooltip lines, TITLE=COLUMN."""
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for title, name in fields.items()]


def arm_columns(findings: Findings) -> pd.DataFrame:
    """Per arm: arm, name, group, rate, series, sweep, and whether its series leads."""
    import pandas as pd

    return pd.DataFrame(
        [
            (
                arm,
                findings.names[arm],
                series.group,
                f"{series.config.learning_rate:g}",
                series.id,
                series.sweep,
                series.id in findings.leads,
            )
            for series in findings.series
            for arm in series.arms
        ],
        columns=["arm", "name", "group", "rate", "series", "sweep", "lead"],
    )


def with_interval(rows: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    """``value (low to high)`` as text, a row each."""
    numbers = rows[[value, low, high]].to_numpy(dtype=float).tolist()
    return [f"{number(at)} ({interval(below, above)})" for at, below, above in numbers]


def token_axis(counts: list[int]) -> tuple[Any, Any]:
    """Scale and axis with a tick at each budget; logarithmic when they span a factor of 4."""
    import altair as alt

    ratio = counts[-1] / counts[0]
    axis = alt.Axis(values=counts, labelExpr=TOKENS_LABEL, labelOverlap=True)
    if ratio < 4:
        span = (counts[-1] - counts[0]) or 0.5 * counts[0]
        domain = [counts[0] - 0.06 * span, counts[-1] + LABEL_ROOM * span]
        return alt.Scale(domain=domain, nice=False, zero=False), axis
    domain = [counts[0] / ratio**0.06, counts[-1] * ratio**LABEL_ROOM]
    return alt.Scale(type="log", domain=domain, nice=False), axis


def rate_names(findings: Findings) -> list[str]:
    """The study's learning rates as legends show them, ascending."""
    return [
        f"{rate:g}" for rate in sorted({a.learning_rate for a in findings.record.arms.values()})
    ]


def _has_tips(layer: alt.Chart) -> bool:
    import altair as alt

    return layer.encoding.tooltip is not alt.Undefined
