"""The report page's size and speed: a made-up study of 60 arms x 8 budgets in headless Chromium.

Usage: python benchmarks/report_page.py; writes benchmarks/results/report.json. Needs chromium.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from measurements import row, write

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))

from headless_chromium import Page
from synthetic_study import PROVENANCE, many_arms, study

from paretune.report.write import write_report

BUDGETS = tuple(25_000 * 2**i for i in range(8))
WORK = "60 arms x 8 budgets, 5 metrics of 256 items, 1280 x 800"
REPEATS = 5


def first_chart(page: Path, folder: Path) -> float:
    """Seconds from the address to the frontier drawn, in a fresh browser."""
    tab = Page(folder)
    try:
        tab.size(1280, 800)
        begin = time.monotonic()
        tab.call("Page.navigate", url=page.resolve().as_uri())
        tab.until("document.querySelector('.view')?.dataset.drawn")
        seconds = time.monotonic() - begin
        assert tab.problems == [], tab.problems
        return seconds
    finally:
        tab.close()


def main() -> None:
    """Write the page, open it several times, keep the median and the slowest."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = study(arms=many_arms(), budgets=BUDGETS, n=256, provenance=PROVENANCE)
        begin = time.monotonic()
        page = write_report(record, folder / "study")
        spent = time.monotonic() - begin
        times = [first_chart(page, folder / f"profile{i}") for i in range(REPEATS)]
        times.sort()
        median = times[REPEATS // 2]
        size = page.stat().st_size / 1e6
    rows = [
        row(
            "report: first chart, median of 5",
            WORK,
            "s",
            our_value=median,
            ratio=2 / median,
            goal="under 2",
        ),
        row(
            "report: first chart, slowest of 5",
            WORK,
            "s",
            our_value=times[-1],
            ratio=2 / times[-1],
            goal="under 2",
        ),
        row("report: size of the page", WORK, "MB", our_value=size, ratio=8 / size, goal="under 8"),
        row(
            "report: writing page, tables and figures",
            WORK,
            "s",
            our_value=spent,
            goal="no target in this version",
        ),
    ]
    write("report", rows)


if __name__ == "__main__":
    main()
