"""Decoding on one GPU: four LoRA arms against PEFT's generate, and the samples of HumanEval.

Usage: python benchmarks/decoding.py [--rows a,b] [--tiny] [--results DIR] [--shared DIR], on a
machine with a GPU; writes rows of scoring.json. Random weights at the shapes of Llama-3.2-1B and
Llama-2-7B, both sides on the same ones; greedy answers that no token ends. Of HumanEval's test set
the prompts' lengths are used, at 3.3 characters a token.
"""

from __future__ import annotations

import copy
import gzip
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from claims import CARD, DEVICE, Claims, wait
from cohort_models import config, exact_positions, loading, lora
from measurements import row
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.generate import generate
from paretune.model.flat import compute_type
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import Trainee

CLAIMS = Claims("scoring")
Rows = Iterator[dict[str, Any]]
ARMS, RANK = 4, 16
NO_END = [10**9]


class NoText:
    """A tokenizer for random tokens: there is no text."""

    eos_token_id = NO_END[0]

    def decode(self, *_: Any, **__: Any) -> str:
        """Nothing."""
        return ""


def sizes() -> tuple[int, int, int]:
    """Rows, tokens of a prompt, and new tokens."""
    return (4, 16, 8) if CLAIMS.tiny else (64, 512, 128)


def cohort(shape: str, arms: int) -> Trainee:
    """LoRA arms that have drifted from their random base."""
    configs = [lora(RANK, 1e-4, seed=seed) for seed in range(arms)]
    with loading(shape, DEVICE) as base:
        trainee = lora_cohort(base, configs, DEVICE, arms_per_pass=arms)
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
    peft.to(DEVICE, compute_type(DEVICE)).eval()
    exact_positions(model, DEVICE)
    return peft


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time of a call, with the device waited for."""
    wait()
    started = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - started, result


def prompts(shape: LlamaConfig) -> np.ndarray:
    """Random prompts, a row each."""
    return np.random.default_rng(0).integers(0, shape.vocab_size, sizes()[:2])


def ours(trainee: Trainee, shape: LlamaConfig) -> tuple[float, float, Any]:
    """Seconds of the first and of a second generation, and the answers."""
    requests = [GenerationRequest(prompt, sizes()[2]) for prompt in prompts(shape)]

    def work() -> Any:
        return generate(trainee.view(trainee.passes[0]), requests, NoText(), end_of_text=NO_END)

    first, _ = seconds(work)
    second, answers = seconds(work)
    return first, second, answers


def peers(peft: Any, shape: LlamaConfig, arms: int) -> tuple[float, list[torch.Tensor]]:
    """Seconds of PEFT's generate for all arms in turn, and its answers."""
    ids = torch.from_numpy(prompts(shape)).to(DEVICE)
    _, length, new = sizes()

    def work() -> list[torch.Tensor]:
        found = []
        for arm in range(arms):
            peft.set_adapter(f"arm{arm}")
            found.append(
                peft.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    pad_token_id=0,
                )[:, length:].cpu()
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
    new = sizes()[2]
    for of_arm, other in zip(answers, peer, strict=False):
        for [answer], tokens in zip(of_arm, other.numpy(), strict=True):
            same = answer.tokens == tokens
            first.append(bool(same[0]))
            common.append(new if same.all() else int(same.argmin()))
    return float(np.mean(first)), float(np.mean(common)) / new


@torch.no_grad()
def logit_errors(trainee: Trainee, peft: Any, shape: LlamaConfig) -> tuple[float, float]:
    """Relative error of the logits after eight prompts against PEFT in float32: ours, and PEFT's.

    Ours are those of decoding: the last prompt token passes through the slots as a single one.
    """
    ids = prompts(shape)[:8]
    model = trainee.view(trainee.passes[0]).slot_model()
    model.allocate(len(ids), ids.shape[1])
    for arm in range(ARMS):
        model.prefill(arm, list(ids[:, :-1]), [[arm * len(ids) + row] for row in range(len(ids))])
    last = torch.from_numpy(ids[:, -1]).to(DEVICE).repeat(ARMS)
    own = model.step(last).view(ARMS, len(ids), -1)[0]
    peft.set_adapter("arm0")
    inputs = torch.from_numpy(ids).to(DEVICE)
    in_bf16 = peft(input_ids=inputs, logits_to_keep=1).logits[:, 0].float()
    exact = copy.deepcopy(peft).float()(input_ids=inputs, logits_to_keep=1).logits[:, 0]
    return tuple(float((got - exact).norm() / exact.norm()) for got in (own, in_bf16))


