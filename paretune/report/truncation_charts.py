"""Figures of truncated updates: learning and forgetting by rank, and beside the trained arms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretune.report.chart_parts import layered, shaded, tips
from paretune.report.findings import Findings
from paretune.report.spectrum_data import StudySpectra
from paretune.report.style import STUDIES, group_colour, groups_in_order, number, tokens
from paretune.report.words import unit_words

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


def truncation(findings: Findings, spectra: StudySpectra) -> alt.LayerChart | None:
    """What is learned and forgotten by W0 + Delta_r against r, as shares of the whole update's."""
    import altair as alt
    import pandas as pd

    cuts = spectra.truncation
    if cuts.empty:
        return None
    arm, count, cuts = _one(spectra)
    cuts = cuts[cuts["scale"] == 1]
    parts, said = [], []
    for metric in (findings.learning, findings.main):
        rows = cuts[cuts["metric"] == metric]
        whole = rows.loc[rows["rank"].isna(), "change"]
        if not len(whole) or not whole.iloc[0]:
            continue
        rows = rows.assign(
            share=rows["change"].astype("float64") / float(whole.iloc[0]),
            low=rows["change_low"].astype("float64") / float(whole.iloc[0]),
            high=rows["change_high"].astype("float64") / float(whole.iloc[0]),
        )
        noun = "learned" if rows["side"].iloc[0] == "target" else "forgot"
        unit = unit_words(str(rows["unit"].iloc[0]))
        rows["what"] = noun
        said.append(f"{noun}: {findings.words(metric)}")
        rows["shown"] = [f"{number(float(v), 3)} {unit}" for v in rows["change"]]
        parts.append(rows)
    if not parts:
        return None
    rows = pd.concat(parts, ignore_index=True)
    largest = int(spectra.of_chosen()[["d_out", "d_in"]].min(axis=1).max())
    rows["at"] = rows["rank"].astype("float64").fillna(largest).clip(lower=0.5)
    rows["cut"] = ["all" if pd.isna(rank) else str(int(rank)) for rank in rows["rank"]]
    rows["kept"] = [f"{share:.1%}" for share in rows["energy"]]
    x = alt.X(
        "at:Q", title="rank kept (left end: none; right end: all)",
        scale=alt.Scale(type="log", base=2, nice=False),
        axis=alt.Axis(values=[2**i for i in range(largest.bit_length())], labelOverlap=True),
    )  # fmt: skip
    y = alt.Y("share:Q", title="share of the whole update's", axis=alt.Axis(format="%"))
    names = list(dict.fromkeys(rows["what"]))
    colour = alt.Color(
        "what:N", title=None, scale=alt.Scale(domain=names, range=[STUDIES[0], STUDIES[1]])
    )
    chart = alt.Chart(rows)
    energy = chart.mark_line(strokeDash=[2, 3], color="#7d828a").encode(
        x=x, y=alt.Y("energy:Q", title="share of the whole update's")
    )
    spans = chart.mark_rule(strokeWidth=1.2).encode(
        x=x, y=alt.Y("low:Q", title="share of the whole update's"), y2="high:Q", color=colour
    )
    lines = chart.mark_line().encode(x=x, y=y, color=colour, **shaded(0.9, 0.9))
    points = chart.mark_point(size=45, filled=True, opacity=1).encode(
        x=x, y=y, color=colour,
        tooltip=tips(**{"rank": "cut", "of the update": "kept", "change": "shown"}),
        **shaded(1.0, 1.0, fill=True),
    )  # fmt: skip
    return layered(
        "Learning and forgetting of the truncated update",
        [f"{findings.names[arm]}, {tokens(int(count))} tokens; 95% intervals",
         "; ".join(said),
         "dotted: share of the update's squared norm"],
        energy,
        spans,
        lines,
        points,
    )  # fmt: skip


