"""Write the page of a study's spectra, docs/studies/NAME/spectrum.md, and its figures.

Usage: python scripts/make_spectrum_page.py NAME [STUDY_DIR]. With STUDY_DIR, a folder in which
``paretune spectrum STUDY_DIR`` was run, its spectra are packed into spectra.tar.xz first, with the
ledger that they belong to where none lies there yet. The page is then made from these files alone.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spectrum_tables import page_text

from paretune import load
from paretune.files import write_bytes, write_text
from paretune.report.figures import specifications
from paretune.report.findings import Findings
from paretune.report.spectrum_charts import spectrum_figures
from paretune.report.spectrum_data import TABLE, TRUNCATION, VALUES, StudySpectra
from paretune.report.write import render
from paretune.runner.claims import judge

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "docs" / "studies"
LEDGER, SPECTRA, PAGE = "ledger.tar.xz", "spectra.tar.xz", "spectrum.md"
# What of a ledger is not kept: weights, states, tokens, and what can be made again
LEFT_OUT = ("checkpoints", "resume", "data", "figures", TABLE, VALUES, TRUNCATION)


def pack(study: Path, folder: Path) -> None:
    """Every arm's measures and truncations, the singular values that are drawn, and the ledger."""
    findings = Findings.of(load(study))
    spectra = StudySpectra.of(findings, study)
    if spectra is None:
        raise SystemExit(f"{study}: no spectra here; run: paretune spectrum {study}")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / SPECTRA, "w:xz", preset=9) as archive:
        for arm in sorted(findings.record.arms):
            names = [TABLE, TRUNCATION] + ([VALUES] if arm == spectra.chosen else [])
            for name in names:
                path = study / "arms" / arm / name
                if path.exists():
                    archive.add(path, f"{folder.name}/arms/{arm}/{name}")
    if not (folder / LEDGER).exists():

        def chosen(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
            name = Path(info.name).name
            return None if name in LEFT_OUT or name.startswith(".") else info

        with tarfile.open(folder / LEDGER, "w:xz", preset=9) as archive:
            archive.add(study, folder.name, filter=chosen)


@contextmanager
def unpacked(folder: Path) -> Iterator[Path]:
    """The study's ledger with its spectra, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as place:
        for name in (LEDGER, SPECTRA):
            with tarfile.open(folder / name) as archive:
                archive.extractall(place, filter="data")
        yield Path(place) / folder.name


def main() -> None:
    """Pack the spectra of a study, if one is given, and write the page."""
    folder = STUDIES / sys.argv[1]
    if len(sys.argv) > 2:
        pack(Path(sys.argv[2]), folder)
    with unpacked(folder) as study:
        findings = Findings.of(load(study))
        spectra = StudySpectra.of(findings, study)
        if spectra is None:
            raise SystemExit(f"{folder / SPECTRA}: no spectra of the arms in {LEDGER}")
        charts = specifications(spectrum_figures(findings, spectra))
        write_text(folder / PAGE, page_text(findings, spectra, judge(study)[0], list(charts)))
        for name, specification in charts.items():
            if name != "spectrum-tokens-raw":
                write_bytes(folder / f"{name}.svg", render(specification)[0].encode())
    print(f"{(folder / PAGE).relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
