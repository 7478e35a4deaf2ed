"""Scoring speed on one GPU: packed trees against lm-evaluation-harness's own backend.

Usage: python benchmarks/scoring.py [--rows 1B,7B,arms] [--documents N] [--requests FILE], on a
machine with a GPU, beside ../shared/data/eval; writes benchmarks/results/scoring.json. Random
weights at the shapes of Llama-3.2-1B and Llama-2-7B in bf16, the tokenizer of english-30m. Both
sides answer the same requests on the same weights, tokenizing included; the harness runs at the
fastest of three batch sizes. ``--requests`` keeps the requests between runs.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measurements import row, write
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from paretune.evaluate.tasks.encode import Encoder
from paretune.evaluate.tasks.log_likelihood import LogLikelihoods
from paretune.model.trainee import ArmView, Trainee, lora_cohort
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

SHARED = Path(__file__).resolve().parents[2] / "shared"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {
    "1B": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "toy": {
        "vocab_size": 8192,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    },
}
BATCHES = {"1B": (128, 256, 512), "7B": (32, 64, 128), "toy": (8, 16)}
TASKS = ("hellaswag", "arc_challenge", "winogrande")
ARMS = 12
Pairs = list[tuple[str, str]]


def main() -> None:
    """Measure what is asked for, row by row, and write what there is."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1B,7B,arms")
    parser.add_argument("--documents", type=int, help="of each task; all by default")
    parser.add_argument("--requests", type=Path)
    parser.add_argument("--shape", default="", help="toy, to try the script on a CPU")
    parser.add_argument("--tokenizer", default=str(SHARED / "models" / "english-30m"))
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    of_task = requests(asked.requests, asked.documents)
    rows: list[dict[str, Any]] = []
    for name in asked.rows.split(","):
        started = time.perf_counter()
        try:
            if name == "arms":
                rows += arms(asked.shape or "1B", of_task, tokenizer)
            else:
                rows += one_model(asked.shape or name, of_task["hellaswag"], tokenizer)
        except Exception as error:  # one row that fails must not lose the others
            print(f"{name}: {type(error).__name__}: {error}"[:2000], flush=True)
        if rows:
            write("scoring", rows)
        print(f"{name}: {time.perf_counter() - started:.0f} s in all", flush=True)


def requests(path: Path | None, documents: int | None) -> dict[str, Pairs]:
    """Contexts and continuations of each task's documents, in their order."""
    if path is not None and path.exists():
        kept = json.loads(gzip.decompress(path.read_bytes()))
    else:
        kept = {name: build(name) for name in TASKS}
        if path is not None:
            path.write_bytes(gzip.compress(json.dumps(kept).encode()))
    return {
        name: [(c, a) for group in groups[:documents] for c, a in group]
        for name, groups in kept.items()
    }


def build(name: str) -> list[Pairs]:
    """The requests of each document, made by the harness."""
    from paretune.data.mirror import Mirror
    from paretune.evaluate.tasks.harness import load
    from paretune.study.tasks import Task

    data = SHARED / "data" / "eval"
    mirror = Mirror(
        {
            "Rowan/hellaswag": str(data / "hellaswag-{split}.jsonl.gz"),
            "allenai/ai2_arc": str(data / "arc_challenge-{split}.jsonl.gz"),
            "allenai/winogrande": str(data / "winogrande_xl-{split}.jsonl.gz"),
        }
    )
    (part,) = load(Task(name=name), mirror, name)
    groups: dict[int, Pairs] = {}
    for instance in part.instances:
        groups.setdefault(instance.doc_id, []).append(instance.args)
    return list(groups.values())


def one_model(shape: str, pairs: Pairs, tokenizer: Any) -> list[dict[str, Any]]:
    """HellaSwag by one model."""
    model = random_model(shape)
    count = len(pairs) // 4
    size = fastest(shape, model, tokenizer, pairs[:2000])
    theirs, reference = harness(model, tokenizer, pairs, size)
    view = Trainee(model, [], [], [], None, DEVICE, Base(name="random")).view(None)
    first = ours(view, tokenizer, pairs[:4000])[0]  # compiles
    seconds, found, again = ours(view, tokenizer, pairs)
    agree(found[0], reference)
    work = f"HellaSwag, {count} documents, {shape} shape"
    peer = f"lm-eval hf, batch {size}"
    goal = {"1B": "6x", "7B": "3.2x"}.get(shape, "")
    device = card()
    print(f"{shape}: {count / theirs:.0f} docs/s theirs, {count / seconds:.0f} ours", flush=True)
    return [
        row(
            "scoring: log-likelihoods of one model",
            work,
            "documents/s",
            peer=peer,
            peer_value=count / theirs,
            our_value=count / seconds,
            ratio=theirs / seconds,
            goal=goal,
            device=device,
        ),
        row(
            "scoring: the same, requests tokenized and packed before",
            work,
            "documents/s",
            peer=peer,
            peer_value=count / theirs,
            our_value=count / again,
            ratio=theirs / again,
            goal="none: what a study's later checkpoints take",
            device=device,
        ),
        row(
            "scoring: the first 1,000 documents, compilation included",
            work,
            "s",
            our_value=first,
            goal="none",
            device=device,
        ),
    ]


