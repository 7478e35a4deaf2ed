"""Handing an arm to others: a PEFT adapter, or a merged Hugging Face model."""

from __future__ import annotations

import shutil
from pathlib import Path

from paretune.errors import UserError
from paretune.files import make_folder
from paretune.model.export import ADAPTER, merge, peft_differs, save_tokenizer
from paretune.runner.card import write_card
from paretune.runner.ledger import Ledger
from paretune.runner.naming import find_arm, find_budget


def export(
    folder: Path | str, arm: str, to: Path | str, *, merged: bool = False
) -> tuple[str, int, Path]:
    """Write an arm's checkpoint where PEFT or transformers loads it, with a model card beside it.

    Args:
        folder: the study.
        arm: an arm's id, or the beginning or end of one, optionally with a budget: ``ID@64k``.
            Without a budget the last checkpoint is taken.
        to: a folder that is not there yet, or is empty.
        merged: for a LoRA arm, W0 + Delta as a whole model instead of the adapter.

    Returns:
        The arm's id, the budget in tokens, and ``to``.

    Raises:
        UserError: no such arm, budget or checkpoint; a damaged file; ``to`` is in use; PEFT would
            load something else than what was trained.
    """
    ledger, to = Ledger.open(Path(folder)), Path(to)
    name, _, budget = arm.partition("@")
    arm_id = find_arm(ledger, name)
    tokens = _budget(ledger, arm_id, budget)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"{to}: already there and not empty; give another folder with --to")
    checkpoint = ledger.check_checkpoint(arm_id, tokens)
    base = ledger.study().config.base
    if merged and (checkpoint / ADAPTER).exists():
        merge(checkpoint, base, to)
        write_card(ledger, arm_id, tokens, to / "README.md", merged=True)
        return arm_id, tokens, to
    if (checkpoint / ADAPTER).exists() and (reason := peft_differs(checkpoint, base)):
        raise UserError(
            f"{arm_id}: PEFT would not apply this adapter as it was trained ({reason}); "
            "write the whole model instead, with --merge"
        )
    make_folder(to)
    for path in sorted(checkpoint.iterdir()):
        if path.name != "checksums.json":
            shutil.copy2(path, to / path.name)
    if not (checkpoint / ADAPTER).exists():
        save_tokenizer(to, base)
    write_card(ledger, arm_id, tokens, to / "README.md")
    return arm_id, tokens, to


def _budget(ledger: Ledger, arm_id: str, budget: str) -> int:
    folder = ledger.arm_folder(arm_id) / "checkpoints"
    have = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    if not have:
        raise UserError(
            f"{arm_id}: no checkpoint is kept; run the study with checkpoints: {{keep: last}}"
        )
    return find_budget(arm_id, budget, have, "checkpoint")
