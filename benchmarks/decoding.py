"""Decoding on one GPU: four LoRA arms against PEFT's generate, and the samples of HumanEval.

Usage: python benchmarks/decoding.py [--humaneval FILE], on a machine with a GPU; its rows go to
benchmarks/results/scoring.json. Random weights at the shapes of Llama-3.2-1B and Llama-2-7B, both
sides on the same ones; greedy answers that no token ends. FILE is HumanEval's test set (JSON
lines): its prompts' lengths are used, at 3.3 characters a token.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measurements import row, write
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import paretune.model.trainee as trainees
from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.generate import generate
from paretune.model.trainee import Trainee, lora_cohort
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

DEVICE = torch.device("cuda")
ROWS, PROMPT, NEW, ARMS, RANK = 64, 512, 128, 4, 16
SHAPES = {
    "1B": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    ),
    "7B": LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    ),
}
GOALS = {"1B": 12.0, "7B": 6.0}
NO_END = [10**9]


class NoText:
    """A tokenizer for random tokens: there is no text."""

    eos_token_id = NO_END[0]

    def decode(self, *_: Any, **__: Any) -> str:
        """Nothing."""
        return ""


@contextlib.contextmanager
def weights(shape: LlamaConfig) -> Iterator[None]:
    """Context in which a base is random weights, made on the GPU (7B are slow to draw or read)."""

    def made(*_: Any, **__: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        torch.set_default_dtype(trainees.compute_type(DEVICE))
        with torch.device(DEVICE):
            model = LlamaForCausalLM(shape)
        torch.set_default_dtype(torch.float32)
        return model.requires_grad_(False).eval()

    original = trainees.load_model
    trainees.load_model = made
    try:
        yield
    finally:
        trainees.load_model = original


def cohort(shape: LlamaConfig, arms: int) -> Trainee:
    """LoRA arms that have drifted from their random base."""
    configs = [
        ArmConfig.model_validate(
            {"method": "lora", "rank": RANK, "seed": seed, "learning_rate": 1e-4}
        )
        for seed in range(arms)
    ]
    with weights(shape):
        trainee = lora_cohort(Base(name="random"), configs, DEVICE, arms_per_pass=arms)
    for flat in trainee.flats:
        for name, parameter in flat.parameters.items():
            if name.endswith(".B"):
                torch.nn.init.normal_(parameter, std=0.02)
    refresh = [getattr(flat, "refresh", lambda: None) for flat in trainee.flats]
    for each in refresh:
        each()
    return trainee


def peft_of(trainee: Trainee, shape: LlamaConfig) -> Any:
    """The same weights and adapters as a PEFT model."""
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
    own = dict(trainee.model.named_parameters())
    for name in dict(model.named_parameters()):
        parent, _, last = name.rpartition(".")
        value = own[name].detach()
        setattr(model.get_submodule(parent), last, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()
    settings = LoraConfig(
        r=RANK, lora_alpha=int(RANK * trainee.arms[0].gamma), target_modules="all-linear"
    )
    model.model.rotary_emb = type(model.model.rotary_emb)(shape)  # not on the meta device
    peft = get_peft_model(model, settings, adapter_name="arm0")
    for index in range(1, len(trainee.arms)):
        peft.add_adapter(f"arm{index}", settings)
    modules = dict(peft.base_model.model.named_modules())
    for flat, bank in zip(trainee.flats, trainee.passes[0].banks, strict=True):
        for place, arm in enumerate(flat.arms):
            for name in bank.layers:
                for part, factor in (("A", "lora_A"), ("B", "lora_B")):
                    target = getattr(modules[name], factor)[f"arm{arm}"].weight
                    target.data.copy_(flat.parameters[f"{name}.{part}"][place].T)
    peft.to(DEVICE, trainees.compute_type(DEVICE)).eval()
    # As from_pretrained leaves it: rotary frequencies in float32, which the cast above has rounded
    model.model.rotary_emb = type(model.model.rotary_emb)(shape).to(DEVICE)
    return peft


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, with the device waited for."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


def prompts(shape: LlamaConfig) -> np.ndarray:
    """Random prompts [ROWS, PROMPT]."""
    return np.random.default_rng(0).integers(0, shape.vocab_size, (ROWS, PROMPT))


def ours(trainee: Trainee, shape: LlamaConfig) -> tuple[float, float, Any]:
    """Seconds of the first and of a second generation, and the answers."""
    requests = [GenerationRequest(prompt, NEW) for prompt in prompts(shape)]

    def work() -> Any:
        return generate(trainee.view(trainee.passes[0]), requests, NoText(), end_of_text=NO_END)

    first, _ = seconds(work)
    second, answers = seconds(work)
    return first, second, answers


def peers(peft: Any, shape: LlamaConfig, arms: int) -> tuple[float, list[torch.Tensor]]:
    """Seconds of PEFT's generate for all arms in turn, and its answers."""
    ids = torch.from_numpy(prompts(shape)).to(DEVICE)

    def work() -> list[torch.Tensor]:
        found = []
        for arm in range(arms):
            peft.set_adapter(f"arm{arm}")
            found.append(
                peft.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=NEW,
                    min_new_tokens=NEW,
                    pad_token_id=0,
                )[:, PROMPT:].cpu()
            )
        return found

    peft.set_adapter("arm0")
    peft.generate(
        input_ids=ids[:, :64],
        attention_mask=torch.ones_like(ids[:, :64]),
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=0,
    )
    return seconds(work)


