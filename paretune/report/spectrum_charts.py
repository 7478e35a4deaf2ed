"""Figures of what moved: ranks by layer and over tokens, spectra, maps, truncation curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from paretune.report.chart_parts import chart_over, layered, shaded, tips, token_axis
from paretune.report.findings import Findings
from paretune.report.spectrum_data import StudySpectra
from paretune.report.style import STUDIES, number, tokens
from paretune.report.truncation_charts import truncation, truncation_frontier
from paretune.spectrum.null import spectrum as null_spectrum

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

POINTS = 160  # of a drawn spectrum: more would not show
KINDS = ["attention", "mlp", "other"]
NOISE = "noise: a random matrix of the same shape"


def spectrum_figures(findings: Findings, spectra: StudySpectra) -> dict[str, alt.LayerChart]:
    """Every figure of spectra that there are data for, by file name."""
    drawn: dict[str, alt.LayerChart | None] = {
        "spectrum-tokens": over_tokens(findings, spectra, relative=True),
        "spectrum-tokens-raw": over_tokens(findings, spectra, relative=False),
        "spectrum-layers": by_layer(findings, spectra),
        "spectrum-map": layer_map(findings, spectra),
        "spectrum-values": values(findings, spectra),
        "spectrum-truncation": truncation(findings, spectra),
        "spectrum-frontier": truncation_frontier(findings, spectra),
    }
    return {name: chart for name, chart in drawn.items() if chart is not None}


def over_tokens(
    findings: Findings, spectra: StudySpectra, *, relative: bool
) -> alt.LayerChart | None:
    """The update's rank for 90% of variance against tokens, a line for each series and kind."""
    import altair as alt

    column = "rank90_relative" if relative else "rank90"
    rows = spectra.table[spectra.table["kind"].isin(KINDS[:2])].dropna(subset=[column])
    if rows.empty:
        return None
    key = ["series", "group", "kind", "tokens"]
    means = rows.astype({column: "float64"}).groupby(key)[[column]].mean().reset_index()
    means["rank"] = means[column]
    means["rate"] = [_rate(findings, series) for series in means["series"]]
    means["name"] = [findings.series_by_id[series].name for series in means["series"]]
    means["lead"] = means["series"].isin(findings.leads)
    means["budget"] = [tokens(int(count)) for count in means["tokens"]]
    means["shown"] = [number(float(value), 3) for value in means["rank"]]
    means["line"] = means["series"] + means["kind"]
    scale, axis = token_axis(sorted({int(count) for count in means["tokens"]}))
    x = alt.X("tokens:Q", title="training tokens", scale=scale, axis=axis)
    up = "share of noise's rank" if relative else "rank for 90% of variance"
    y = alt.Y("rank:Q", title=up, scale=alt.Scale(zero=True, nice=True))
    chart, shared = chart_over(findings, means)
    dash = alt.StrokeDash(
        "kind:N", title="matrices", scale=alt.Scale(domain=KINDS[:2], range=[[1, 0], [5, 4]])
    )
    lines = chart.mark_line().encode(
        x=x, y=y, color=shared["color"], detail="line:N", strokeDash=dash, **shaded(0.9, 0.25)
    )
    points = chart.mark_point(size=40, filled=True, opacity=1).encode(
        x=x, y=y, **shared,
        tooltip=tips(arm="name", matrices="kind", tokens="budget", rank="shown"),
        **shaded(1.0, 0.3, fill=True),
    )  # fmt: skip
    title = "Rank of the update over tokens" + (", relative to noise" if relative else "")
    return layered(
        title,
        ["for 90% of its variance; means over matrices and seeds",
         f"1 is {NOISE}" if relative else ""],
        lines,
        points,
    )  # fmt: skip


