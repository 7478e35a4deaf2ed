"""The portions for a GPU: every command is one that its script takes, and each runs by itself."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
import on_a_gpu  # noqa: E402
from on_a_gpu import PORTIONS, Step  # noqa: E402

SCRIPTS = sorted(
    {step.words for steps in PORTIONS.values() for step in steps if not step.words.startswith("-m")}
)


class Parsed(Exception):
    """The words were taken."""


@pytest.mark.parametrize("words", SCRIPTS)
def test_a_script_takes_its_words(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = argparse.ArgumentParser.parse_args
    taken: list[argparse.Namespace] = []

    def parse(self: argparse.ArgumentParser, *_: Any) -> Any:
        taken.append(real(self))
        raise Parsed

    asked = argparse.Namespace(out=Path("out"), shared=Path("s"), work=Path("w"), tiny=True)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    script = importlib.import_module(words.split()[0].removesuffix(".py"))
    monkeypatch.setattr(sys, "argv", on_a_gpu.command(Step(words, 1), asked)[1:])
    claims = getattr(script, "CLAIMS", None)
    with pytest.raises(Parsed):
        script.main() if claims is None else claims.main(script.__doc__)
    assert taken[0].results == Path("out/results")
    if claims is not None:
        assert set(taken[0].rows.split(",")) <= set(claims.functions)


def test_a_portion_ends_in_less_than_ten_minutes() -> None:
    for name, steps in PORTIONS.items():
        assert sum(step.seconds for step in steps) <= 9.5 * 60, name
        assert all(not step.limit or step.limit > step.seconds for step in steps), name


def test_every_claim_about_a_cohort_is_in_a_portion() -> None:
    cohort = importlib.import_module("cohort")
    words = " ".join(step.words for steps in PORTIONS.values() for step in steps).replace(",", " ")
    assert set(cohort.CLAIMS.functions) <= set(words.split())


def test_what_fails_or_is_slow_does_not_hurt_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (
        Step("-m nothing_of_this_name", 90),
        Step("-m http.server 0", 9, 2),
        Step("-m this", 90),
    )
    monkeypatch.setattr(on_a_gpu, "PORTIONS", {"check": steps})
    words = ["on_a_gpu.py", "--portion", "check", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*words, "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit) as ended:
        on_a_gpu.main()
    assert ended.value.code
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [one["end"] for one in summary] == ["exit code 1", "out of time", "done"]
    assert summary[1]["seconds"] < 60
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "No module named nothing_of_this_name" in log
    assert "Beautiful is better than ugly" in log