def agreement(answers: Any, peer: list[torch.Tensor]) -> tuple[float, float]:
    """Shares of first tokens, and of all tokens up to the first difference, that are equal."""
    first, common = [], []
    for of_arm, other in zip(answers, peer, strict=False):
        for [answer], tokens in zip(of_arm, other.numpy(), strict=True):
            same = answer.tokens == tokens
            first.append(bool(same[0]))
            common.append(NEW if same.all() else int(same.argmin()))
    return float(np.mean(first)), float(np.mean(common)) / NEW


@torch.no_grad()
def logit_errors(trainee: Trainee, peft: Any, shape: LlamaConfig) -> tuple[float, float]:
    """Relative error of the logits after eight prompts against PEFT in float32: ours, and PEFT's.

    Ours are those of decoding: the last prompt token passes through the slots as a single one.
    """
    ids = prompts(shape)[:8]
    model = trainee.view(trainee.passes[0]).slot_model()
    model.allocate(len(ids), PROMPT)
    for arm in range(ARMS):
        model.prefill(arm, list(ids[:, :-1]), [[arm * len(ids) + row] for row in range(len(ids))])
    last = torch.from_numpy(ids[:, -1]).to(DEVICE).repeat(ARMS)
    own = model.step(last).view(ARMS, len(ids), -1)[0]
    peft.set_adapter("arm0")
    inputs = torch.from_numpy(ids).to(DEVICE)
    in_bf16 = peft(input_ids=inputs, logits_to_keep=1).logits[:, 0].float()
    exact = copy.deepcopy(peft).float()(input_ids=inputs, logits_to_keep=1).logits[:, 0]
    return tuple(float((got - exact).norm() / exact.norm()) for got in (own, in_bf16))