def by_layer(findings: Findings, spectra: StudySpectra) -> alt.LayerChart | None:
    """The paper's Figure 6: rank by layer and module, over budgets, with the null's rank."""
    import altair as alt

    rows = spectra.of_chosen().dropna(subset=["rank90"])
    if rows.empty:
        return None
    rows = rows[["layer", "module", "tokens", "rank90", "null_rank90", "series"]].astype(
        {"rank90": "float64"}
    )
    key = ["layer", "module", "tokens", "series"]
    rows = rows.groupby(key, as_index=False).mean()
    budgets = sorted({int(count) for count in rows["tokens"]})
    rows["budget"] = [tokens(int(count)) for count in rows["tokens"]]
    rows["line"] = rows["module"] + rows["budget"]
    rows["shown"] = [
        f"{value:.0f} ({value / null:.2f} of noise's {null:.0f})"
        for value, null in zip(rows["rank90"], rows["null_rank90"], strict=True)
    ]
    modules = _modules(rows)
    colour = alt.Color(
        "module:N",
        title="module",
        scale=alt.Scale(domain=modules, range=[STUDIES[i % 7] for i in range(len(modules))]),
    )
    thin = {count: 0.25 + 0.75 * i / max(1, len(budgets) - 1) for i, count in enumerate(budgets)}
    rows["weight"] = [thin[int(count)] for count in rows["tokens"]]
    x = alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d"))
    y = alt.Y("rank90:Q", title="rank for 90% of variance", scale=alt.Scale(zero=True))
    chart = alt.Chart(rows)
    width = alt.StrokeWidth("weight:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0, 2.6]))
    lines = chart.mark_line().encode(
        x=x, y=y, color=colour, detail="line:N", strokeWidth=width, **shaded(0.9, 0.9)
    )
    points = chart.mark_point(size=30, filled=True, opacity=1).encode(
        x=x, y=y, color=colour,
        tooltip=tips(module="module", tokens="budget", rank="shown"),
        **shaded(0.9, 0.9, fill=True),
    )  # fmt: skip
    edges = rows[["null_rank90"]].drop_duplicates()
    nulls = (
        alt.Chart(edges)
        .mark_rule(strokeDash=[2, 3], strokeWidth=1.3, color="#7d828a")
        .encode(y=alt.Y("null_rank90:Q", title="rank for 90% of variance"))
    )
    return layered(
        "Rank of the update by layer and module",
        [_chosen(findings, spectra), f"thicker: more tokens ({_listed(budgets)})",
         f"dotted: {NOISE}"],
        nulls,
        lines,
        points,
    )  # fmt: skip


def layer_map(findings: Findings, spectra: StudySpectra) -> alt.LayerChart | None:
    """Layer x module: the update's rank as a share of the null's, at the last budget."""
    import altair as alt

    rows = spectra.of_chosen().dropna(subset=["rank90_relative"])
    if rows.empty:
        return None
    last = int(rows["tokens"].max())
    rows = rows[rows["tokens"] == last]
    columns = ["rank90_relative", "effective_rank", "stable_rank", "frobenius_relative"]
    means = rows.groupby(["layer", "module", "series"], as_index=False)[columns].mean()
    for name in columns:
        means[f"{name}_shown"] = [number(float(value), 3) for value in means[name]]
    x = alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0))
    y = alt.Y("module:N", title=None, sort=_modules(means))
    cells = (
        alt.Chart(means)
        .mark_rect()
        .encode(
            x=x, y=y,
            color=alt.Color(
                "rank90_relative:Q", title="of noise",
                scale=alt.Scale(scheme="viridis", zero=True),
            ),
            tooltip=tips(
                **{
                    "module": "module", "of noise's rank": "rank90_relative_shown",
                    "effective rank": "effective_rank_shown", "stable rank": "stable_rank_shown",
                    "size relative to W0": "frobenius_relative_shown",
                }
            ),
        )
    )  # fmt: skip
    return layered(
        "Rank of the update by layer and module, relative to noise",
        [_chosen(findings, spectra), f"at {tokens(last)} tokens; {NOISE} is 1"],
        cells,
    )


