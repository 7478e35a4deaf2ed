"""Comparing finished studies, and the paper's published settings, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paretune.errors import UserError
from paretune.files import write_text
from paretune.runner.record import record_of

PAPER = "paper:"


def compare(folders: Sequence[Path | str], out: Path | str = "comparison.html") -> Path:
    """Write one self-contained page about the studies in ``folders``; returns its path.

    ``paper:SETTING`` in the place of a folder stands for published points of Biderman et al.
    (2024): code_cpt, math_cpt, code_ift, math_ift, tulu_ift.

    Raises:
        UserError: fewer than two studies; a folder without one; the same twice; an unknown
            setting of the paper.
    """
    if len(folders) < 2:
        raise UserError("a comparison needs two studies or more; give their folders")
    places = [
        str(folder) if _is_paper(folder) else str(Path(folder).resolve()) for folder in folders
    ]
    twice = {place for place in places if places.count(place) > 1}
    if twice:
        raise UserError(
            f"{sorted(twice)[0]}: given twice; a study compared with itself is the same"
        )
    # Charts need libraries that a training machine may lack
    from paretune.report.compare import Studied, compare_page
    from paretune.report.findings import Findings

    found = []
    for folder in folders:
        if _is_paper(folder):
            from paretune.analyse.claims.paper import paper_evidence

            evidence = paper_evidence(str(folder).removeprefix(PAPER))
            found.append(Findings.of(evidence.record, evidence.points))
        else:
            found.append(Findings.of(record_of(Path(folder))))
    names = _names([one.record.config.name for one in found], places)
    page = compare_page([Studied(name, one) for name, one in zip(names, found, strict=True)])
    write_text(Path(out), page)
    return Path(out)


def _is_paper(folder: Path | str) -> bool:
    return str(folder).startswith(PAPER)


def _names(names: list[str], places: list[str]) -> list[str]:
    """The studies' names; those that are shared get their folder's, and a number if need be."""
    longer = [
        f"{name} ({Path(place).name})" if names.count(name) > 1 else name
        for name, place in zip(names, places, strict=True)
    ]
    return [
        f"{name} {longer[: i + 1].count(name)}" if longer.count(name) > 1 else name
        for i, name in enumerate(longer)
    ]
