"""Writing a study's results: tidy tables, figures, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.analyse.record import StudyRecord
from paretune.analyse.results import to_csv
from paretune.files import read_json, write_bytes, write_text, write_with
from paretune.report.answer import answer
from paretune.report.figures import figures, specifications
from paretune.report.findings import Findings
from paretune.report.page import page
from paretune.report.spectrum_charts import spectrum_figures
from paretune.report.spectrum_data import StudySpectra

SCALE = 1.5  # PNG pixels per unit: about 1,160 across; more costs seconds a report
# Which figure of Biderman et al. (2024) a file answers to, with this study's data
PAPER = {
    "frontier": "Figure 1: learning against forgetting",
    "learning": "Figure 2: learning over training tokens",
    "forgetting": "Figure 3: forgetting over training tokens",
    "ablation-regularisers": "Figure 4: LoRA against weight decay and dropout",
    "ablation-diversity": "Figure 5: different answers, right and wrong",
    "spectrum-layers": "Figure 6: the rank of the update, layer by layer",
    "ablation-targets": "Figure 7: which matrices are adapted",
    "rate-learning": "Figure S1: learning over learning rates",
}


def write_report(record: StudyRecord, folder: Path, *, pdf: bool = False) -> Path:
    """Write results.parquet and .csv, figures/*.png and .svg, answer.txt and report.html.

    Every file is replaced whole. A study of any state gives a page: without scores it says so.

    Args:
        pdf: also write each figure as PDF, with its text as text.

    Returns:
        The path of report.html.
    """
    findings = Findings.of(record)
    results = findings.results
    write_with(folder / "results.parquet", lambda path: results.to_parquet(path, index=False))
    write_text(folder / "results.csv", to_csv(results))
    spectra = StudySpectra.of(findings, folder)
    charts = figures(findings)
    if spectra is not None:
        charts |= spectrum_figures(findings, spectra)
    drawn = specifications(charts)
    write_figures(drawn, folder / "figures", pdf=pdf)
    report = folder / "report.html"
    found = answer(findings)
    facts = "".join(f"\n{name}: {fact}" for name, fact in found.facts)
    write_text(folder / "answer.txt", f"{found.headline}\n{facts}\n")
    said = {name: _said(folder, name) for name in ("claims", "advice")}
    write_text(report, page(findings, drawn, spectra=spectra, **said))
    return report


def write_figures(drawn: Mapping[str, dict[str, Any]], folder: Path, *, pdf: bool = False) -> None:
    """Write each figure as SVG and PNG, and a README.md that says what each shows."""
    for name, specification in drawn.items():
        svg, png = render(specification)
        write_text(folder / f"{name}.svg", svg)
        write_bytes(folder / f"{name}.png", png)
        if pdf:
            write_bytes(folder / f"{name}.pdf", to_pdf(svg))
    if drawn:
        write_text(folder / "README.md", _index(drawn))


def render(specification: dict[str, Any]) -> tuple[str, bytes]:
    """A figure as SVG text and PNG bytes, on white."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg({"background": "white", **specification})
    return svg, vl_convert.svg_to_png(svg, scale=SCALE)


def to_pdf(svg: str) -> bytes:
    """A figure's SVG as a one-page PDF of the same size."""
    import vl_convert

    return bytes(vl_convert.svg_to_pdf(svg))


def _index(drawn: Mapping[str, dict[str, Any]]) -> str:
    """What each figure shows, as a Markdown table."""
    lines = ["| file | shows | in the paper (Biderman et al., 2024) |", "|---|---|---|"]
    for name, specification in drawn.items():
        title = str(specification["title"]["text"]).replace("|", "\\|")
        lines.append(f"| {name} | {title} | {PAPER.get(name, '')} |")
    return "\n".join(lines) + "\n"


def _said(folder: Path, name: str) -> Any:
    """What claims.json or advice.json of a study holds; None where it was not written."""
    path = folder / f"{name}.json"
    return read_json(path) if path.exists() else None
