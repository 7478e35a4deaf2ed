"""What lm-evaluation-harness's own ``hf`` backend says, beside what Paretune says."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset, DatasetDict
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from paretune.evaluate.sandbox.code_eval import installed

HUB = {
    "hellaswag": ("Rowan/hellaswag", "hellaswag"),
    "arc_challenge": ("allenai/ai2_arc/ARC-Challenge", "arc_challenge"),
    "winogrande": ("allenai/winogrande", "winogrande_xl"),
    "gsm8k": ("openai/gsm8k", "gsm8k"),
    "humaneval": ("openai/openai_humaneval", "humaneval"),
}
FOLDERS = {"arc_challenge": "arc"}


class PlainPython:
    """Stands for ``evaluate``'s code_eval, whose code is on the hub: a process for each program."""

    def compute(self, *, references: Any, predictions: Any, **_: Any) -> Any:
        passed = []
        for tests, (code,) in zip(references, predictions, strict=True):
            command = [sys.executable, "-I", "-c", f"{code}\n{tests}"]
            try:
                done = subprocess.run(command, capture_output=True, timeout=10)
            except subprocess.TimeoutExpired:
                passed.append(False)
            else:
                passed.append(done.returncode == 0)
        return {"pass@1": sum(passed) / len(passed)}, {}


def mirror_of(folder: Path, suffix: str) -> dict[str, str]:
    """The study file's ``mirror`` for files named as in ../shared/data/eval."""
    return {hub: str(folder / f"{name}-{{split}}{suffix}") for hub, name in HUB.values()}


CPU = {"dtype": "float32", "device": "cpu", "batch_size": 16}


def theirs(
    task: str,
    model: str,
    folder: Path,
    suffix: str,
    backend: Mapping[str, Any] = CPU,
    **settings: Any,
) -> dict[str, Any]:
    """``simple_evaluate`` of one task, with its data from local files.

    Args:
        backend: settings of HFLM; the CPU in float32 by default.
    """
    stem = HUB[task][1]

    def data(**_: Any) -> DatasetDict:
        found = {}
        for path in sorted(folder.glob(f"{stem}-*{suffix}")):
            whole = path.read_bytes()
            text = (gzip.decompress(whole) if suffix.endswith(".gz") else whole).decode()
            rows = [json.loads(line) for line in text.rstrip("\n").split("\n")]
            found[path.name.removeprefix(f"{stem}-").removesuffix(suffix)] = Dataset.from_list(rows)
        for split in {"train", "validation", "test"} - set(found):
            found[split] = next(iter(found.values())).select([])
        return DatasetDict(found)

    root = Path(lm_eval.tasks.__file__).parent / FOLDERS.get(task, task)
    kwargs = settings.pop("generation_kwargs", None)
    with installed(PlainPython()):  # type: ignore[arg-type]
        result = simple_evaluate(
            model=HFLM(pretrained=model, **backend),
            tasks=[{"group": "here", "task": [{"task": task, "custom_dataset": data}]}],
            task_manager=TaskManager(include_defaults=False, include_path=[str(root)]),
            gen_kwargs=kwargs,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
            **settings,
        )
    assert result is not None
    return {"metrics": result["results"][task], "samples": result["samples"][task]}


def answers_of(samples: list[dict[str, Any]], filter_name: str) -> list[Any]:
    """The first answer to every request, in the order of documents and requests."""
    own = [sample for sample in samples if sample["filter"] == filter_name]
    return [
        response[0]
        for sample in sorted(own, key=lambda sample: sample["doc_id"])
        for response in sample["resps"]
    ]