def truncation_frontier(findings: Findings, spectra: StudySpectra) -> alt.LayerChart | None:
    """Learned against forgotten by truncated and scaled updates, beside the trained arms."""
    import altair as alt

    if spectra.truncation.empty:
        return None
    arm, count, cuts = _one(spectra)
    cuts = cuts.assign(order=cuts["rank"].astype("float64").fillna(float("inf")))
    wide = cuts.pivot_table(
        index=["order", "scale"], columns="metric", values="change"
    ).reset_index()
    if not {findings.learning, findings.main} <= set(wide.columns):
        return None
    wide = wide.dropna(subset=[findings.learning, findings.main]).rename(
        columns={findings.learning: "learned", findings.main: "forgot"}
    )
    wide["text"] = [
        ("all" if rank == float("inf") else f"r{rank:.0f}") + ("" if scale == 1 else f" x{scale:g}")
        for rank, scale in zip(wide["order"], wide["scale"], strict=True)
    ]
    wide["series"] = next(one.id for one in findings.series if arm in one.arms)
    wide["whole"] = wide["order"] == float("inf")
    wide["order"] = range(len(wide))
    arms = _arms_at(findings, count)
    for rows in (wide, arms):
        for name in ("learned", "forgot"):
            rows[f"{name}_shown"] = [number(float(value), 3) for value in rows[name]]
    x = alt.X("learned:Q", title=f"learned ({unit_words(findings.unit(findings.learning))})")
    y = alt.Y("forgot:Q", title=f"forgot ({unit_words(findings.unit(findings.main))})")
    groups = groups_in_order(set(arms["group"]))
    colour = alt.Color(
        "group:N",
        title="trained arms",
        scale=alt.Scale(domain=groups, range=[group_colour(group) for group in groups]),
    )
    trained = (
        alt.Chart(arms)
        .mark_point(size=50, filled=True, opacity=1)
        .encode(
            x=x, y=y, color=colour,
            tooltip=tips(arm="name", learned="learned_shown", forgot="forgot_shown"),
            **shaded(0.9, 0.5, "true", fill=True),
        )
    )  # fmt: skip
    chart = alt.Chart(wide)
    line = (
        chart.transform_filter("datum.scale == 1")
        .mark_line(color="#7d828a", strokeDash=[4, 3])
        .encode(x=x, y=y, order="order:Q")
    )
    scaled = (
        chart.transform_filter("datum.whole")
        .mark_line(color="#7d828a")
        .encode(x=x, y=y, order="order:Q")
    )
    cut = chart.mark_point(size=45, color="#7d828a", shape="diamond", opacity=1).encode(
        x=x, y=y, tooltip=tips(cut="text", learned="learned_shown", forgot="forgot_shown")
    )
    names = chart.mark_text(align="left", dx=8, fontSize=11, color="#7d828a").encode(
        x=x, y=y, text="text:N"
    )
    return layered(
        "Truncated updates beside trained arms",
        [
            f"diamonds: {findings.names[arm]} cut to rank r, or scaled; nothing trained",
            f"at {tokens(count)} tokens; {findings.words(findings.main)}",
        ],
        line,
        scaled,
        trained,
        cut,
        names,
    )


def _one(spectra: StudySpectra) -> tuple[str, int, pd.DataFrame]:
    """The truncated arm to draw, its tokens, and its rows: the chosen full arm if it is there."""
    cuts = spectra.truncation
    pairs = list(dict.fromkeys(zip(cuts["arm"], cuts["tokens"], strict=True)))
    arm, count = next((pair for pair in pairs if pair[0] == spectra.chosen), pairs[-1])
    cuts = cuts[(cuts["arm"] == arm) & (cuts["tokens"] == count)]
    rest = "tuned" if (cuts["rest"] == "tuned").any() else "base"
    return str(arm), int(count), cuts[cuts["rest"] == rest]


def _arms_at(findings: Findings, count: int) -> pd.DataFrame:
    """Every arm's change in learning and in forgetting at a budget."""
    results = findings.results
    results = results[(results["tokens"] == count) & results["arm"].isin(findings.record.arms)]
    wide = results.pivot_table(index="arm", columns="metric", values="change").reset_index()
    wide = wide.dropna(subset=[findings.learning, findings.main]).rename(
        columns={findings.learning: "learned", findings.main: "forgot"}
    )
    series = {arm: one for one in findings.series for arm in one.arms}
    return wide.assign(
        group=[series[arm].group for arm in wide["arm"]],
        series=[series[arm].id for arm in wide["arm"]],
        name=[findings.names[arm] for arm in wide["arm"]],
    )[["arm", "learned", "forgot", "group", "series", "name"]]
