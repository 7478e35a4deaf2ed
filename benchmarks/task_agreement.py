"""Agreement with lm-evaluation-harness's own ``hf`` backend, on english-30m.

Usage: python benchmarks/task_agreement.py [--tasks a,b] [--documents N] [--written N] [--gpu]
[--again N] [--tiny] [--results DIR] [--shared DIR]; writes rows of scoring.json. In float32 on a
CPU, or with --gpu in bf16 on a GPU. Both sides read the same data. --documents 0 takes all there
are, as --written 0 does. With --again the harness answers a second time at another batch size: what
rounding alone does to its own metrics.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurements import arguments, folder_of, row, show, update
from task_study import sandbox_here

from paretune.evaluate.items import score
from paretune.evaluate.tasks.benchmarks import Benchmarks
from paretune.model.load import end_of_text, load_config, load_tokenizer
from paretune.model.trainee import frozen
from paretune.study.config import Base
from paretune.study.tasks import GenerationKwargs, Task

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "evaluate"))  # the reference that the tests use, too
from harness_reference import CPU as CPU_BACKEND  # noqa: E402
from harness_reference import answers_of, mirror_of, theirs  # noqa: E402

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


class Side:
    """The device that both sides compute on, and its arithmetic."""

    def __init__(self, gpu: bool, shared: Path, again: int) -> None:
        self.again = again
        self.device = torch.device("cuda" if gpu else "cpu")
        self.data = shared / "data" / "eval"
        self.base = Base(name=str(shared / "models" / "english-30m"))
        self.card = torch.cuda.get_device_name() if gpu else None
        self.words = "bf16, GPU" if gpu else "float32, CPU"
        self.backend = (
            {"dtype": "bfloat16", "device": "cuda", "batch_size": 64} if gpu else CPU_BACKEND
        )


def main() -> None:
    """Compare task by task; the rows of each are kept as they come."""
    parser = arguments(__doc__)
    parser.add_argument("--documents", type=int, default=300, help="of each task of choices")
    parser.add_argument("--written", type=int, default=30, help="of each task of answers")
    parser.add_argument("--tasks", default=",".join([*CHOICES, *WRITTEN]))
    parser.add_argument("--gpu", action="store_true", help="in bf16 on a GPU")
    parser.add_argument("--again", type=int, default=0, help="a second batch size of the harness")
    asked = parser.parse_args()
    side = Side(asked.gpu, asked.shared, asked.again)
    if asked.tiny:
        asked.documents, asked.written = 12, 2
    failed = []
    for name in asked.tasks.split(","):
        if name in CHOICES:
            task = Task(name=name, metrics=CHOICES[name], limit=asked.documents or None)
        else:
            metrics, settings = WRITTEN[name]
            limit = asked.written or None
            task = Task(name=name, metrics=metrics, limit=limit, generation_kwargs=settings)
        try:
            rows = compare(task, side)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        update("scoring", rows, folder_of(asked))
        show(rows)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def compare(task: Task, side: Side) -> list[dict[str, Any]]:
    """The rows of one task: answers, metrics, and outcomes."""
    built = Benchmarks(
        {"source": [task]},
        mirror_of(side.data, SUFFIX),
        load_tokenizer(side.base),
        load_config(side.base),
        end_of_text(side.base),
        sandbox_here(),
    )
    view = frozen(side.base, side.device).view(None)
    written = built.writing.answers(view)
    built.writing.answers = lambda _: written  # type: ignore[method-assign]  # once is enough
    (found,) = built.score(view)
    reference = harness(task, side, side.backend)
    gap = max(
        abs(score(found[f"{task.name}/{m}"]).value - reference["metrics"][full_name(m, reference)])
        for m in task.metrics
    )
    answers = answers_of(reference["samples"], reference["samples"][0]["filter"])
    count = len(found[f"{task.name}/{task.metrics[0]}"].value)
    work = f"{task.name}, {count} documents, english-30m, {side.words}"
    common: dict[str, Any] = {"peer": "lm-eval hf", "device": side.card}
    own, of_whole, words = agreement(built, view, answers)
    exact = side.device.type == "cpu"
    goals = {"log-likelihoods: largest difference": "1e-3"} if exact else {}
    equal = outcomes(task, found, reference)
    metrics = " and ".join(task.metrics)
    return [
        *(beside_itself(task, side, reference, work) if side.again else ()),
        row(
            f"agreement: {words}",
            work,
            "nats" if task.name in CHOICES else "answers",
            peer_value=of_whole,
            our_value=own,
            goal=goals.get(words, "every answer equal" if exact else "stated, not fixed"),
            **common,
        ),
        row(
            f"agreement: largest difference of {metrics}",
            work,
            "" if exact else "points",
            our_value=gap if exact else 100 * gap,
            goal="0" if exact else "at most 0.3",
            **common,
        ),
        row(
            "agreement: documents with equal outcomes",
            work,
            "documents",
            peer_value=len(equal),
            our_value=int(equal.sum()),
            goal="all" if exact else "stated, not fixed",
            **common,
        ),
    ]


def harness(task: Task, side: Side, backend: dict[str, Any]) -> dict[str, Any]:
    """The harness's own metrics and samples of a task."""
    settings = task.generation_kwargs
    return theirs(
        task.name,
        side.base.name,
        side.data,
        SUFFIX,
        backend,
        limit=task.limit,
        generation_kwargs=settings and settings.given(),
    )