def cohort_rows(name: str, goal: float) -> Rows:
    """Four arms of one shape: ours, then the peer."""
    named, name = name.upper(), CLAIMS.shape(name)
    shape = config(name)
    trainee = cohort(name, ARMS)
    first, second, answers = ours(trainee, shape)
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0
    peft = peft_of(trainee, shape)
    peer_seconds, peer = peers(peft, shape, ARMS)
    same, common = agreement(answers, peer)
    own_error, peer_error = logit_errors(trainee, peft, shape)
    rows, prompt, new = sizes()
    total = ARMS * rows * new
    work = f"{named} shape, {ARMS} LoRA arms r{RANK}, {rows} rows each, {prompt} + {new} tokens"
    yield row(
        f"decoding for a cohort, {named}",
        work,
        "tokens/s in all",
        our_value=total / second,
        peer="PEFT generate, arms in turn",
        peer_value=total / peer_seconds,
        ratio=peer_seconds / second,
        goal=f"at least {goal:g} times",
        device=CARD,
    )
    yield row(
        f"decoding for a cohort, {named}: the first time",
        work + "; with kernels compiled",
        "seconds",
        our_value=first,
        goal="stated",
        device=CARD,
    )
    yield row(
        f"decoding for a cohort, {named}: memory",
        work,
        "GiB at the peak",
        our_value=peak,
        goal="stated",
        device=CARD,
    )
    yield row(
        f"decoding for a cohort, {named}: error of logits",
        f"{named} shape; after {prompt} tokens, relative to PEFT in float32; greedy tokens equal "
        f"at the first place in {same:.0%} of answers, before the first difference {common:.1%} of "
        "all (logits of random weights are flat, so rounding decides)",
        "relative error",
        our_value=own_error,
        peer="PEFT in bf16",
        peer_value=peer_error,
        ratio=peer_error / own_error,
        goal="no worse than the peer's",
        device=CARD,
    )


@CLAIMS
def cohort_1b() -> Rows:
    """Four arms at the 1B shape."""
    return cohort_rows("1b", 12.0)


@CLAIMS
def humaneval_1b() -> Rows:
    """Fifty samples of each HumanEval prompt from one arm at the 1B shape."""
    name, samples, new = CLAIMS.shape("1b"), 50, 256
    path = CLAIMS.shared / "data" / "eval" / "humaneval-test.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        lengths = [int(len(json.loads(line)["prompt"]) / 3.3) for line in lines]
    if CLAIMS.tiny:
        lengths, samples, new = [length // 10 + 1 for length in lengths[:6]], 3, 8
    shape = config(name)
    generator = np.random.default_rng(1)
    asked = [generator.integers(0, shape.vocab_size, length) for length in lengths]
    trainee = cohort(name, 1)
    requests = [
        GenerationRequest(p, new, temperature=0.2, top_p=0.95, samples=samples) for p in asked
    ]
    view = trainee.view(trainee.passes[0])
    generate(view, requests[:2], NoText(), end_of_text=NO_END)
    taken, _ = seconds(lambda: generate(view, requests, NoText(), end_of_text=NO_END))
    peft = peft_of(trainee, shape)
    few = sorted(asked, key=len)[len(asked) // 2 - 2 :][
        :4
    ]  # prompts of the median length, so hardly any padding
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
    yield row(
        "50 samples of each HumanEval prompt, 1B",
        f"1B shape, one LoRA arm r{RANK}, {len(asked)} prompts x {samples}, {new} new tokens, "
        f"temperature 0.2, top_p 0.95; the peer on {len(few)} prompts at once, scaled",
        "seconds",
        our_value=taken,
        peer="PEFT generate, num_return_sequences",
        peer_value=whole,
        ratio=whole / taken,
        goal="stated",
        device=CARD,
    )


@CLAIMS
def cohort_7b() -> Rows:
    """Four arms at the 7B shape."""
    return cohort_rows("7b", 6.0)


if __name__ == "__main__":
    CLAIMS.main(__doc__)
