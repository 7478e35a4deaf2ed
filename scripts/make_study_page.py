"""Write the tables and figures of docs/studies/english-30m-to-python from the study's ledger.

The prose of the page is written by hand; what stands between the marks ``<!-- begin NAME -->`` and
``<!-- end NAME -->`` is written here, so that it cannot differ from what was measured.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marked_tables import fill
from study_tables import tables

from paretune import load
from paretune.analyse.results import to_csv
from paretune.files import write_bytes, write_text
from paretune.report.figures import figures, specifications
from paretune.report.findings import Findings
from paretune.report.write import render

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "studies" / "english-30m-to-python"
PAGE, ARCHIVE, RESULTS = (FOLDER / n for n in ("README.md", "ledger.tar.xz", "results.csv"))
FIGURES = ("frontier", "rate-learning", "rate-forgetting", "loss")  # those that the page shows


@contextmanager
def ledger() -> Iterator[Path]:
    """The study's folder, unpacked for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder) / FOLDER.name


def main() -> None:
    """Write the page's tables, its figures (SVG or PNG, the smaller) and results.csv."""
    with ledger() as folder:
        findings = Findings.of(load(folder))
        write_text(PAGE, fill(PAGE.read_text(encoding="utf-8"), tables(folder, findings)))
        write_text(RESULTS, to_csv(findings.results))
        charts = figures(findings)
        for name, specification in specifications({n: charts[n] for n in FIGURES}).items():
            svg, png = render(specification)
            kinds = {"svg": svg.encode(), "png": png}
            kind = min(kinds, key=lambda suffix: len(kinds[suffix]))
            write_bytes(FOLDER / f"{name}.{kind}", kinds[kind])
    print(f"{FOLDER.relative_to(ROOT)} is written")


if __name__ == "__main__":
    main()
