"""A whole study on one GPU: `paretune run` against a script of PEFT, Trainer and lm-eval.

Usage: python benchmarks/whole_study.py [--peer-arms N] [--tiny] [--results DIR] [--shared DIR];
writes whole_study.json. Twelve LoRA arms and two full ones, three budgets, each scored on three
tasks of the harness. Both sides are processes of their own, start-up included, on the same
weights, tokens and batches. The peer trains and scores one arm after another; with --peer-arms its
first N LoRA arms and one full arm are run, and the rest is counted at their mean, which the row
says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measurements import arguments, folder_of, row, show, update

RANKS, LORA_RATES, FULL_RATES = (16, 64, 256), (3e-4, 1e-3, 3e-3, 1e-2), (3e-4, 1e-3)
TASKS = ("hellaswag", "arc_challenge", "winogrande")
FILES = {
    "hellaswag": "hellaswag-{split}.jsonl.gz",
    "arc_challenge": "arc_challenge-{split}.jsonl.gz",
    "winogrande": "winogrande_xl-{split}.jsonl.gz",
}
SPLITS = ("train", "validation", "test")
HUB = {
    "hellaswag": "Rowan/hellaswag",
    "arc_challenge": "allenai/ai2_arc/ARC-Challenge",
    "winogrande": "allenai/winogrande/winogrande_xl",
}


def base_of(given: argparse.Namespace) -> Path:
    """The folder of english-30m."""
    found: Path = given.shared.resolve() / "models" / "english-30m"
    return found


def eval_of(given: argparse.Namespace) -> Path:
    """The folder of the tasks' data."""
    found: Path = given.shared.resolve() / "data" / "eval"
    return found


def study(given: argparse.Namespace) -> dict[str, Any]:
    """The study file."""
    steps = [1, 2] if given.tiny else given.steps
    ranks, rates, full = (
        (RANKS[:1], LORA_RATES[:1], FULL_RATES[:1])
        if given.tiny
        else (RANKS, LORA_RATES, FULL_RATES)
    )
    return {
        "name": "whole-study",
        "base": str(base_of(given)),
        "regime": "cpt",
        "target": {
            "data": {"from": "python-packages", "packages": "stdlib"},
            "items": 4 if given.tiny else 64,
        },
        "source": {
            "self_probe": None,
            "tasks": [{"name": name, "limit": given.limit} for name in TASKS],
        },
        "mirror": {HUB[name]: str(eval_of(given) / FILES[name]) for name in TASKS},
        "training": {"block_length": 512, "batch_size": 2 if given.tiny else 32},
        "defaults": {"schedule": {"shape": "constant", "warmup": "0%"}, "alpha": "2r"},
        "arms": [
            {"method": "full", "learning_rate": list(full)},
            {"method": "lora", "rank": list(ranks), "learning_rate": list(rates)},
        ],
        "budgets": {"at": [f"{n}ba" for n in steps], "mode": "hot"},
    }


def ours(given: argparse.Namespace, folder: Path) -> float:
    """Seconds of the whole command."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study(given)))
    command = [sys.executable, "-m", "paretune", "run", str(file)]
    return seconds_of([*command, "--out", str(folder / "study"), "--no-report"])


def theirs(given: argparse.Namespace, folder: Path, rank: int, rate: float) -> dict[str, Any]:
    """Seconds of the peer's process for one arm (rank 0: full), and what it found."""
    result = folder / f"peer-{rank}-{rate:g}.json"
    arm = ["--peer", str(folder), "--rank", str(rank), "--rate", str(rate), "--result", str(result)]
    own = ["--shared", str(given.shared), "--limit", str(given.limit)]
    own += ["--steps", *map(str, given.steps)]
    own += ["--tiny"] if given.tiny else []
    seconds = seconds_of([sys.executable, __file__, *arm, *own])
    return {"seconds": seconds, **json.loads(result.read_text())}


def first_loss(folder: Path, rank: int) -> float:
    """The loss of our arms of a rank (0: full) at their first step, before any update."""
    for path in sorted(folder.glob("arms/*/train.jsonl")):
        if (json.loads((path.parent / "arm.json").read_text()).get("rank") or 0) == rank:
            return float(json.loads(path.read_text().splitlines()[0])["loss"])
    raise FileNotFoundError(f"{folder}: no arm of rank {rank}")


def check(theirs: float, own: float) -> None:
    """Both sides must train on the same batch from the same weights."""
    if abs(theirs - own) > 0.01 * own:
        raise SystemExit(f"first loss {own} against the peer's {theirs}: not the same work")