def cohort_rows(name: str) -> list[dict[str, Any]]:
    """Four arms of one shape: ours, then the peer."""
    shape = SHAPES[name]
    trainee = cohort(shape, ARMS)
    first, second, answers = ours(trainee, shape)
    peak = torch.cuda.max_memory_allocated() / 2**30
    peft = peft_of(trainee, shape)
    peer_seconds, peer = peers(peft, shape, ARMS)
    same, common = agreement(answers, peer)
    own_error, peer_error = logit_errors(trainee, peft, shape)
    total = ARMS * ROWS * NEW
    device = torch.cuda.get_device_name()
    work = f"{name} shape, {ARMS} LoRA arms r{RANK}, {ROWS} rows each, {PROMPT} + {NEW} tokens"
    goal = f"at least {GOALS[name]:g} times"
    return [
        row(
            f"decoding for a cohort, {name}",
            work,
            "tokens/s in all",
            our_value=total / second,
            peer="PEFT generate, arms in turn",
            peer_value=total / peer_seconds,
            ratio=peer_seconds / second,
            goal=goal,
            device=device,
        ),
        row(
            f"decoding for a cohort, {name}: the first time",
            work + "; with kernels compiled",
            "seconds",
            our_value=first,
            goal="stated",
            device=device,
        ),
        row(
            f"decoding for a cohort, {name}: memory",
            work,
            "GiB at the peak",
            our_value=peak,
            goal="stated",
            device=device,
        ),
        row(
            f"decoding for a cohort, {name}: error of logits",
            f"{name} shape; after 512 tokens, relative to PEFT in float32; greedy tokens equal at "
            f"the first place in {same:.0%} of answers, before the first difference "
            f"{common:.1%} of all (logits of random weights are flat, so rounding decides)",
            "relative error",
            our_value=own_error,
            peer="PEFT in bf16",
            peer_value=peer_error,
            ratio=peer_error / own_error,
            goal="no worse than the peer's",
            device=device,
        ),
    ]


def humaneval_rows(path: Path) -> list[dict[str, Any]]:
    """Fifty samples of each HumanEval prompt from one arm at the 1B shape."""
    shape, samples, new = SHAPES["1B"], 50, 256
    with gzip.open(path, "rt") as lines:
        lengths = [int(len(json.loads(line)["prompt"]) / 3.3) for line in lines]
    generator = np.random.default_rng(1)
    asked = [generator.integers(0, shape.vocab_size, length) for length in lengths]
    trainee = cohort(shape, 1)
    requests = [
        GenerationRequest(p, new, temperature=0.2, top_p=0.95, samples=samples) for p in asked
    ]
    view = trainee.view(trainee.passes[0])
    generate(view, requests[:2], NoText(), end_of_text=NO_END)
    taken, _ = seconds(lambda: generate(view, requests, NoText(), end_of_text=NO_END))
    peft = peft_of(trainee, shape)
    few = sorted(asked, key=len)[80:84]  # prompts of the median length, so hardly any padding
    width = max(len(prompt) for prompt in few)
    ids = torch.zeros(len(few), width, dtype=torch.int64, device=DEVICE)
    mask = torch.zeros_like(ids)
    for place, prompt in enumerate(few):
        ids[place, width - len(prompt) :] = torch.from_numpy(prompt)
        mask[place, width - len(prompt) :] = 1

    def peer() -> Any:
        return peft.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=0.2,
            top_p=0.95,
            num_return_sequences=samples,
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
        )

    part, _ = seconds(peer)
    whole = part * len(asked) / len(few)
    return [
        row(
            "50 samples of each HumanEval prompt, 1B",
            f"1B shape, one LoRA arm r{RANK}, {len(asked)} prompts x {samples}, {new} new tokens, "
            f"temperature 0.2, top_p 0.95; the peer on {len(few)} prompts at once, scaled",
            "seconds",
            our_value=taken,
            peer="PEFT generate, num_return_sequences",
            peer_value=whole,
            ratio=whole / taken,
            goal="stated",
            device=torch.cuda.get_device_name(),
        )
    ]


def main() -> None:
    """Measure and keep what could be measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--humaneval", type=Path, help="HumanEval's test set, JSON lines, gzipped")
    parser.add_argument("--shapes", default="1B,7B")
    settings = parser.parse_args()
    rows: list[dict[str, Any]] = []
    work = [functools.partial(cohort_rows, name) for name in settings.shapes.split(",")]
    if settings.humaneval:
        work.append(functools.partial(humaneval_rows, settings.humaneval))
    for each in work:
        try:
            rows += each()
        except torch.OutOfMemoryError as error:  # a smaller card: the other rows still count
            print(error)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    write("scoring", rows)


if __name__ == "__main__":
    main()
