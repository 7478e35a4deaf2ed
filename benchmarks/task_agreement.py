"""Agreement with lm-evaluation-harness's own ``hf`` backend: english-30m, float32, on a CPU.

Usage: python benchmarks/task_agreement.py [--documents N] [--written N], beside ../shared; writes
rows of benchmarks/results/scoring.json. Both sides read the same data from ../shared/data/eval.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurements import row, write

from paretune.evaluate.items import score
from paretune.evaluate.tasks.benchmarks import Benchmarks
from paretune.model.load import end_of_text, load_config, load_tokenizer
from paretune.model.trainee import frozen
from paretune.study.config import Base
from paretune.study.tasks import GenerationKwargs, Task

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "evaluate"))  # the reference that the tests use, too
from harness_reference import answers_of, mirror_of, theirs  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "eval"
MODEL = ROOT.parent / "shared" / "models" / "english-30m"
SUFFIX = ".jsonl.gz"
CHOICES = {
    "hellaswag": ("acc", "acc_norm"),
    "arc_challenge": ("acc", "acc_norm"),
    "winogrande": ("acc",),
}
WRITTEN = {
    "gsm8k": (("exact_match,strict-match", "exact_match,flexible-extract"), None),
    "humaneval": (("pass@1",), GenerationKwargs(max_gen_toks=256)),
}


def main() -> None:
    """Compare task by task."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=300, help="of each task of choices")
    parser.add_argument("--written", type=int, default=30, help="of each task of answers")
    parser.add_argument("--tasks", default=",".join([*CHOICES, *WRITTEN]))
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in asked.tasks.split(","):
        if name in CHOICES:
            task = Task(name=name, metrics=CHOICES[name], limit=asked.documents)
        else:
            metrics, settings = WRITTEN[name]
            task = Task(name=name, metrics=metrics, limit=asked.written, generation_kwargs=settings)
        rows += compare(task)
        write("scoring", rows)


def compare(task: Task) -> list[dict[str, Any]]:
    """The rows of one task: answers, and metrics."""
    base = Base(name=str(MODEL))
    built = Benchmarks(
        {"source": [task]},
        mirror_of(DATA, SUFFIX),
        load_tokenizer(base),
        load_config(base),
        end_of_text(base),
    )
    view = frozen(base, torch.device("cpu")).view(None)
    written = built.writing.answers(view)
    built.writing.answers = lambda _: written  # type: ignore[method-assign]  # once is enough
    (found,) = built.score(view)
    settings = task.generation_kwargs
    reference = theirs(
        task.name,
        base.name,
        DATA,
        SUFFIX,
        limit=task.limit,
        generation_kwargs=settings and settings.given(),
    )
    gap = max(
        abs(score(found[f"{task.name}/{m}"]).value - reference["metrics"][full_name(m, reference)])
        for m in task.metrics
    )
    answers = answers_of(reference["samples"], reference["samples"][0]["filter"])
    work = f"{task.name}, {task.limit} documents, english-30m, float32, CPU"
    peer = "lm-eval hf"
    own, of_whole, words = agreement(built, view, answers)
    goals = {"log-likelihoods: largest difference": "1e-3"}
    return [
        row(
            f"agreement: {words}",
            work,
            "nats" if task.name in CHOICES else "answers",
            peer=peer,
            peer_value=of_whole,
            our_value=own,
            goal=goals.get(words, "every answer equal"),
        ),
        row(
            f"agreement: largest difference of {' and '.join(task.metrics)}",
            work,
            "",
            peer=peer,
            our_value=gap,
            goal="0",
        ),
        *chosen(task, found, reference),
    ]


def agreement(built: Benchmarks, view: Any, answers: list[Any]) -> tuple[float, float | None, str]:
    """Largest difference of log-likelihoods, or how many written answers are equal, of how many."""
    if built.likelihoods.requests:
        nats, _ = built.likelihoods.score(view)
        gap = float(np.abs(nats[0] - [answer[0] for answer in answers]).max())
        return gap, None, "log-likelihoods: largest difference"
    (written,) = built.writing.answers(view)
    texts = [text for of_one in written.values() for text in of_one or [None]]
    equal = sum(text == answer for text, answer in zip(texts, answers, strict=True))
    return equal, len(answers), "written answers that are equal"


def chosen(task: Task, found: Any, reference: Any) -> list[dict[str, Any]]:
    """How many documents get the same outcome in every metric."""
    equal = np.ones(task.limit or 0, dtype=bool)
    for metric in task.metrics:
        key, _, filter_name = full_name(metric, reference).partition(",")
        samples = [s for s in reference["samples"] if s["filter"] == filter_name]
        equal &= found[f"{task.name}/{metric}"].value == [float(s[key]) for s in samples]
    return [
        row(
            "agreement: documents with equal outcomes",
            f"{task.name}, english-30m, float32, CPU",
            "documents",
            peer="lm-eval hf",
            peer_value=len(equal),
            our_value=int(equal.sum()),
            goal="all",
        )
    ]


def full_name(metric: str, reference: Any) -> str:
    """A metric with its filter, as the harness's results call it."""
    named = [key for key in reference["metrics"] if key == metric or key.startswith(metric + ",")]
    return next(key for key in named if "stderr" not in key)


if __name__ == "__main__":
    main()
