"""Writing a study's results: tidy tables, figures, and one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paretune.analyse.record import StudyRecord
from paretune.analyse.results import to_csv
from paretune.files import write_bytes, write_text, write_with
from paretune.report.figures import figures, specifications
from paretune.report.findings import Findings
from paretune.report.page import page

SCALE = 1.5  # PNG pixels per unit: about 1,160 across; more costs seconds a report


def write_report(record: StudyRecord, folder: Path) -> Path:
    """Write results.parquet, results.csv, figures/*.png and .svg, and report.html into ``folder``.

    Every file is replaced whole. A study of any state gives a page: without scores it says so.

    Returns:
        The path of report.html.
    """
    findings = Findings.of(record)
    results = findings.results
    write_with(folder / "results.parquet", lambda path: results.to_parquet(path, index=False))
    write_text(folder / "results.csv", to_csv(results))
    drawn = specifications(figures(findings))
    for name, specification in drawn.items():
        svg, png = render(specification)
        write_text(folder / "figures" / f"{name}.svg", svg)
        write_bytes(folder / "figures" / f"{name}.png", png)
    report = folder / "report.html"
    write_text(report, page(findings, drawn))
    return report


def render(specification: dict[str, Any]) -> tuple[str, bytes]:
    """A figure as SVG text and PNG bytes, on white."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg({"background": "white", **specification})
    return svg, vl_convert.svg_to_png(svg, scale=SCALE)
