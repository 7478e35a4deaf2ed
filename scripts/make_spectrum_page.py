"""Write docs/studies/english-30m-to-python/spectrum.md and its figures from the study's spectra.

Usage: python scripts/make_spectrum_page.py [STUDY_DIR]. With STUDY_DIR, a folder in which
``paretune spectrum STUDY_DIR`` was run, its spectra are packed into spectra.tar.xz first; the page
is then made from that archive and the study's ledger beside it.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from make_study_page import FOLDER, ROOT, ledger
from spectrum_tables import page_text

from paretune import load
from paretune.files import write_bytes, write_text
from paretune.report.figures import specifications
from paretune.report.findings import Findings
from paretune.report.spectrum_charts import spectrum_figures
from paretune.report.spectrum_data import TABLE, TRUNCATION, VALUES, StudySpectra
from paretune.report.write import render
from paretune.runner.claims import judge

PAGE, ARCHIVE = FOLDER / "spectrum.md", FOLDER / "spectra.tar.xz"


def pack(study: Path) -> None:
    """Every arm's measures and truncations, and the singular values of the arm that is drawn."""
    findings = Findings.of(load(study))
    spectra = StudySpectra.of(findings, study)
    if spectra is None:
        raise SystemExit(f"{study}: no spectra here; run: paretune spectrum {study}")
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for arm in sorted(findings.record.arms):
            names = [TABLE, TRUNCATION] + ([VALUES] if arm == spectra.chosen else [])
            for name in names:
                path = study / "arms" / arm / name
                if path.exists():
                    archive.add(path, f"arms/{arm}/{name}")


@contextmanager
def with_spectra() -> Iterator[Path]:
    """The study's ledger with its spectra, unpacked for as long as the context lasts."""
    with ledger() as folder:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        yield folder


def main() -> None:
    """Pack the spectra of a study, if one is given, and write the page."""
    if len(sys.argv) > 1:
        pack(Path(sys.argv[1]))
    with with_spectra() as folder:
        findings = Findings.of(load(folder))
        spectra = StudySpectra.of(findings, folder)
        assert spectra is not None, "spectra.tar.xz holds no arm of the study's ledger"
        charts = specifications(spectrum_figures(findings, spectra))
        write_text(PAGE, page_text(findings, spectra, judge(folder)[0], list(charts)))
        for name, specification in charts.items():
            write_bytes(FOLDER / f"{name}.svg", render(specification)[0].encode())
    print(f"{PAGE.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
