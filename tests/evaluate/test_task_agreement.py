"""On real data and a real base: the answers and metrics of lm-evaluation-harness's own backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from harness_reference import answers_of, mirror_of, theirs

from paretune.evaluate.items import score
from paretune.evaluate.tasks.benchmarks import Benchmarks
from paretune.model.load import end_of_text, load_config, load_tokenizer
from paretune.model.trainee import frozen
from paretune.study.config import Base
from paretune.study.tasks import GenerationKwargs, Task

SHORT = GenerationKwargs(max_gen_toks=24)
CASES = [
    Task(name="hellaswag", metrics=("acc", "acc_norm"), limit=40),
    Task(name="arc_challenge", metrics=("acc", "acc_norm"), limit=40),
    Task(name="winogrande", metrics=("acc",), limit=60),
    Task(
        name="gsm8k",
        metrics=("exact_match,strict-match", "exact_match,flexible-extract"),
        limit=4,
        generation_kwargs=SHORT,
    ),
    Task(name="humaneval", metrics=("pass@1",), limit=4, generation_kwargs=SHORT),
]


@pytest.mark.shared
@pytest.mark.parametrize("task", CASES, ids=lambda task: task.name)
def test_answers_outcomes_and_metrics(task: Task, shared: Path) -> None:
    base, data = Base(name=str(shared / "models" / "english-30m")), shared / "data" / "eval"
    built = Benchmarks(
        {"source": [task]},
        mirror_of(data, ".jsonl.gz"),
        load_tokenizer(base),
        load_config(base),
        end_of_text(base),
    )
    view = frozen(base, torch.device("cpu")).view(None)
    (ours,) = built.score(view)
    settings = task.generation_kwargs
    reference = theirs(
        task.name,
        base.name,
        data,
        ".jsonl.gz",
        limit=task.limit,
        generation_kwargs=settings and settings.given(),
    )
    for metric in task.metrics:
        items = ours[f"{task.name}/{metric}"]
        keys = [k for k in reference["metrics"] if k == metric or k.startswith(metric + ",")]
        key, _, filter_name = next(k for k in keys if "stderr" not in k).partition(",")
        expected = reference["metrics"][f"{key},{filter_name}"]
        assert score(items).value == pytest.approx(expected, abs=1e-12)
        samples = [s for s in reference["samples"] if s["filter"] == filter_name]
        assert items.value.tolist() == [float(sample[key]) for sample in samples]
    answers = answers_of(reference["samples"], reference["samples"][0]["filter"])
    if settings is None:
        nats, greedy = built.likelihoods.score(view)
        np.testing.assert_allclose(nats[0], [answer[0] for answer in answers], atol=1e-3)
        assert greedy[0].tolist() == [answer[1] for answer in answers]
    else:
        (written,) = built.writing.answers(view)
        assert [text for of_one in written.values() for text in of_one or []] == answers