def arms(shape: str, of_task: dict[str, Pairs], tokenizer: Any) -> list[dict[str, Any]]:
    """Three tasks by twelve LoRA arms: the harness with PEFT measures one arm, and counts as 12."""
    pairs = [pair for name in TASKS for pair in of_task[name]]
    model = random_model(shape)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        peft = get_peft_model(
            model,
            LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False),
        ).eval()
        size = fastest(shape, peft, tokenizer, pairs[:1000])
        # Every third document of each task: four requests each, two of winogrande
        third = [
            pair
            for name, each in zip(TASKS, (4, 4, 2), strict=True)
            for number, pair in enumerate(of_task[name])
            if number // each % 3 == 0
        ]
        theirs = harness(peft, tokenizer, third, size)[0] * len(pairs) / len(third)
        del peft, model
        release()
        configs = [
            ArmConfig.model_validate(
                {
                    "method": "lora",
                    "rank": 16,
                    "alpha": 32.0,
                    "learning_rate": 1e-4 * (1 + number),
                    "schedule": "constant",
                }
            )
            for number in range(ARMS)
        ]
        cohort = lora_cohort(Base(name=folder), configs, DEVICE, arms_per_pass=ARMS)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for flat in cohort.flats:
        flat.values.normal_(0, 0.02, generator=generator)
        flat.refresh()
    view = cohort.view(cohort.passes[0])
    ours(view, tokenizer, pairs[:8000])  # compiles
    seconds = ours(view, tokenizer, pairs)[0]
    work = f"{', '.join(TASKS)}, {len(pairs)} requests, {ARMS} LoRA arms (r 16), {shape} shape"
    print(f"arms: {ARMS * theirs:.0f} s theirs, {seconds:.0f} s ours", flush=True)
    return [
        row(
            "scoring: twelve arms, three tasks",
            work,
            "s",
            peer=f"lm-eval hf with PEFT, batch {size}; from a third of one arm's documents",
            peer_value=ARMS * theirs,
            our_value=seconds,
            ratio=ARMS * theirs / seconds,
            goal="10x",
            device=card(),
        )
    ]


def random_model(shape: str) -> Any:
    """A Llama of random weights in bf16, on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
    with DEVICE:
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape]))
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def fastest(shape: str, model: Any, tokenizer: Any, pairs: Pairs) -> int:
    """The harness's best batch size on some of the requests."""
    found: dict[int, float] = {}
    for size in BATCHES[shape]:
        try:
            harness(model, tokenizer, pairs[: 4 * size], size)  # warm up
            found[size] = harness(model, tokenizer, pairs, size)[0]
        except torch.OutOfMemoryError:
            print(f"batch {size}: out of memory", flush=True)
            release()
    print({size: f"{len(pairs) / s:.0f} requests/s" for size, s in found.items()}, flush=True)
    return min(found, key=lambda size: found[size])


def harness(model: Any, tokenizer: Any, pairs: Pairs, size: int) -> tuple[float, list[float]]:
    """Seconds and log-likelihoods of lm-eval's hf backend."""
    backend = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size)
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    seconds, answers = timed(lambda: backend.loglikelihood(instances, disable_tqdm=True))
    return seconds, [answer[0] for answer in answers]


def ours(view: ArmView, tokenizer: Any, pairs: Pairs) -> tuple[float, Any, float]:
    """Seconds and log-likelihoods [K, N] of Paretune, from texts to answers; seconds once more,
    with what is packed already.
    """

    def run() -> Any:
        made = LogLikelihoods(Encoder(tokenizer, view._trainee.model.config).pairs(pairs)[0])
        return made, made.score(view)[0]

    seconds, (likelihoods, found) = timed(run)
    refusal = likelihoods.refusal(view)
    if refusal is not None:
        raise RuntimeError(refusal)
    again = timed(lambda: likelihoods.score(view))[0] if view.count == 1 else seconds
    computed, places, alone = likelihoods.fill(view)
    print(
        f"{seconds:.1f} s; {computed} of {places} places, {alone} alone; {again:.1f} s", flush=True
    )
    return seconds, found, again


def agree(found: Sequence[float], reference: Sequence[float]) -> None:
    """Print how far the two are apart: both are rounded to bf16 on their ways."""
    a, b = torch.tensor(list(found)), torch.tensor(list(reference))
    error = float(((a - b).abs() / b.abs()).median())
    print(f"median relative difference {error:.2e}", flush=True)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of a call, with the device idle at both ends."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def release() -> None:
    """Give freed memory back."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def card() -> str:
    """The device's name."""
    return torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "CPU"


if __name__ == "__main__":
    main()
