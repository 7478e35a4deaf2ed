"""What a study began with: its format, base and data; every later run is compared with that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from paretune.data.build import study_sources
from paretune.data.local_files import find_files
from paretune.errors import UserError
from paretune.files import sha256
from paretune.model.fingerprint import changes_of, differences, file_facts, fingerprint
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.repair import Repair, Say
from paretune.study.config import StudyConfig
from paretune.study.sources import Files


def check_origin(ledger: Ledger, config: StudyConfig) -> list[str]:
    """Record the base and the data files a new study begins with, or compare with what it did.

    Data that are not there any more are no mistake: their tokens are in the study's folder.

    Returns:
        Remarks for the user.

    Raises:
        UserError: the base or a data file has changed, with the difference.
    """
    facts, remarks = ledger.facts(), []
    base = fingerprint(config.base, facts.get("base"))
    before = facts.get("base", base)
    changed = changes_of(before, base)
    if changed:
        raise UserError(_refusal(ledger.folder, f"the base {config.base.name}", changed))
    sources: dict[str, Any] = {}
    for where, data, _ in study_sources(config):
        if not isinstance(data, Files):
            continue
        known = facts.get("sources", {}).get(where)
        try:
            paths = find_files(data, where=where)
        except UserError:
            if known is None:
                raise
            remarks.append(f"{where}: the data are not there any more; the prepared tokens serve")
            sources[where] = known
            continue
        sources[where] = file_facts({str(path): path for path in paths}, known=known)
        # By name below a common folder: the same files may lie elsewhere on another machine
        changed = differences(_by_name(known or sources[where]), _by_name(sources[where]))
        if changed:
            raise UserError(_refusal(ledger.folder, where, changed))
    ledger.set_facts(base=base, sources=sources)
    return remarks


def check_prepared(ledger: Ledger, manifest: dict[str, Any]) -> None:
    """Record the content of the prepared data, or compare it with what the study began with.

    Raises:
        UserError: they had to be prepared again, and came out differently.
    """
    now = manifest["files"]
    before = ledger.facts().get("prepared", now)
    changed = differences(before, now)
    if changed:
        raise UserError(_refusal(ledger.folder, "the prepared data", changed))
    ledger.set_facts(prepared=now)


def same_threads(ledger: Ledger, device: torch.device) -> None:
    """On a CPU, compute with as many threads as the study began with: sums depend on it in bits."""
    if device.type == "cpu":
        threads = int(ledger.facts().get("threads", torch.get_num_threads()))
        torch.set_num_threads(threads)
        ledger.set_facts(threads=threads)


@contextmanager
def same_probe(ledger: Ledger, say: Say) -> Iterator[None]:
    """Around the sampling or reading of the self-probe: its text is the one the study began with.

    Raises:
        UserError: it was damaged, and this machine samples another.
    """
    path = ledger.arm_folder(BASE) / "probe.jsonl"
    known = ledger.facts().get("probe")
    if known and path.exists() and sha256(path) != known:
        Repair(ledger, say).aside(path, "its checksum differs")
    yield
    if not path.exists():
        return
    if known and sha256(path) != known:
        raise UserError(
            f"{path}: the self-probe was damaged, and this machine does not sample the same text "
            "again. Put the file back, or begin a new study with --out"
        )
    ledger.set_facts(probe=sha256(path))


def _refusal(folder: Path, what: str, changed: list[str]) -> str:
    return (
        f"{folder}: {what} changed since the study began: {'; '.join(changed[:3])}. Results from "
        "both must not be mixed: put the old one back, or begin a new study with --out"
    )


def _by_name(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts by the files' paths below the folder that holds all of them."""
    if not facts:
        return {}
    root = os.path.commonpath([Path(name).parent for name in facts])
    return {str(Path(name).relative_to(root)): value for name, value in facts.items()}
