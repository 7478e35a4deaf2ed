"""A study's benchmark tasks: loaded and packed once, answered by the base and every arm alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np

from paretune.data.mirror import Mirror
from paretune.errors import UserError
from paretune.evaluate.items import ArmModel, Items, Side
from paretune.evaluate.sandbox.registry import AUTO
from paretune.evaluate.tasks.code import Code, runs_code
from paretune.evaluate.tasks.encode import Encoder
from paretune.evaluate.tasks.harness import load
from paretune.evaluate.tasks.log_likelihood import LogLikelihoods
from paretune.evaluate.tasks.outcomes import check_metrics, mean_items, task_items
from paretune.evaluate.tasks.portions import Portion, made
from paretune.evaluate.tasks.write import Writing
from paretune.study.tasks import FORGETTING_SCORE, FORGETTING_TASKS, Task

KINDS = {"loglikelihood", "loglikelihood_rolling", "generate_until"}


@dataclass
class Loaded:
    """A task with its requests.

    Attributes:
        where: its key in the study file.
        parts: the harness's task objects, each with its ``instances``, the requests.
        prompts_cut: of each part, how many of the prompts to continue were cut.
        portions: of each part, the log-likelihoods it asks for.
    """

    task: Task
    side: Side
    where: str
    parts: list[Any]
    prompts_cut: list[int] = field(default_factory=list)
    portions: list[list[Portion]] = field(default_factory=list)

    def notes(self, max_length: int) -> list[str]:
        """What a reader of its scores should know; all of it once the requests are tokenized."""
        found = []
        for part, prompts, portions in zip(
            self.parts, self.prompts_cut, self.portions, strict=True
        ):
            cut = prompts + sum(portion.cut for portion in portions)
            if cut:
                found.append(
                    f"{cut} of {len(part.instances)} prompts of {part.task_name} are cut from the "
                    f"left to fit the model's context of {max_length} tokens"
                )
        return found


class Benchmarks:
    """Tasks of the lm-evaluation-harness, answered by Paretune's own engine.

    Args:
        tasks: by side.
        mirror: local files in the place of the hub's data sets.
        model_config: the base's, which knows the length of its context.
        end_of_text: tokens with which the base ends what it writes.
        sandbox: where tasks run the programs that a model wrote.

    Raises:
        UserError: a task that is not there, cannot be loaded, or asks what cannot be answered.
    """

    def __init__(
        self,
        tasks: Mapping[Side, Sequence[Task]],
        mirror: Mapping[str, str],
        tokenizer: Any,
        model_config: Any,
        end_of_text: frozenset[int] = frozenset(),
        sandbox: str = AUTO,
    ) -> None:
        self._code = Code(sandbox)
        self._encoder = Encoder(tokenizer, model_config, end_of_text)
        self._asked: dict[int, slice] = {}  # which log-likelihoods an instance (by its id) asks for
        self._asked_for = 0
        self.writing = Writing(self._encoder)
        self._loaded = []
        for side, of_side in tasks.items():
            for index, task in enumerate(of_side):
                where = f"{side}.tasks[{index}]"
                with self._code.loading():
                    parts = load(task, Mirror(mirror), where)
                loaded = Loaded(task, side, where, parts)
                if not runs_code(parts):
                    check_metrics(task, parts, where)
                for part in loaded.parts:
                    self._encode(loaded, part)
                self._loaded.append(loaded)
        self.likelihoods = LogLikelihoods(
            [each for loaded in self._loaded for portions in loaded.portions for each in portions]
        )

    def score(self, arms: ArmModel) -> list[dict[str, Items]]:
        """Outcomes by metric, for each arm; the forgetting score where its tasks are there."""
        nats_KN, greedy_KN = self.likelihoods.score(arms)
        plain = self.likelihoods.refusal(arms) if self._asked else None
        written = self.writing.answers(arms)
        results = []
        for arm in range(arms.count):
            found: dict[str, Items] = {}
            for loaded in self._loaded:
                answers = [
                    [
                        written[arm][id(instance)]
                        if instance.request_type == "generate_until"
                        else self._likelihood(instance, nats_KN[arm], greedy_KN[arm])
                        for instance in part.instances
                    ]
                    for part in loaded.parts
                ]
                found |= {items.metric: items for items in self._items(loaded, answers, plain)}
            self._add_mean(found)
            results.append(found)
        return results

    def facts(self) -> list[dict[str, Any]]:
        """What a reader needs to know of each task: versions, shots, documents, notes."""
        return [
            {
                "task": loaded.task.name,
                "side": loaded.side,
                "lm_eval": metadata.version("lm_eval"),
                "notes": loaded.notes(self._encoder.max_length),
                "parts": [
                    {
                        "name": part.task_name,
                        "version": part.VERSION,
                        "num_fewshot": part.get_config("num_fewshot"),
                        "data": [part.DATASET_PATH, part.DATASET_NAME],
                        "documents": len({instance.doc_id for instance in part.instances}),
                        "requests": len(part.instances),
                    }
                    for part in loaded.parts
                ],
            }
            for loaded in self._loaded
        ]

    def _items(
        self, loaded: Loaded, answers: list[list[list[Any] | None]], plain: str | None
    ) -> list[Items]:
        """One arm's outcomes of a task, with what a reader of them should know."""
        ended: str | None = None

        def results() -> list[Items]:
            return task_items(loaded.task, loaded.parts, answers, loaded.side, loaded.where)

        if runs_code(loaded.parts):
            items, ended = self._code.judged(results)
        else:
            items = results()
        notes = [*loaded.notes(self._encoder.max_length), ended]
        if plain is not None and any(loaded.portions):
            notes.append(f"scored from plain rows, not from packed trees: {plain}")
        return [replace(i, note="; ".join(filter(None, [*notes, i.note])) or None) for i in items]

    def _encode(self, loaded: Loaded, part: Any) -> None:
        kinds = {instance.request_type for instance in part.instances}
        if not kinds <= KINDS:
            raise UserError(
                f"{loaded.where}: {part.task_name} asks for {', '.join(sorted(kinds - KINDS))}, "
                "which a language model of text cannot answer"
            )
        pairs = [each for each in part.instances if each.request_type == "loglikelihood"]
        portions = self._encoder.portions([each.args for each in pairs], self._asked_for)
        for instance in pairs:
            self._asks(instance, 1)
        rolling = [each for each in part.instances if each.request_type == "loglikelihood_rolling"]
        for instance in rolling:
            windows = self._encoder.windows(instance.args[0])
            portions.append(made(windows, self._asked_for))
            self._asks(instance, len(windows))
        loaded.portions.append(portions)
        prompts = [each for each in part.instances if each.request_type == "generate_until"]
        loaded.prompts_cut.append(self.writing.add(prompts, loaded.where))

    def _asks(self, instance: Any, count: int) -> None:
        self._asked[id(instance)] = slice(self._asked_for, self._asked_for + count)
        self._asked_for += count

    def _likelihood(self, instance: Any, nats_N: Any, greedy_N: Any) -> list[Any] | None:
        """What the harness expects in answer to a request, or None where it is not a number."""
        own = self._asked[id(instance)]
        total = float(nats_N[own].sum())
        if not np.isfinite(total):
            return None
        rolling = instance.request_type == "loglikelihood_rolling"
        answer = total if rolling else (total, bool(greedy_N[own].all()))
        return [answer] * instance.repeats

    def _add_mean(self, found: dict[str, Items]) -> None:
        """The paper's forgetting score: the mean of three tasks' main metrics."""
        main = {
            loaded.task.name: loaded.task.metric_names()[0]
            for loaded in self._loaded
            if loaded.side == "source"
        }
        if set(FORGETTING_TASKS) <= set(main):
            parts = [found[main[name]] for name in FORGETTING_TASKS]
            found[FORGETTING_SCORE] = mean_items(FORGETTING_SCORE, parts, "source")
