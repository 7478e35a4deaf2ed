"""Figures of ablations: LoRA beside other regularisers, and which layers carry adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretune.analyse.claims.evidence import regularisation
from paretune.analyse.record import BASE
from paretune.report.chart_parts import (
    HEIGHT,
    LABEL_ROOM,
    arm_columns,
    axis_scale,
    labels,
    layered,
    shaded,
    tips,
    with_interval,
)
from paretune.report.findings import Findings
from paretune.report.layout import LINE, axis_range, spread
from paretune.report.style import STUDIES, group_colour, groups_in_order, tokens
from paretune.report.words import unit_words

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from paretune.report.series import Series

PLACES = ["attention", "mlp", "all"]  # targets, from few layers to all


def regularisers(findings: Findings) -> alt.LayerChart | None:
    """Forgetting against learning over the budgets: LoRA, full finetuning, and full regularised.

    The paper's Figure 4. Each regulariser and rank is drawn at the learning rate with which it
    learned most; None where no full arm has more weight decay or attention dropout than another.
    """
    import altair as alt

    full = [one for one in findings.series if one.group == "full"]
    if len({regularisation(one.config) for one in full}) < 2:
        return None
    least = min(regularisation(one.config) for one in full)
    kinds: dict[str, list[Series]] = {}
    for one in findings.series:
        kinds.setdefault(_kind(one, least), []).append(one)
    chosen = {kind: most_learned(findings, members) for kind, members in kinds.items()}
    rows = _both_axes(findings, {key: kind for kind, key in chosen.items() if key})
    if rows.empty:
        return None
    width, height = axis_range(rows["learned"]), axis_range(rows["forgot"])
    room = alt.Scale(
        domain=[width.low, width.high + LABEL_ROOM * (width.high - width.low)], nice=False
    )
    names = list(dict.fromkeys(rows["kind"]))
    colour = alt.Color(
        "kind:N",
        title="method",
        scale=alt.Scale(domain=names, range=[STUDIES[i % len(STUDIES)] for i in range(len(names))]),
    )
    up = f"forgot ({unit_words(findings.unit(findings.main))})"
    along = f"learned ({unit_words(findings.unit(findings.learning))})"
    x = alt.X("learned:Q", title=along, scale=room)
    y = alt.Y("forgot:Q", title=up, scale=axis_scale(height))
    ends = rows.sort_values("tokens", kind="stable").groupby("kind", sort=False).tail(1)
    gap = 1.15 * LINE / HEIGHT * (height.high - height.low)
    places = spread([float(at) for at in ends["forgot"]], gap, height.low, height.high)
    beside = alt.Y("label_y:Q", title=up, scale=axis_scale(height))
    named = ends.assign(text=ends["kind"], label_y=places)
    chart = alt.Chart(rows)
    lines = chart.mark_line().encode(x=x, y=y, color=colour, order="tokens:Q", **shaded(0.9, 0.9))
    points = chart.mark_point(size=42, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        tooltip=tips(arm="name", budget="budget", learned="learned_shown", forgot="forgot_shown"),
        **shaded(1.0, 1.0, fill=True),
    )
    return layered(
        "Regularisers: forgetting against learning over the budgets",
        ["each at the learning rate with which it learned most; mean over seeds", _last(rows)],
        lines,
        points,
        labels(named, x, beside, "true", colour),
    )


def targets(findings: Findings) -> alt.LayerChart | None:
    """What LoRA learned with adapters in attention, MLP or all layers, by rank: Figure 7.

    At the last budget, each at its best learning rate; None where one place alone was tried.
    """
    import altair as alt

    tried: dict[tuple[str, str], list[Series]] = {}
    for one in findings.series:
        place = one.config.targets
        if one.config.rank is not None and place in PLACES:
            tried.setdefault((one.group, str(place)), []).append(one)
    if len({place for _, place in tried}) < 2:
        return None
    chosen = {key: most_learned(findings, members) for key, members in tried.items()}
    rows = _both_axes(findings, {key: f"{g}|{p}" for (g, p), key in chosen.items() if key})
    if rows.empty:
        return None
    rows = rows[rows["tokens"] == rows["tokens"].max()].copy()
    rows[["group", "place"]] = rows["kind"].str.split("|", expand=True).to_numpy()
    groups = groups_in_order(set(rows["group"]))
    height = axis_range(rows["learned_high"].fillna(rows["learned"]))
    colour = alt.Color(
        "group:N",
        title="method",
        scale=alt.Scale(domain=groups, range=[group_colour(group) for group in groups]),
    )
    places = [place for place in PLACES if place in set(rows["place"])]
    x = alt.X("place:N", title="layers with adapters", sort=places, axis=alt.Axis(labelAngle=0))
    along = alt.XOffset("group:N", sort=groups)
    up = f"learned ({unit_words(findings.unit(findings.learning))})"
    y = alt.Y("learned:Q", title=up, scale=axis_scale(height))
    chart = alt.Chart(rows)
    bars = chart.mark_bar().encode(
        x=x,
        xOffset=along,
        y=y,
        color=colour,
        tooltip=tips(arm="name", budget="budget", learned="learned_shown", forgot="forgot_shown"),
        **shaded(0.9, 0.9, fill=True),
    )
    spans = chart.mark_rule(strokeWidth=1.4, color="#777").encode(
        x=x, xOffset=along, y=alt.Y("learned_low:Q", title=up, scale=axis_scale(height)),
        y2="learned_high:Q",
    )  # fmt: skip
    return layered(
        "Layers with adapters: learning by rank",
        [f"at {tokens(int(rows['tokens'].iloc[0]))} tokens, each at its best learning rate; "
         "bars: 95% intervals of one run"],
        bars,
        spans,
    )  # fmt: skip


def _kind(one: Series, least: tuple[float, float]) -> str:
    """A method with what regularises it beyond its plain form."""
    decay, dropout = regularisation(one.config)
    parts = [one.group.replace("lora ", "LoRA ")]
    parts += [f"decay {decay:g}"] if decay > least[0] else []
    parts += [f"attention dropout {dropout:g}"] if dropout > least[1] else []
    return ", ".join(parts)


def most_learned(findings: Findings, members: list[Series]) -> str | None:
    """The series that learned most at the last budget that any of them reached."""
    best: dict[str, tuple[int, float]] = {}
    rows = findings.results
    rows = rows[(rows["metric"] == findings.learning) & rows["change"].notna()]
    for one in members:
        own = rows[rows["arm"].isin(one.arms)]
        if len(own):
            last = int(own["tokens"].max())
            best[one.id] = (last, float(own.loc[own["tokens"] == last, "change"].mean()))
    return max(best, key=lambda key: best[key]) if best else None


def _both_axes(findings: Findings, kinds: dict[str, str]) -> pd.DataFrame:
    """Mean learning and forgetting of series at each budget, with their kind and tooltip texts."""
    rows = findings.results
    rows = rows[(rows["arm"] != BASE) & rows["change"].notna()].merge(
        arm_columns(findings)[["arm", "series", "lead"]], on="arm"
    )
    rows = rows[rows["series"].isin(list(kinds))]
    sides = []
    for metric, name in ((findings.learning, "learned"), (findings.main, "forgot")):
        side = rows[rows["metric"] == metric].groupby(["series", "tokens"], as_index=False)
        sides.append(
            side.agg(**{
                name: ("change", "mean"),
                f"{name}_low": ("change_low", "mean"),
                f"{name}_high": ("change_high", "mean"),
            })
        )  # fmt: skip
    both = sides[0].merge(sides[1], on=["series", "tokens"])
    both["lead"] = True
    both["kind"] = [kinds[key] for key in both["series"]]
    both["name"] = [findings.series_by_id[key].name for key in both["series"]]
    both["budget"] = [tokens(int(count)) for count in both["tokens"]]
    for name in ("learned", "forgot"):
        both[f"{name}_shown"] = with_interval(both, name, f"{name}_low", f"{name}_high")
    order = {key: place for place, key in enumerate(kinds)}
    return both.sort_values(
        ["series", "tokens"],
        key=lambda column: column.map(order) if column.name == "series" else column,
        kind="stable",
        ignore_index=True,
    )


def _last(rows: pd.DataFrame) -> str:
    budgets = [tokens(int(count)) for count in sorted(set(rows["tokens"]))]
    return f"points: budgets {', '.join(budgets)}"
