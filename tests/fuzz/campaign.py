"""The fuzzing campaigns: many inputs, every command that reads them, and what went wrong."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzzed_ledgers import Damage, apply, copy_of, damages, files_of, untouched
from fuzzed_studies import study_texts
from fuzzing import Finding, survives
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import paretune
from paretune.study.config import Study
from paretune.study.yamlfile import dump_study, load_study

sys.path.insert(0, str(Path(__file__).parents[1] / "runner"))

from runner_helpers import small_study

STUDY_SECONDS = 10.0
COMMAND_SECONDS = 60.0
ARMS = "  - {method: lora, rank: [1, 2], learning_rate: 5e-3}"


@dataclass
class Campaign:
    """How many inputs were tried, how many were taken, and what went wrong, by kind."""

    tried: int = 0
    taken: int = 0
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)

    def add(self, done: bool, found: Finding | None, input_: object = "") -> None:
        """Count one input."""
        self.tried += 1
        self.taken += done
        if found is not None:
            detail = f"{input_!r}\n{found.detail}"
            self.findings.setdefault(found.what, []).append(Finding(found.what, detail))

    def join(self, other: Campaign) -> None:
        """Add what another campaign did."""
        self.tried += other.tried
        self.taken += other.taken
        self.commands += other.commands
        for what, found in other.findings.items():
            self.findings.setdefault(what, []).extend(found)

    def told(self) -> str:
        """What went wrong: each kind with how often, and its first example."""
        return "\n\n".join(
            f"{len(found)} x {what}\n{found[0].detail[:4000]}"
            for what, found in sorted(self.findings.items(), key=lambda item: -len(item[1]))
        )


def _hypothesis(count: int, number: int, *strategies: Any) -> Callable[[Any], Any]:
    """Call a function with ``count`` drawn inputs; the same ones for the same ``number``."""

    def decorate(function: Any) -> Any:
        drawn = given(*strategies)(function)
        chosen = settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return seed(number)(chosen(drawn))

    return decorate


def studies(count: int, number: int) -> Campaign:
    """Mutated study files: read, and what is sound is written out and read again."""
    campaign = Campaign()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "study.yaml"

        def read() -> Study:
            study = load_study(file)
            again = folder / "again.yaml"
            again.write_text(dump_study(study), encoding="utf-8")
            if load_study(again).arms != study.arms:
                raise AssertionError("the study that is written out is another one")
            return study

        @_hypothesis(count, number, study_texts())
        def one(text: str) -> None:
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
            campaign.add(*survives(read, within=(folder,), seconds=STUDY_SECONDS), text[:3000])

        one()
    return campaign


def finished_study(folder: Path) -> tuple[Study, Path]:
    """A small study that has run, and its ledger, with a report."""
    study = small_study(folder, arms=ARMS, at="4ba, 8ba")
    return study, paretune.run(study, folder / "original")


def ledgers(count: int, number: int, study: Study, original: Path) -> Campaign:
    """Damaged ledgers: each is given to a command; beside its folder nothing may change."""
    campaign = Campaign()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "case"
        folder.mkdir()
        made = folder / "made"
        commands: dict[str, Callable[[Path, str], object]] = {
            "status": lambda ledger, arm: paretune.status(ledger),
            "record": lambda ledger, arm: _whole_record(ledger),
            "claims": lambda ledger, arm: paretune.claims(ledger),
            "advise": lambda ledger, arm: paretune.advise(ledger),
            "card": lambda ledger, arm: paretune.card(ledger, arm),
            "compare": lambda ledger, arm: paretune.compare(
                [str(ledger), "paper:code_cpt"], made / "page.html"
            ),
            "export": lambda ledger, arm: paretune.export(ledger, arm, made / "adapter"),
            "run": lambda ledger, arm: paretune.run(study, ledger, report=False),
            "report": lambda ledger, arm: paretune.write_report(ledger),
        }
        arms = sorted(path.name for path in (original / "arms").iterdir())
        # Those that take long come less often
        often = [c for c in commands if c not in ("run", "report")] * 7 + ["run"] * 2 + ["report"]

        @_hypothesis(
            count,
            number,
            damages(files_of(original)),
            st.sampled_from(often),
            st.sampled_from(arms),
        )
        def one(done: list[Damage], command: str, arm: str) -> None:
            ledger = copy_of(original, folder)
            for damage in done:
                apply(damage, ledger)
            made.mkdir()
            campaign.commands[command] += 1
            worked, found = survives(
                lambda: commands[command](ledger, arm),
                within=(ledger, made),
                seconds=COMMAND_SECONDS,
            )
            if found is None and not untouched(folder):
                found = Finding("changed a file beside the study", "")
            campaign.add(worked, found, (command, arm, done))

        one()
    return campaign


def _whole_record(ledger: Path) -> None:
    """Everything that the Python interface reads, tables and curves and items included."""
    record = paretune.load(ledger)
    paretune.tidy(record)
    for arm in record.arms:
        record.curve(arm)
        for row in record.scores[record.scores["arm"] == arm].itertuples():
            record.items(arm, row.tokens, row.metric)
