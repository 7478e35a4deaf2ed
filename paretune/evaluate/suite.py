"""All that a study scores: built once, applied to the base and to every arm alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretune.data.cloze import ClozeItem, cloze_items
from paretune.data.pairs import PairItem, pair_items
from paretune.data.rows import Document, Pair
from paretune.data.windows import Window, windows
from paretune.errors import UserError
from paretune.evaluate.cloze import cloze
from paretune.evaluate.decode.stops import LineEnds
from paretune.evaluate.diversity import sampled_answers
from paretune.evaluate.exact_match import exact_match
from paretune.evaluate.items import ArmModel, Items
from paretune.evaluate.likelihood import responses_bits_per_byte, windows_bits_per_byte
from paretune.evaluate.self_probe import Probe
from paretune.evaluate.target_drift import TargetDrift
from paretune.files import write_json
from paretune.model.load import end_of_text, load_config
from paretune.study.config import DRIFT, StudyConfig

if TYPE_CHECKING:
    from paretune.data.prepare import Prepared
    from paretune.evaluate.tasks.benchmarks import Benchmarks

# Which items are scored is the same for every study of the same data
ITEM_SEED = 0


class Suite:
    """The metrics of a study, over items that are fixed when it is built."""

    def __init__(
        self,
        config: StudyConfig,
        tokenizer: Any,
        folder: Path,
        *,
        windows_of: dict[str, list[Window]],
        cloze_of: dict[str, list[ClozeItem]],
        pairs: list[PairItem],
        benchmarks: Benchmarks | None = None,
    ) -> None:
        self._benchmarks = benchmarks
        self._config = config
        self._tokenizer = tokenizer
        self._folder = folder
        self._windows_of = windows_of
        self._cloze_of = cloze_of
        self._pairs = pairs
        self._row_tokens = config.training.block_length
        wanted = config.target.samples is not None or "exact_match" in config.target.metrics
        self._line_ends = LineEnds.of(tokenizer) if wanted else None
        self._probe: Probe | None = None
        self._drift: TargetDrift | None = None

    @classmethod
    def build(cls, config: StudyConfig, tokenizer: Any, prepared: Prepared, folder: Path) -> Suite:
        """Choose the items of every metric from the held-out rows and the source texts.

        Args:
            folder: STUDY_DIR/base, which keeps the self-probe's samples.

        Raises:
            UserError: held-out rows or a source text give no items.
        """
        length = config.training.block_length
        texts: dict[str, tuple[Sequence[Document], Sequence[str], int]] = {
            text.name: (prepared.texts[text.name], text.metrics, text.items)
            for text in config.source.texts
        }
        pairs: list[PairItem] = []
        if config.regime == "cpt":
            heldout = [row for row in prepared.heldout if isinstance(row, Document)]
            texts["target"] = (heldout, config.target.metrics, config.target.items)
        else:
            pairs = pair_items(
                [row for row in prepared.heldout if isinstance(row, Pair)],
                tokenizer,
                config.training.template,
                count=config.target.items,
                seed=ITEM_SEED,
                max_length=length,
            )
            _some(pairs, "target", "pairs")
        windows_of: dict[str, list[Window]] = {}
        cloze_of: dict[str, list[ClozeItem]] = {}
        for name, (documents, metrics, count) in texts.items():
            if {"bits_per_byte", *DRIFT} & set(metrics):
                windows_of[name] = windows(
                    documents, tokenizer, length=length, count=count, seed=ITEM_SEED
                )
                _some(windows_of[name], name, "windows")
            if "cloze" in metrics:
                cloze_of[name] = cloze_items(
                    documents, tokenizer, count=count, seed=ITEM_SEED, where=_key(name)
                )
        return cls(
            config,
            tokenizer,
            folder,
            windows_of=windows_of,
            cloze_of=cloze_of,
            pairs=pairs,
            benchmarks=benchmarks_of(config, tokenizer, folder),
        )

    def attach_base(self, base: ArmModel) -> None:
        """Keep what arms are compared with: the base's distributions on the self-probe, which is
        sampled or read back, and on held-out target text.

        Call it before ``score``; a study that compares nothing with the base has no need of it.
        """
        if self._config.source.self_probe is not None:
            self._probe = Probe.of(
                base,
                self._config.source.self_probe,
                self._tokenizer,
                self._folder / "probe.jsonl",
                row_tokens=self._row_tokens,
            )

        if set(self._config.target.metrics) & set(DRIFT):
            texts: Sequence[Window] | Sequence[PairItem] = (
                self._windows_of["target"] if self._config.regime == "cpt" else self._pairs
            )
            self._drift = TargetDrift(
                texts,
                base,
                reverse="reverse_kl" in self._config.target.metrics,
                row_tokens=self._row_tokens,
            )

    def score(self, arms: ArmModel) -> list[list[Items]]:
        """Outcomes of every arm: K lists, each in the order of ``config.metric_names()``."""
        by_metric: dict[str, list[Items]] = {}
        if self._config.source.self_probe is not None:
            if self._probe is None:
                raise ValueError("attach_base comes before score")
            drift = self._probe.score(arms)
            by_metric["self_probe/kl"] = [kl for kl, _ in drift]
            by_metric["self_probe/bits_per_byte"] = [bits for _, bits in drift]
        if set(self._config.target.metrics) & set(DRIFT):
            if self._drift is None:
                raise ValueError("attach_base comes before score")
            by_metric |= self._drift.score(arms)
        samples = self._config.target.samples
        if samples is not None:
            found = sampled_answers(
                arms,
                self._pairs,
                self._tokenizer,
                samples,
                answer_tokens=self._config.target.answer_tokens,
                line_ends=self._line_ends,
                row_tokens=self._row_tokens,
            )
            by_metric |= {f"target/{name}": of_arms for name, of_arms in found.items()}
        if self._benchmarks is not None:
            of_arms = self._benchmarks.score(arms)
            by_metric |= {name: [found[name] for found in of_arms] for name in of_arms[0]}
        names = self._config.metric_names()
        for name in names:
            if name not in by_metric:
                by_metric[name] = self._metric(name, arms)
        return [[by_metric[name][arm] for name in names] for arm in range(arms.count)]

    def _metric(self, name: str, arms: ArmModel) -> list[Items]:
        of, metric = name.split("/")
        if metric == "cloze":
            return cloze(arms, self._cloze_of[of], name, row_tokens=self._row_tokens)
        if metric == "exact_match":
            return exact_match(
                arms,
                self._pairs,
                self._tokenizer,
                name,
                answer_tokens=self._config.target.answer_tokens,
                line_ends=self._line_ends,
                row_tokens=self._row_tokens,
            )
        if of == "target" and self._config.regime == "ift":
            return responses_bits_per_byte(arms, self._pairs, name, row_tokens=self._row_tokens)
        return windows_bits_per_byte(arms, self._windows_of[of], name, row_tokens=self._row_tokens)


def benchmarks_of(config: StudyConfig, tokenizer: Any, folder: Path) -> Benchmarks | None:
    """The tasks of a study, and what they are in ``folder/tasks.json``; None without any."""
    if not config.target.tasks and not config.source.tasks:
        return None
    from paretune.evaluate.tasks.benchmarks import Benchmarks

    found = Benchmarks(
        {"target": config.target.tasks, "source": config.source.tasks},
        config.mirror,
        tokenizer,
        load_config(config.base),
        end_of_text(config.base),
        config.sandbox,
    )
    write_json(folder / "tasks.json", found.facts())
    return found


def _key(name: str) -> str:
    return "target.heldout" if name == "target" else f"source.texts.{name}"


def _some(items: Sequence[object], name: str, what: str) -> None:
    if not items:
        raise UserError(f"{_key(name)}: its rows give no {what} to score; give more or longer text")
