"""From a study's data settings to training blocks, held-out rows and source texts on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.data import store
from paretune.data.blocks import Blocks
from paretune.data.budgets import check_budgets, rows_needed
from paretune.data.build import Build, Note, dump, study_sources, text_file
from paretune.data.rows import Document, Pair
from paretune.data.sources import open_source
from paretune.data.template import resolve
from paretune.data.tokens import end_of_text, fingerprint
from paretune.errors import UserError
from paretune.study.config import StudyConfig

__all__ = ["Prepared", "check_budgets", "check_sources", "prepare"]


@dataclass
class Prepared:
    """All data of a study.

    Attributes:
        blocks: training data.
        heldout: target rows to score: documents (`cpt`) or pairs (`ift`).
        texts: documents of each source text, by its name.
        manifest: JSON values: for target, heldout and each text its source, counts, bad rows by
            reason and content hash; versions of packages; the files' hashes.
    """

    blocks: Blocks
    heldout: list[Document] | list[Pair]
    texts: dict[str, list[Document]]
    manifest: dict[str, Any]


def prepare(
    config: StudyConfig, tokenizer: Any, folder: Path, *, note: Note = lambda message: None
) -> Prepared:
    """Read, check, split, tokenise and pack a study's data into ``folder``, or take what is there.

    A complete folder is read back without touching the sources, so that a resumed study does not
    depend on what they hold now; one that a kill left incomplete is built again. Training data are
    read as far as the largest budget needs.

    Args:
        note: called with one line for the user about skipped rows and what was read.

    Raises:
        UserError: a source that cannot be read, too many bad rows, too little data for one batch,
            or a folder prepared for other settings.
    """
    end_of_text(tokenizer)
    settings = _settings(config, tokenizer)
    if not (folder / store.MANIFEST).exists():
        Build(config, tokenizer, folder, note).run(settings)
    manifest = store.check(folder, settings)
    heldout = folder / store.HELDOUT
    return Prepared(
        blocks=Blocks(folder, config.regime),
        heldout=store.read_pairs(heldout)
        if config.regime == "ift"
        else store.read_documents(heldout),
        texts={
            text.name: store.read_documents(folder / text_file(text.name))
            for text in config.source.texts
        },
        manifest=manifest,
    )


def check_sources(config: StudyConfig) -> list[str]:
    """What can be said about the data before reading them: a message for each source that is wrong.

    Paths that are not there, packages that are not installed, data of the wrong sort.
    """
    messages = []
    for where, data, pairs in study_sources(config):
        try:
            open_source(data, where=where, pairs=pairs)
        except UserError as error:
            messages.append(str(error))
    return messages


def _settings(config: StudyConfig, tokenizer: Any) -> dict[str, Any]:
    """All that decides what the data folder holds, by the key of the study file."""
    heldout = config.target.heldout
    settings: dict[str, Any] = {
        "regime": config.regime,
        "target.data": dump(config.target.data),
        "target.heldout": heldout if isinstance(heldout, float) else dump(heldout),
        "target.items": config.target.items,
        "source.texts": [
            {"name": text.name, "data": dump(text.data), "items": text.items}
            for text in config.source.texts
        ],
        "training.block_length": config.training.block_length,
        "budgets.at (rows of training data needed; null: all)": rows_needed(config),
        "base (fingerprint of its tokenizer)": fingerprint(tokenizer),
    }
    if config.regime == "ift":
        settings["training.template"] = resolve(config.training.template, tokenizer)
    return settings
