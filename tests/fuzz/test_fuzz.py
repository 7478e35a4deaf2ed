"""A short fuzzing campaign; benchmarks/fuzz.py runs the long one with the same code."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from campaign import finished_study, ledgers, studies
from fuzzing import survives

from paretune.errors import UserError


def test_mutated_study_files_are_read_or_refused() -> None:
    found = studies(250, number=0)
    assert not found.findings, found.told()
    assert found.tried == 250
    assert 0 < found.taken < found.tried, "some mutants are sound, most are not"


@pytest.mark.slow
def test_damaged_ledgers_are_read_or_refused(tmp_path: Path) -> None:
    found = ledgers(150, 0, *finished_study(tmp_path))
    assert not found.findings, found.told()
    assert 0 < found.taken < found.tried


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    """Each kind of failure that the campaigns look for is found when it is there."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()

    def said(action: object) -> str | None:
        assert callable(action)
        found = survives(action, within=(inside,), seconds=0.2)[1]
        return found and found.what

    def link_and_write() -> None:
        (inside / "link").symlink_to(outside)
        (inside / "link" / "file").write_text("x")

    def refuse() -> None:
        raise UserError("a message")

    def refuse_silently() -> None:
        raise UserError(" ")

    def loop() -> None:
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    assert said(lambda: (inside / "file").write_text("x")) is None
    assert said(refuse) is None
    assert said(refuse_silently) == "an empty message"
    assert said(lambda: {}["x"]) == "KeyError in test_fuzz.py:<lambda>"
    assert str(said(loop)).startswith("Hung in ")
    assert said(lambda: (outside / "file").write_text("x")) == "wrote elsewhere: open"
    assert said(link_and_write) == "wrote elsewhere: open"
    assert said(lambda: (outside / "file").unlink()) == "wrote elsewhere: os.remove"
    assert said(lambda: os.mkdir(outside / "new")) == "wrote elsewhere: os.mkdir"
    assert said(lambda: (inside / "file").rename(outside / "f")) == "wrote elsewhere: os.rename"
