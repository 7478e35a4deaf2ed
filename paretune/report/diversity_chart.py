"""Figure of diversity: different answers drawn to a prompt, right and wrong, by method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paretune.analyse.record import BASE
from paretune.report.ablation_charts import most_learned
from paretune.report.chart_parts import layered, shaded, tips
from paretune.report.findings import Findings
from paretune.report.style import STUDIES, groups_in_order, number, tokens

if TYPE_CHECKING:
    import altair as alt

METRICS = {"right": "target/distinct_pass", "wrong": "target/distinct_fail"}


def diversity(findings: Findings) -> alt.LayerChart | None:
    """Mean number of different answers drawn to a prompt: the paper's Figure 5.

    The base, and each method and rank at the last budget and the learning rate with which it
    learned most. None where no answers were drawn.
    """
    import altair as alt
    import pandas as pd

    results = findings.results
    drawn = results[results["metric"].isin(list(METRICS.values())) & results["value"].notna()]
    trained = drawn[drawn["arm"] != BASE]
    if trained.empty:
        return None
    last = int(trained["tokens"].max())
    groups = groups_in_order(set(findings.groups.values()))
    best = {
        group: most_learned(findings, [one for one in findings.series if one.group == group])
        for group in groups
    }
    rows = []
    for name in ("base", *groups):
        series = best.get(name)
        arms = [BASE] if name == "base" else findings.series_by_id[series].arms if series else []
        for kind, metric in METRICS.items():
            at = drawn["tokens"] == (0 if name == "base" else last)
            own = drawn[at & drawn["arm"].isin(list(arms)) & (drawn["metric"] == metric)]
            if len(own):
                mean = float(own["value"].mean())
                shown = {"count": mean, "shown": number(mean, 3), "lead": True}
                rows.append({"name": name, "answers": kind, "series": series or name, **shown})
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    colour = alt.Color(
        "answers:N",
        title="answers",
        scale=alt.Scale(domain=list(METRICS), range=[STUDIES[2], STUDIES[1]]),
    )
    names = list(dict.fromkeys(frame["name"]))
    return layered(
        "Different answers drawn to a prompt",
        [
            f"mean over prompts, at {tokens(last)} tokens; each method at the learning rate with "
            "which it learned most",
        ],
        alt.Chart(frame)
        .mark_bar()
        .encode(
            x=alt.X("name:N", title=None, sort=names, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("count:Q", title="different answers", stack="zero"),
            color=colour,
            tooltip=tips(method="name", answers="answers", different="shown"),
            **shaded(0.95, 0.95, fill=True),
        ),
    )