def values(findings: Findings, spectra: StudySpectra) -> alt.LayerChart | None:
    """Singular values of W0, W and Delta of one attention and one MLP matrix, with the null."""
    import altair as alt
    import pandas as pd

    table = spectra.of_chosen()
    if table.empty:
        return None
    stored = spectra.values(str(spectra.chosen))
    table = table[table["tokens"] == table["tokens"].max()]
    layer = sorted(set(table["layer"]))[len(set(table["layer"])) // 2]
    frames = []
    for kind in KINDS[:2]:
        inside = table[(table["layer"] == layer) & (table["kind"] == kind)]
        if inside.empty:
            continue
        one = inside.sort_values("matrix").iloc[-1]
        where = stored["matrix"] == one["matrix"]
        latest = stored[where & (stored["tokens"] == one["tokens"])]
        drawn = {
            str(of): np.asarray(value, float)
            for of, value in zip(latest["of"], latest["values"], strict=True)
        }
        if "delta" in drawn:
            own = drawn["delta"]
            law = null_spectrum(int(one["d_out"]), int(one["d_in"]))
            drawn["noise"] = law * np.linalg.norm(own) / np.linalg.norm(law)
        frames += [_line(value, of, f"{one['module']} ({kind})") for of, value in drawn.items()]
    if not frames:
        return None
    rows = pd.concat(frames, ignore_index=True)
    rows["series"] = table["series"].iloc[0]
    rows["line"] = rows["of"] + rows["matrix"]
    rows["shown"] = [number(float(value), 3) for value in rows["value"]]
    names = ["W0", "W", "update", "noise of the update's size"]
    colour = alt.Color(
        "of:N",
        title=None,
        scale=alt.Scale(domain=names, range=["#7d828a", STUDIES[0], STUDIES[1], STUDIES[3]]),
    )
    matrices = list(dict.fromkeys(rows["matrix"]))
    dash = alt.StrokeDash(
        "matrix:N", title="matrix", scale=alt.Scale(domain=matrices, range=[[1, 0], [5, 4]])
    )
    chart = alt.Chart(rows)
    x = alt.X("share:Q", title="rank, as a share of the full rank", axis=alt.Axis(format="%"))
    y = alt.Y("value:Q", title="singular value", scale=alt.Scale(type="log", nice=False))
    lines = chart.mark_line().encode(
        x=x, y=y, color=colour, strokeDash=dash, detail="line:N", **shaded(0.9, 0.9)
    )
    # Invisible marks that answer the pointer: each costs bytes, and every fourth is enough
    points = (
        alt.Chart(rows[::4])
        .mark_point(size=60, opacity=0)
        .encode(x=x, y=y, color=colour, tooltip=tips(matrix="matrix", of="of", value="shown"))
    )
    return layered(
        "Spectra of base, tuned and update",
        [_chosen(findings, spectra), f"layer {layer}"],
        lines,
        points,
    )


def _line(values: Any, of: str, matrix: str) -> pd.DataFrame:
    """A spectrum thinned out to what shows, without zeros (a log axis has none)."""
    import pandas as pd

    names = {
        "base": "W0", "tuned": "W", "delta": "update", "noise": "noise of the update's size",
    }  # fmt: skip
    picked = np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(int))
    kept = picked[values[picked] > 1e-7 * values[0]]
    return pd.DataFrame(
        {"share": (kept + 0.5) / len(values), "value": values[kept], "of": names[of],
         "matrix": matrix}
    )  # fmt: skip


def _modules(rows: pd.DataFrame) -> list[str]:
    """Modules as models name them, attention's usual order first."""
    usual = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    found = set(rows["module"])
    return [name for name in usual if name in found] + sorted(found - set(usual))


def _rate(findings: Findings, series: str) -> str:
    return f"{findings.series_by_id[series].config.learning_rate:g}"


def _chosen(findings: Findings, spectra: StudySpectra) -> str:
    return f"{findings.names[str(spectra.chosen)]}, the full arm that learned most"


def _listed(budgets: list[int]) -> str:
    return ", ".join(tokens(count) for count in budgets)
