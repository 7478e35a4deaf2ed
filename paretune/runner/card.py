"""The model card of an arm, from its study's ledger."""

from __future__ import annotations

import re
from pathlib import Path

from paretune.errors import UserError
from paretune.files import write_text
from paretune.model.load import location
from paretune.report.card import model_card
from paretune.runner.ledger import Ledger
from paretune.runner.naming import find_arm, find_budget
from paretune.runner.record import read_record
from paretune.study.config import Base


def card(folder: Path | str, arm: str) -> str:
    """The model card of ``ARM[@BUDGET]`` in Markdown; without a budget that of its last score.

    Raises:
        UserError: no study, no such arm, no score at that budget.
    """
    ledger = Ledger.open(Path(folder))
    name, _, budget = arm.partition("@")
    arm_id = find_arm(ledger, name)
    have = sorted({int(row["tokens"]) for row in ledger.scores(arm_id)})
    if not have:
        raise UserError(f"{arm_id}: it has no scores yet; run the study on")
    tokens = find_budget(arm_id, budget, have, "score")
    return _text(ledger, arm_id, tokens)


def write_card(
    ledger: Ledger, arm_id: str, tokens: int, path: Path, *, merged: bool = False
) -> None:
    """Write the model card of an arm at a budget, with or without scores, to ``path``."""
    write_text(path, _text(ledger, arm_id, tokens, merged=merged))


def base_licence(base: Base) -> str | None:
    """The licence that the base's own model card states, where that is on this machine."""
    folder = Path(location(base))
    path: Path | None = folder / "README.md"
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(base.name, "README.md", revision=base.revision)
        except ValueError:  # not a name that a hub could have
            return None
        path = Path(cached) if isinstance(cached, str) else None
    if path is None or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    found = (
        re.search(r"^license:\s*[\"']?([\w.+-]+)", head.group(1), re.MULTILINE) if head else None
    )
    return found.group(1) if found else None


def _text(ledger: Ledger, arm_id: str, tokens: int, *, merged: bool = False) -> str:
    licence = base_licence(ledger.study().config.base)
    return model_card(read_record(ledger), arm_id, tokens, licence=licence, merged=merged)
