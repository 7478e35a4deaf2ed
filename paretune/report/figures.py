"""The figures of a study as altair charts: one specification gives interactive, PNG, SVG, PDF."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from paretune.analyse.record import StudyRecord
from paretune.report.ablation_charts import regularisers, targets
from paretune.report.diversity_chart import diversity
from paretune.report.findings import Findings
from paretune.report.frontier_chart import frontier
from paretune.report.line_charts import loss, over_rates, over_tokens
from paretune.study.config import safe_name

if TYPE_CHECKING:
    import altair as alt

MAIN = ["learning", "forgetting", "rate-learning", "rate-forgetting", "loss"]


def figures(findings: Findings) -> dict[str, alt.LayerChart]:
    """Every figure that the study has data for, by file name, in the order of the page."""
    drawn: dict[str, alt.LayerChart | None] = {
        frontier_name(findings, metric): frontier(findings, metric) for metric in findings.points
    }
    main = [
        over_tokens(findings, findings.learning),
        over_tokens(findings, findings.main),
        over_rates(findings, findings.learning),
        over_rates(findings, findings.main),
        loss(findings),
    ]
    drawn |= dict(zip(MAIN, main, strict=True))
    drawn |= {
        "ablation-regularisers": regularisers(findings),
        "ablation-targets": targets(findings),
        "ablation-diversity": diversity(findings),
    }
    shown = {findings.learning, findings.main}
    for metric in (m for m in findings.record.metrics() if m not in shown):
        drawn[f"change-{file_name(metric)}"] = over_tokens(findings, metric)
    return {name: chart for name, chart in drawn.items() if chart is not None}


def charts(record: StudyRecord) -> dict[str, alt.LayerChart]:
    """The report's figures of a study as altair charts, by file name."""
    return figures(Findings.of(record))


def specifications(charts: dict[str, alt.LayerChart]) -> dict[str, dict[str, Any]]:
    """The charts' Vega-Lite specifications, their data inside, however many rows those are."""
    import altair as alt

    with alt.data_transformers.enable("default", max_rows=None):
        return {name: chart.to_dict(validate=False) for name, chart in charts.items()}


def frontier_name(findings: Findings, metric: str) -> str:
    """File name of the frontier drawn with one forgetting metric; the main one is ``frontier``."""
    return "frontier" if metric == findings.main else f"frontier-{file_name(metric)}"


def file_name(metric: str) -> str:
    """A metric's name as part of a file name: plain letters, and no two metrics the same."""
    dashed = metric.replace("/", "-")
    plain = safe_name(metric)[:80]
    if plain == dashed:
        return plain
    return f"{plain}-{hashlib.sha256(metric.encode(errors='surrogatepass')).hexdigest()[:8]}"
