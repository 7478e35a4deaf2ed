"""A study's page of spectra says what its ledger and its spectra hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(path.parent for path in (ROOT / "docs" / "studies").glob("*/spectra.tar.xz"))


def test_there_is_one() -> None:
    assert FOLDERS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_text_is_that_of_the_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_spectrum_page as made
    from spectrum_tables import page_text

    from paretune import load
    from paretune.report.findings import Findings
    from paretune.report.spectrum_charts import spectrum_figures
    from paretune.report.spectrum_data import StudySpectra
    from paretune.runner.claims import judge

    page = (folder / made.PAGE).read_text(encoding="utf-8")
    with made.unpacked(folder) as study:
        findings = Findings.of(load(study))
        spectra = StudySpectra.of(findings, study)
        assert spectra is not None
        names = list(spectrum_figures(findings, spectra))
        fresh = page_text(findings, spectra, judge(study)[0], names)
        readme = folder / "README.md"
        if readme.exists():  # a study with benchmark tasks has a page of scores, too
            from make_task_study_page import FIGURES
            from make_task_study_page import page as whole

            drawn = [name for name in FIGURES if (folder / f"{name}.svg").exists()]
            assert readme.read_text(encoding="utf-8") == whole(study, findings, drawn)
    assert page == fresh, f"run: python scripts/make_spectrum_page.py {folder.name}"
    for name in re.findall(r"\]\(([^)#]+)\)", page):
        assert (folder / name).is_file(), name
