"""Scoring speed on one GPU: packed trees against lm-evaluation-harness's own backend.

Usage: python benchmarks/scoring.py [--rows a,b] [--tiny] [--results DIR] [--shared DIR], on a
machine with a GPU; writes rows of scoring.json. Random weights at the shapes of Llama-3.2-1B and
Llama-2-7B in bf16, the tokenizer of english-30m. Both sides answer the same requests on the same
weights, tokenizing included; the harness runs at the fastest of three batch sizes.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from claims import CARD, DEVICE, Claims, clear, wait
from cohort_models import lora, random_model
from cohort_profile import shares_of
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from measurements import row
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from paretune.evaluate.tasks.encode import Encoder
from paretune.evaluate.tasks.log_likelihood import LogLikelihoods
from paretune.model import packed
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import ArmView, Trainee
from paretune.study.config import Base

CLAIMS = Claims("scoring")
BATCHES = {"1b": (128, 256, 512), "7b": (32, 64, 128), "tiny": (8, 16)}
TASKS = ("hellaswag", "arc_challenge", "winogrande")
ARMS = 12
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
Pairs = list[tuple[str, str]]
Rows = Iterator[dict[str, Any]]


@CLAIMS
def hellaswag_1b() -> Rows:
    """HellaSwag by one model of 1B parameters."""
    return one_model("1b", "6x")


@CLAIMS
def arms_1b() -> Rows:
    """Three tasks by twelve LoRA arms."""
    return arms("1b")


@CLAIMS
def hellaswag_7b() -> Rows:
    """HellaSwag by one model of 7B parameters."""
    return one_model("7b", "3.2x")


@functools.cache
def requests() -> dict[str, Pairs]:
    """Contexts and continuations of each task's documents, in their order."""
    most = 40 if CLAIMS.tiny else None
    return {name: [pair for document in build(name)[:most] for pair in document] for name in TASKS}


def build(name: str) -> list[Pairs]:
    """The requests of each document, made by the harness."""
    from paretune.data.mirror import Mirror
    from paretune.evaluate.tasks.harness import load
    from paretune.study.tasks import Task

    data = CLAIMS.shared / "data" / "eval"
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


def tokenizer_of_english() -> Any:
    """The tokenizer of english-30m; its 8,192 tokens are tokens of every shape here."""
    return AutoTokenizer.from_pretrained(CLAIMS.shared / "models" / "english-30m")


def one_model(shape: str, goal: str) -> Rows:
    """HellaSwag by one model."""
    shape, pairs, tokenizer = CLAIMS.shape(shape), requests()["hellaswag"], tokenizer_of_english()
    model = random_model(shape, DTYPE, DEVICE)
    count = len(pairs) // 4
    size = fastest(shape, model, tokenizer, pairs[:2000])
    theirs, reference = harness(model, tokenizer, pairs, size)
    view = Trainee(model, [], [], [], None, DEVICE, Base(name="random")).view(None)
    first = ours(view, tokenizer, pairs[:4000])[0]
    with compiled_from(0):
        ours(view, tokenizer, pairs[:4000])
        seconds, found, again = ours(view, tokenizer, pairs)
    agree(found[0], reference)
    work = f"HellaSwag, {count} documents, {shape.upper()} shape"
    peer = f"lm-eval hf, batch {size}"
    print(f"{shape}: {count / theirs:.0f} docs/s theirs, {count / seconds:.0f} ours", flush=True)
    beside: dict[str, Any] = {"peer": peer, "peer_value": count / theirs, "device": CARD}
    yield row(
        "scoring: log-likelihoods of one model",
        work,
        "documents/s",
        our_value=count / seconds,
        ratio=theirs / seconds,
        goal=goal,
        **beside,
    )
    yield row(
        "scoring: the same, requests tokenized and packed before",
        work,
        "documents/s",
        our_value=count / again,
        ratio=theirs / again,
        goal="none: what a study's later checkpoints take",
        **beside,
    )
    if shape != "7b":  # it would not fit a run's ten minutes, and is always worth compiling
        yield not_compiled(work, view, tokenizer, pairs, theirs, beside)
    yield row(
        "scoring: the first 1,000 documents, as a process begins",
        f"HellaSwag, {shape.upper()} shape",
        "s",
        our_value=first,
        goal="none",
        device=CARD,
    )
    with compiled_from(0):
        where(view, tokenizer, pairs[:4000])