def beside_itself(
    task: Task, side: Side, reference: dict[str, Any], work: str
) -> Iterator[dict[str, Any]]:
    """What another batch size, which is another rounding, does to the harness's own metrics."""
    other = harness(task, side, {**side.backend, "batch_size": side.again})
    names = [full_name(metric, reference) for metric in task.metrics]
    gap = max(abs(other["metrics"][name] - reference["metrics"][name]) for name in names)
    equal = np.all([values_of(one, other) == values_of(one, reference) for one in names], axis=0)
    words = (
        f"the harness beside itself, {side.again} rows at a time and {side.backend['batch_size']}"
    )
    common: dict[str, Any] = {"device": side.card, "goal": "stated, not fixed"}
    metrics = " and ".join(task.metrics)
    yield row(
        f"{words}: largest difference of {metrics}", work, "points", our_value=100 * gap, **common
    )
    yield row(
        f"{words}: documents with equal outcomes",
        work,
        "documents",
        peer_value=len(equal),
        our_value=int(equal.sum()),
        **common,
    )


def agreement(built: Benchmarks, view: Any, answers: list[Any]) -> tuple[float, float | None, str]:
    """Largest difference of log-likelihoods, or how many written answers are equal, of how many."""
    nats, _ = built.likelihoods.score(view)
    if nats.size:
        gap = float(np.abs(nats[0] - [answer[0] for answer in answers]).max())
        return gap, None, "log-likelihoods: largest difference"
    (written,) = built.writing.answers(view)
    texts = [text for of_one in written.values() for text in of_one or [None]]
    equal = sum(text == answer for text, answer in zip(texts, answers, strict=True))
    return equal, len(answers), "written answers that are equal"


def outcomes(task: Task, found: Any, reference: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Of each document, whether its outcome is the same in every metric."""
    equal = np.ones(len(found[f"{task.name}/{task.metrics[0]}"].value), dtype=bool)
    for metric in task.metrics:
        own = found[f"{task.name}/{metric}"].value
        equal &= own == values_of(full_name(metric, reference), reference)
    return equal


def values_of(name: str, reference: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Of each document, the value of a metric that is named with its filter."""
    key, _, filter_name = name.partition(",")
    return np.array([float(s[key]) for s in reference["samples"] if s["filter"] == filter_name])


def full_name(metric: str, reference: Any) -> str:
    """A metric with its filter, as the harness's results call it."""
    named = [key for key in reference["metrics"] if key == metric or key.startswith(metric + ",")]
    return next(key for key in named if "stderr" not in key)


if __name__ == "__main__":
    main()