def seconds_of(command: list[str]) -> float:
    """Wall time of a process; it must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "true"})
    return time.perf_counter() - started


def peer(given: argparse.Namespace) -> None:
    """One arm with PEFT and Trainer, scored at each budget by lm-eval: what a script would do."""
    import torch
    from datasets import load_dataset
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from paretune.data.blocks import Blocks
    from paretune.data.order import rows_for_step

    config = study(given)
    batch = config["training"]["batch_size"]
    budgets = [int(at.removesuffix("ba")) for at in config["budgets"]["at"]]
    cuda = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(base_of(given))
    model = AutoModelForCausalLM.from_pretrained(base_of(given), dtype=torch.float32)
    model.to("cuda" if cuda else "cpu")
    if given.rank:
        every = "all-linear"
        lora = LoraConfig(r=given.rank, lora_alpha=2 * given.rank, target_modules=every)
        model = get_peft_model(model, lora)
    blocks = Blocks(given.peer / "study" / "data", "cpt")

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return budgets[-1] * batch

        def __getitem__(self, index: int) -> dict[str, Any]:
            rows = rows_for_step(blocks.count, batch, index // batch, 0)
            ids = blocks.batch(rows[index % batch : index % batch + 1]).input_ids[0]
            return {"input_ids": ids, "labels": ids}

    manager = TaskManager(include_defaults=False, include_path=task_folders())
    scores: dict[int, dict[str, float]] = {}

    def data_of(name: str) -> Any:
        paths = {split: eval_of(given) / FILES[name].format(split=split) for split in SPLITS}
        # A split that a task names must be there, also where it is not read
        files = {s: str(p if p.exists() else paths["validation"]) for s, p in paths.items()}
        return lambda **_: load_dataset("json", data_files=files)

    tasks = [{"task": name, "custom_dataset": data_of(name)} for name in TASKS]

    def score(step: int) -> None:
        model.eval()
        under = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64 if cuda else 8)
        found = simple_evaluate(
            model=under,
            tasks=[{"group": "three", "task": tasks}],
            task_manager=manager,
            limit=given.limit,
            bootstrap_iters=0,
        )
        per_task = found["results"]
        scores[step] = {name: per_task[name]["acc,none"] for name in TASKS}
        model.train()

    class AtBudgets(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in budgets:
                score(state.global_step)

    arguments = TrainingArguments(
        output_dir=str(given.peer / "trainer"),
        max_steps=budgets[-1],
        per_device_train_batch_size=batch,
        learning_rate=given.rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=cuda,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not cuda,
        train_sampling_strategy="sequential",
    )
    trainer = Trainer(model, arguments, train_dataset=Rows(), callbacks=[AtBudgets()])
    started = time.perf_counter()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "train_and_score": time.perf_counter() - started,
        "first_losses": losses[:3],
        "last_loss": losses[-1],
        "scores": scores,
    }
    given.result.write_text(json.dumps(found))


def task_folders() -> list[str]:
    """The folders of the three tasks: reading all of the harness takes 15 s."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    return [str(root / name) for name in ("hellaswag", "arc", "winogrande")]


def main() -> None:
    """Measure both sides and write the row."""
    parser = arguments(__doc__)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[45, 90, 180])
    parser.add_argument("--peer-arms", type=int, default=1)
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.tiny:
        given.limit = 20
    if given.peer:
        peer(given)
        return
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = ours(given, folder)
        print(f"paretune: {own:.1f} s", flush=True)
        for ran in sorted((folder / "study").glob("runs*/*.json*")):
            print(ran.read_text().splitlines()[-1], flush=True)
        lora = [(r, lr) for r in RANKS for lr in LORA_RATES]
        found = [theirs(given, folder, r, lr) for r, lr in lora[: given.peer_arms]]
        full = theirs(given, folder, 0, FULL_RATES[0])
        for each, rank in [*zip(found, (r for r, _ in lora), strict=False), (full, 0)]:
            print(json.dumps(each), flush=True)
            check(each["first_losses"][0], first_loss(folder / "study", rank))
        mean = sum(each["seconds"] for each in found) / len(found)
        total = len(lora) * mean + len(FULL_RATES) * full["seconds"]
    work = (
        "english-30m to Python: 12 LoRA and 2 full arms, 3 budgets, 3 tasks of "
        f"{given.limit:,} documents; the peer's time is {len(found)} LoRA arms ({mean:.0f} s each) "
        f"and 1 full ({full['seconds']:.0f} s), counted 12 and 2 times"
    )
    rows = [
        row(
            "a whole study: wall time",
            work,
            "s",
            our_value=own,
            peer="PEFT, Trainer and lm-eval, one arm after another",
            peer_value=total,
            ratio=total / own,
            goal="10 times less",
            device=device,
        )
    ]
    update("whole_study", rows, folder_of(given))
    show(rows)


if __name__ == "__main__":
    main()
