"""Bytes and seconds in words."""

from __future__ import annotations

import pytest

from paretune.study.units import duration, size


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1 kB"),
        (1500, "1.5 kB"),
        (999_700, "1 MB"),
        (80_000_000, "80 MB"),
        (1.28e9, "1.28 GB"),
        (5e12, "5 TB"),
    ],
)
def test_bytes(count: float, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (7200, "2.0 h")],
)
def test_seconds(seconds: float, words: str) -> None:
    assert duration(seconds) == words