def not_compiled(
    work: str, view: ArmView, tokenizer: Any, pairs: Pairs, theirs: float, beside: dict[str, Any]
) -> dict[str, Any]:
    """The row that says what compiling is worth."""
    count = len(pairs) // 4
    with compiled_from(math.inf):
        plain = ours(view, tokenizer, pairs)[2]
    return row(
        "scoring: the same, blocks not compiled",
        work,
        "documents/s",
        our_value=count / plain,
        ratio=theirs / plain,
        goal="none: how little work is not worth compiling for",
        **beside,
    )


def arms(shape: str) -> Rows:
    """Three tasks by twelve LoRA arms: the harness with PEFT measures one arm, and counts as 12."""
    shape, of_task, tokenizer = CLAIMS.shape(shape), requests(), tokenizer_of_english()
    pairs = [pair for name in TASKS for pair in of_task[name]]
    model = random_model(shape, DTYPE, DEVICE)
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
        clear()
        cohort = drifted_cohort(folder)
    view = cohort.view(cohort.passes[0])
    with compiled_from(0):
        ours(view, tokenizer, pairs[:8000])
        seconds = ours(view, tokenizer, pairs)[0]
    work = (
        f"{', '.join(TASKS)}, {len(pairs)} requests, {ARMS} LoRA arms (r 16), {shape.upper()} shape"
    )
    print(f"arms: {ARMS * theirs:.0f} s theirs, {seconds:.0f} s ours", flush=True)
    yield row(
        "scoring: twelve arms, three tasks",
        work,
        "s",
        peer=f"lm-eval hf with PEFT, batch {size}; from a third of one arm's documents",
        peer_value=ARMS * theirs,
        our_value=seconds,
        ratio=ARMS * theirs / seconds,
        goal="10x",
        device=CARD,
    )


def drifted_cohort(folder: str) -> Trainee:
    """Twelve LoRA arms over the base in a folder, far from where they began."""
    configs = [lora(16, 1e-4 * (1 + number)) for number in range(ARMS)]
    cohort = lora_cohort(Base(name=folder), configs, DEVICE, arms_per_pass=ARMS)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for flat in cohort.flats:
        flat.values.normal_(0, 0.02, generator=generator)
        flat.refresh()
    return cohort


def fastest(shape: str, model: Any, tokenizer: Any, pairs: Pairs) -> int:
    """The harness's best batch size on some of the requests."""
    found: dict[int, float] = {}
    for size in BATCHES[shape]:
        try:
            harness(model, tokenizer, pairs[: 4 * size], size)  # warm up
            found[size] = harness(model, tokenizer, pairs, size)[0]
        except torch.OutOfMemoryError:
            print(f"batch {size}: out of memory", flush=True)
            clear()
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
        made = LogLikelihoods(Encoder(tokenizer, view._trainee.model.config).portions(pairs))
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


def compiled_from(operations: float) -> AbstractContextManager[Any]:
    """Blocks are compiled for that many operations and more; a first call compiles."""
    return patch.object(packed, "COMPILED_FROM", operations)


def where(view: ArmView, tokenizer: Any, pairs: Pairs) -> None:
    """Print where the device's time goes, by kind of kernel and kernel by kernel."""
    if DEVICE.type == "cuda":
        likelihoods = LogLikelihoods(Encoder(tokenizer, view._trainee.model.config).portions(pairs))
        likelihoods.score(view)  # packs
        print(f"  {shares_of(lambda: likelihoods.score(view), 1)}", flush=True)


def agree(found: Sequence[float], reference: Sequence[float]) -> None:
    """Print how far the two are apart: both are rounded to bf16 on their ways."""
    a, b = torch.tensor(list(found)), torch.tensor(list(reference))
    error = float(((a - b).abs() / b.abs()).median())
    print(f"median relative difference {error:.2e}", flush=True)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall seconds of a call, with the device idle at both ends."""
    wait()
    started = time.perf_counter()
    found = run()
    wait()
    return time.perf_counter() - started, found


if __name__ == "__main__":
    CLAIMS.main(__doc__)
