"""One trial: a study in a folder of its own, a fault, and what came of it."""

from __future__ import annotations

import csv
import io
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_lab.processes import Child, command, spawn

KEY = ["arm", "tokens", "metric"]


@dataclass
class Reference:
    """The undisturbed study: its table, its seconds, and the bytes of its folder."""

    csv: str
    seconds: float
    bytes: int


@dataclass
class Trial:
    """What a fault may use, and the record of what happened."""

    kind: str
    seed: int
    folder: Path
    control: Path
    reference: Reference
    mode: str
    chance: random.Random
    notes: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    finished: Child | None = None
    _count: int = 0

    @property
    def out(self) -> Path:
        """The study's folder."""
        return self.folder / "out"

    @property
    def bytes(self) -> int:
        """What the undisturbed study's folder takes."""
        return self.reference.bytes

    def run(self, before: Callable[[], None] | None = None) -> Child:
        """Start ``paretune run``."""
        self._count += 1
        log = self.folder / f"{self._count}.log"
        arguments = ("run", "study.yaml", "--out", "out", "--no-report", "--device", "cpu")
        return spawn(command(*arguments, cwd=self.folder), log, before)

    def sleep(self, most: float | None = None) -> None:
        """A random time: up to about the length of the study, or up to ``most`` seconds."""
        time.sleep(self.chance.uniform(0, 1.1 * self.reference.seconds if most is None else most))

    def until(self, true: Callable[[], bool], child: Child) -> None:
        """Wait for something while a child runs."""
        while not true() and child.running():
            time.sleep(0.01)

    def expect(self, child: Child, *codes: int) -> None:
        """Wait for a child; another exit code, or a traceback, is noted as unclear."""
        code = child.wait()
        self.notes.append(str(code))
        text = child.errors
        if code not in codes or "Traceback" in text or (code == 74 and text.count("error:") != 1):
            self.unclear.append(f"exit code {code}: {text[-600:]}")

    def refused(self, child: Child, words: str) -> None:
        """Wait for a child that must refuse with one message."""
        code, text = child.wait(), child.errors
        self.notes.append(f"refused {code}")
        if code != 2 or words not in text or len(text.splitlines()) != 1:
            self.unclear.append(f"not refused as it should be ({code}): {text[-600:]}")

    def note(self, text: str) -> None:
        """Keep a remark about what was done."""
        self.notes.append(text)

    def finish(self) -> None:
        """Run the same command again, undisturbed, to the end."""
        self.finished = self.run()
        self.finished.wait()

    @contextmanager
    def mounted(self, kind: str, option: str) -> Iterator[None]:
        """The study's folder as a file system of its own."""
        self.out.mkdir()
        source = ("-o", "loop", option) if kind == "loop" else ("-t", kind, "-o", option, kind)
        self.shell("mount", *source, str(self.out))
        if (self.out / "lost+found").exists():
            (self.out / "lost+found").rmdir()
        try:
            yield
            self.judged = self.judge()
        finally:
            subprocess.run(["umount", "-l", str(self.out)], check=False)

    judged: dict[str, Any] | None = None

    def shell(self, *words: str) -> None:
        """Run a program that must succeed."""
        subprocess.run(words, check=True, capture_output=True)

    def judge(self) -> dict[str, Any]:
        """Whether the study ended complete and identical, or refused with one clear message."""
        if self.judged is not None:
            return self.judged
        if self.finished is None:
            self.finish()
        assert self.finished is not None
        code, text = self.finished.wait(), self.finished.errors
        result: dict[str, Any] = {"lost": 0, "mixed": 0, "code": code}
        if code in (2, 74) and len(text.splitlines()) == 1 and "Traceback" not in text:
            return {**result, "end": "refused", "message": text.strip()}
        if code != 0:
            return {**result, "end": "failed", "message": text[-1500:]}
        table = results(self.out, self.folder)
        if table == self.reference.csv:
            return {**result, "end": "identical"}
        lost, mixed = compared(self.reference.csv, table)
        return {**result, "end": "different", "lost": lost, "mixed": mixed}


def results(out: Path, folder: Path) -> str:
    """The table that ``paretune report`` would write, made in a process of its own."""

    def work() -> None:
        from paretune.analyse.results import tidy, to_csv
        from paretune.runner.record import record_of

        (folder / "results.csv").write_text(to_csv(tidy(record_of(out))))

    child = spawn(work, folder / "results.log")
    return (folder / "results.csv").read_text() if child.wait() == 0 else child.errors


def compared(expected: str, found: str) -> tuple[int, int]:
    """Scores that are missing, and scores that are other numbers."""
    tables = [
        {tuple(row[k] for k in KEY): row["value"] for row in csv.DictReader(io.StringIO(text))}
        for text in (expected, found)
    ]
    lost = sum(key not in tables[1] for key in tables[0])
    mixed = sum(tables[1].get(key, value) != value for key, value in tables[0].items())
    return lost, mixed + sum(key not in tables[0] for key in tables[1])
