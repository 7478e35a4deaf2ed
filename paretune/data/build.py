"""Building a study's data folder: hold out, read, check, tokenise and pack, every file whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from paretune.data import store
from paretune.data.blocks import LOSS_MASK, SEGMENTS, TOKENS
from paretune.data.budgets import rows_needed
from paretune.data.pack import pack_documents, pack_pairs, too_long
from paretune.data.pieces import split_by_position
from paretune.data.rows import Document, Pair, Row, RowCounts, content_hash, update_hash
from paretune.data.sample import Sample, sample_documents, sample_pairs
from paretune.data.sources import Source, open_source
from paretune.data.split import Copies, Split, choose_split
from paretune.data.template import encode_pairs
from paretune.errors import UserError
from paretune.study.config import StudyConfig
from paretune.study.sources import DataConfig

Note = Callable[[str], None]


class Build:
    """One preparation; every file is written whole, and the manifest last."""

    def __init__(self, config: StudyConfig, tokenizer: Any, folder: Path, note: Note) -> None:
        self.config, self.tokenizer, self.folder, self.note = config, tokenizer, folder, note
        self.pairs = config.regime == "ift"
        self.length = config.training.block_length

    def run(self, settings: dict[str, Any]) -> None:
        """Write everything; ``settings`` go into the manifest, to be compared on a later call."""
        store.start(self.folder)
        opened = {
            where: open_source(data, where=where, pairs=pairs)
            for where, data, pairs in study_sources(self.config)
        }
        names = [TOKENS, *((SEGMENTS, LOSS_MASK) if self.pairs else ()), store.HELDOUT]
        manifest: dict[str, Any] = {"settings": settings, "texts": {}}
        for text in self.config.source.texts:
            where = f"source.texts.{text.name}"
            source, counts = opened[where], self._counts(where)
            sample = sample_documents(
                cast(Iterator[Document], counts.keep(source.rows(_everything))),
                items=text.items,
                block_length=self.length,
            )
            about = self._about(source, counts)
            name = text_file(text.name)
            facts = self._write_sample(sample, name, counts)
            manifest["texts"][text.name] = {"source": dump(text.data), **facts, **about}
            names.append(name)
        manifest["heldout"], manifest["target"] = self._target(opened)
        store.finish(self.folder, names, manifest)

    def _target(self, opened: dict[str, Source]) -> tuple[dict[str, Any], dict[str, Any]]:
        source, counts = opened["target.data"], self._counts("target.data")
        share = self.config.target.heldout
        if isinstance(share, float):
            split = choose_split(source.labels(self._counts("target.data")), share)
            if split.level == "position":
                sample, training = self._halves(source, counts, split)
            else:
                out = counts.keep(source.rows(split.heldout))
                sample = self._sample(out, counts)
                training = counts.keep(source.rows(lambda id, group: not split.heldout(id, group)))
            heldout: dict[str, Any] = {"source": "target.data", "split": split.manifest()}
            heldout |= self._write_sample(sample, store.HELDOUT, counts)
        else:
            own, own_counts = opened["target.heldout"], self._counts("target.heldout")
            sample = self._sample(own_counts.keep(own.rows(_everything)), own_counts)
            heldout = {"source": dump(share), **self._about(own, own_counts)}
            heldout |= self._write_sample(sample, store.HELDOUT, own_counts)
            training = counts.keep(source.rows(_everything))
        kept = heldout["kept"]
        return heldout, self._train(source, counts, training, Copies.of(sample.read), kept)

    def _train(
        self,
        source: Source,
        counts: RowCounts,
        training: Iterable[Row],
        copies: Copies,
        kept: int,
    ) -> dict[str, Any]:
        digest = hashlib.sha256()
        read = {"rows_read": 0, "bytes_read": 0}

        def fresh() -> Iterator[Row]:
            for row in training:
                reason = copies.reason(row)
                if reason:
                    counts.dropped[reason] += 1
                    continue
                update_hash(digest, row)
                read["rows_read"] += 1
                read["bytes_read"] += row.size
                yield row

        most = rows_needed(self.config)
        if self.pairs:
            packed = pack_pairs(
                cast(Iterator[Pair], fresh()),
                self.tokenizer,
                self.config.training.template,
                self.folder,
                block_length=self.length,
                counts=counts,
                most=most,
            )
        else:
            packed = pack_documents(
                cast(Iterator[Document], fresh()),
                self.tokenizer,
                self.folder,
                block_length=self.length,
                most=most,
            )
        about = self._about(source, counts)
        batch = self.config.training.batch_size
        if packed["blocks"] < batch:
            copies_of = counts.dropped.total()
            without = f" ({copies_of:,} rows that copy held-out ones left out)" if copies_of else ""
            raise UserError(
                f"target.data: the training data fill {packed['blocks']} blocks of {self.length} "
                f"tokens{without}, and a batch takes {batch}. Give more data, or lower "
                "training.batch_size or training.block_length"
            )
        kind, scored = "documents", ""
        if self.pairs:
            kind, scored = "pairs", f"; {min(kept, self.config.target.items):,} held out to score"
        self.note(
            f"target.data: {read['rows_read']:,} {kind} to train on, {packed['blocks']:,} blocks "
            f"of {self.length} tokens{scored}"
        )
        return {
            "source": dump(self.config.target.data),
            **read,
            **packed,
            "whole": most is None or packed["blocks"] < most,
            "sha256": digest.hexdigest(),
            **about,
        }

    def _halves(
        self, source: Source, counts: RowCounts, split: Split
    ) -> tuple[Sample, Iterable[Row]]:
        """The only document there is, cut in two."""
        rows = list(counts.keep(source.rows(_everything)))
        if not rows:
            self._check(counts)
        if self.pairs:
            raise UserError(
                "target.data: one pair cannot be split into training and held-out data: give more, "
                "or a data set of its own under target.heldout"
            )
        document = cast(Document, rows[0])
        head, tail = split_by_position(document, split.share)
        if not (head.text.strip() and tail.text.strip()):
            raise UserError(
                f"target.data: {document.id} is too short to hold a part of it out: give more text"
            )
        return self._sample(iter([tail]), counts), [head]

    def _sample(self, rows: Iterator[Row], counts: RowCounts) -> Sample:
        items = self.config.target.items
        if not self.pairs:
            documents = cast(Iterator[Document], rows)
            return sample_documents(documents, items=items, block_length=self.length)
        sample = sample_pairs(cast(Iterator[Pair], rows), items=items)
        pairs = cast(list[Pair], sample.kept)
        encoded = encode_pairs(pairs, self.tokenizer, self.config.training.template)
        kept = []
        for pair, (prompt, response) in zip(pairs, encoded, strict=True):
            if len(prompt) + len(response) <= self.length:
                kept.append(pair)
            else:
                counts.good -= 1
                counts.add_bad(too_long(pair, self.length))
        return Sample(kept, sample.read)

    def _write_sample(self, sample: Sample, name: str, counts: RowCounts) -> dict[str, Any]:
        """Write evaluation rows and return what the manifest says of them."""
        if not sample.kept:
            counts.check()
            raise UserError(f"{counts.where}: no row is left to hold out: give more data")
        store.write_rows(self.folder / name, sample.kept)
        return {
            "kept": len(sample.kept),
            "kept_bytes": sum(row.size for row in sample.kept),
            "groups": sorted({row.group for row in sample.kept}),
            "sha256": content_hash(sample.kept),
        }

    def _about(self, source: Source, counts: RowCounts) -> dict[str, Any]:
        """Check and show the counts of rows; with the source's facts they go in the manifest."""
        self._check(counts)
        counts.dropped.update(source.left_out)
        return {**counts.manifest(), **source.facts()}

    def _counts(self, where: str) -> RowCounts:
        return RowCounts(where, self.config.training.max_bad_rows)

    def _check(self, counts: RowCounts) -> None:
        counts.check()
        if not counts.good:
            raise UserError(f"{counts.where}: there are no rows in it")
        counts.show(self.note)


def _everything(id: str, group: str) -> bool:
    return True


def study_sources(config: StudyConfig) -> Iterator[tuple[str, DataConfig, bool]]:
    """Key, data and whether they must be pairs, of everything a study reads."""
    pairs = config.regime == "ift"
    yield "target.data", config.target.data, pairs
    if not isinstance(config.target.heldout, float):
        yield "target.heldout", config.target.heldout, pairs
    for text in config.source.texts:
        yield f"source.texts.{text.name}", text.data, False


def dump(data: DataConfig) -> dict[str, Any]:
    """A source's settings as in the study file."""
    return data.model_dump(mode="json", by_alias=True, exclude_none=True)


def text_file(name: str) -> str:
    """Where a source text is kept in the data folder."""
    return f"{store.TEXTS}/{name}.jsonl"
