"""What all figures share: colours and shapes of arms, the choice of arms, tooltips, axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paretune.report.findings import Findings
from paretune.report.style import DASHES, SHAPES, group_colour, groups_in_order, interval, number

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

WIDTH, HEIGHT = 620, 380
CHOSEN = "length(selected) == 0 || indexof(selected, datum.arm) >= 0"
TOKENS_LABEL = "replace(format(datum.value, '.3~s'), 'G', 'B')"


def chart_over(findings: Findings, rows: pd.DataFrame) -> tuple[alt.Chart, dict[str, Any]]:
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
        "opacity": faded(1.0),
    }
    return alt.Chart(rows), encode


def layered(title: str, subtitle: str, *layers: alt.Chart) -> alt.LayerChart:
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


def faded(full: float) -> Any:
    """Opacity ``full`` for chosen arms, or for all when none is chosen; the others fade."""
    import altair as alt

    return alt.condition(CHOSEN, alt.value(full), alt.value(0.08))


def tips(**fields: str) -> list[Any]:
    """Tooltip lines, TITLE=COLUMN."""
    import altair as alt

    return [alt.Tooltip(f"{name}:N", title=title) for title, name in fields.items()]


def arm_columns(findings: Findings) -> pd.DataFrame:
    """Per arm: arm, name, group, rate, and series (all settings but learning rate and seed)."""
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


def with_interval(rows: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    """``value (low to high)`` as text, a row each."""
    numbers = rows[[value, low, high]].to_numpy(dtype=float).tolist()
    return [f"{number(at)} ({interval(below, above)})" for at, below, above in numbers]


def token_axis(counts: list[int]) -> tuple[Any, Any]:
    """Scale and axis with a tick at each budget; logarithmic when they span a factor of 4."""
    import altair as alt

    spread = counts[-1] / counts[0]
    axis = alt.Axis(values=counts, labelExpr=TOKENS_LABEL, labelOverlap=True)
    if spread < 4:
        margin = 0.06 * (counts[-1] - counts[0]) or 0.2 * counts[0]
        domain = [counts[0] - margin, counts[-1] + margin]
        return alt.Scale(domain=domain, nice=False, zero=False), axis
    domain = [counts[0] / spread**0.06, counts[-1] * spread**0.06]
    return alt.Scale(type="log", domain=domain, nice=False), axis


def rate_names(findings: Findings) -> list[str]:
    """The study's learning rates as legends show them, ascending."""
    return [
        f"{rate:g}" for rate in sorted({a.learning_rate for a in findings.record.arms.values()})
    ]


def _has_tips(layer: alt.Chart) -> bool:
    import altair as alt

    return layer.encoding.tooltip is not alt.Undefined
