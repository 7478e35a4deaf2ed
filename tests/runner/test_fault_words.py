"""Failures of the disk in the user's own names of things."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from paretune.files import keep_json, make_folder, write_text
from paretune.runner.faults import explain


def test_a_file_that_may_not_be_written_goes_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written beside its place first, under a name that the user never gave."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError) as caught:
        write_text(tmp_path / "card.md", "text")
    assert "card.md." in str(caught.value), "the name of the temporary file"
    told = explain(caught.value)
    assert told is not None
    assert told.startswith(
        f"{tmp_path / 'card.md'}: writing is not allowed (Permission denied). Mend that."
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_what_cannot_be_kept_in_a_folder_of_others_is_said(
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    path = tmp_path / "advice.json"
    monkeypatch.setattr(Path, "open", refuse)
    if number == errno.ENOSPC:  # the disk can be mended
        with pytest.raises(OSError, match="No space"):
            keep_json(path, {})
    else:
        keep_json(path, {})
        assert caplog.messages == [f"{path} is not written: its folder can only be read"]


@pytest.mark.parametrize("make", [make_folder, lambda path: write_text(path, "text")])
def test_a_folder_in_which_nothing_can_be_made_is_named(make: Callable[[Path], None]) -> None:
    """/proc answers that there is no such file, whatever is to be made there."""
    with pytest.raises(PermissionError) as caught:
        make(Path("/proc/study"))
    told = explain(caught.value)
    assert told is not None
    assert told.startswith("/proc/study: writing is not allowed (nothing can be made there)")
