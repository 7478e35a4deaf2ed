"""Decoding in slots (what a GPU does, run on the CPU here) against transformers and one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluate_models import random_tokens, tokenizer
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from paretune.evaluate.decode import slots
from paretune.evaluate.decode.request import GenerationRequest
from paretune.evaluate.decode.stops import Growing, Language
from paretune.evaluate.generate import generate
from paretune.model.load import load_model
from paretune.model.lora_cohort import lora_cohort
from paretune.model.slots.fuse import FusedNorm, fuse_norms
from paretune.model.slots.model import SlotModel
from paretune.model.trainee import frozen, full_arm
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

CPU = torch.device("cpu")
PROMPTS = [random_tokens(length, seed) for seed, length in enumerate([9, 3, 14, 9, 1, 6, 11, 2])]
REQUESTS = [
    GenerationRequest(prompt, count)
    for prompt, count in zip(PROMPTS, [12, 3, 9, 1, 20, 5, 12, 7], strict=True)
]
NO_END = 1_000_000


def lora(rank: int, seed: int, targets: str | list[str] = "all") -> ArmConfig:
    return ArmConfig.model_validate(
        {"method": "lora", "rank": rank, "seed": seed, "targets": targets, "learning_rate": 1e-3}
    )


def cohort(base: Base, *arms: ArmConfig):
    """A trainee whose arms have drifted far from the base, all in one pass."""
    trainee = lora_cohort(base, list(arms), CPU, arms_per_pass=len(arms))
    generator = torch.Generator().manual_seed(3)
    for flat in trainee.flats:
        for name, parameter in flat.parameters.items():
            if name.endswith(".B"):
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainee


def merged(trainee, arm: int):
    """The plain transformers model of one arm: W0 + gamma (A B)^T in every adapted layer."""
    model = load_model(trainee.base, CPU)
    for flat, bank in zip(trainee.flats, trainee.passes[0].banks, strict=True):
        if arm not in flat.arms:
            continue
        row = flat.arms.index(arm)
        for name in bank.layers:
            delta = flat.parameters[f"{name}.A"][row] @ flat.parameters[f"{name}.B"][row]
            module = model.get_submodule(name)
            update = (delta * trainee.arms[arm].gamma).detach()
            module.weight.data += update if bank.layers[name].transposed else update.T
    return model


def in_slots(model: SlotModel, requests, *, rows: int = 100, end: int = NO_END, entropy=False):
    """All arms' answers, decoded in slots."""
    language = Language.of(tokenizer(), requests, [end])
    growing = [
        [[Growing(request, language) for _ in range(request.samples)] for request in requests]
        for _ in range(model.count)
    ]
    slots.decode(
        model, requests, growing, frozenset([end]), entropy=entropy, most_rows=rows * model.count
    )
    return [[[row.answer(entropy=entropy) for row in s] for s in of_arm] for of_arm in growing]


def tokens(answers) -> list[list[list[list[int]]]]:
    return [[[a.tokens.tolist() for a in s] for s in of_arm] for of_arm in answers]


def reference(model, requests, end: int = NO_END) -> list[list[list[int]]]:
    """transformers' own greedy answers, one prompt at a time."""
    found = []
    for request in requests:
        ids = torch.from_numpy(request.prompt)[None]
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            pad_token_id=0,
            eos_token_id=end,
        )[0, len(request.prompt) :].tolist()
        found.append([out[: out.index(end)] if end in out else out])
    return found


ARMS = (lora(4, 0), lora(4, 1), lora(2, 2, ["q_proj", "down_proj"]), lora(8, 3, "mlp"))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_every_arm_of_a_cohort_writes_what_its_merged_model_writes(tiny_base, rows):
    trainee = cohort(tiny_base, *ARMS)
    model = trainee.view(trainee.passes[0]).slot_model()
    got = tokens(in_slots(model, REQUESTS, rows=rows))
    expected = [reference(merged(trainee, arm), REQUESTS) for arm in range(4)]
    assert got == expected
    assert len({str(of_arm) for of_arm in expected}) == 4, "the arms should differ"


def test_end_of_text_ends_rows_and_others_take_their_place(tiny_base):
    trainee = cohort(tiny_base, *ARMS[:2])
    view = trainee.view(trainee.passes[0])
    free = tokens(in_slots(view.slot_model(), REQUESTS))
    end = free[0][4][0][3]
    got = in_slots(view.slot_model(), REQUESTS, rows=2, end=end)
    expected = [reference(merged(trainee, arm), REQUESTS, end) for arm in range(2)]
    assert tokens(got) == expected
    assert {a.finish for of_arm in got for [a] in of_arm} == {"end", "length"}


def test_samples_and_entropy_are_those_of_decoding_with_the_models_own_cache(tiny_base):
    requests = [
        replace(r, samples=3, temperature=0.7, top_p=0.9, max_new_tokens=8) for r in REQUESTS
    ] + [replace(REQUESTS[2], samples=2)]
    trainee = cohort(tiny_base, *ARMS)
    view = trainee.view(trainee.passes[0])
    trainee.rows = 50
    own = generate(view, requests, tokenizer(), end_of_text=[5], entropy=True)
    got = in_slots(view.slot_model(), requests, rows=5, end=5, entropy=True)
    assert tokens(got) == tokens(own)
    for mine, other in zip(got[3], own[3], strict=True):
        for answer, wanted in zip(mine, other, strict=True):
            assert answer.entropy == pytest.approx(wanted.entropy, abs=1e-4)
            assert answer.finish == wanted.finish


def test_stop_strings_end_rows(tiny_base):
    trainee = frozen(tiny_base, CPU)
    trainee.rows = 50
    view = trainee.view(None)
    free = in_slots(view.slot_model(), REQUESTS)[0]
    stops = tuple(free[index][0].text[2:4] for index in (0, 2, 4))
    requests = [replace(request, stop=stops) for request in REQUESTS]
    got = in_slots(view.slot_model(), requests, rows=2)[0]
    [own] = generate(view, requests, tokenizer(), end_of_text=[NO_END])
    assert [a.text for [a] in got] == [a.text for [a] in own]
    assert [a.finish for [a] in got] == [a.finish for [a] in own]
    assert [a.tokens.tolist() for [a] in got] == [a.tokens.tolist() for [a] in own]
    assert "stop" in {a.finish for [a] in got}


def test_a_full_arm_and_transposed_layers_with_biases(tiny_gpt2):
    arm = ArmConfig.model_validate({"method": "full", "learning_rate": 1e-4})
    trainee = full_arm(tiny_gpt2, arm, CPU)
    with torch.no_grad():
        trainee.flats[0].values.mul_(1.1)
    got = tokens(in_slots(trainee.view(trainee.passes[0]).slot_model(), REQUESTS, rows=3))
    assert got == [reference(trainee.model, REQUESTS)]
    adapted = cohort(tiny_gpt2, lora(4, 0), lora(4, 1))
    got = tokens(in_slots(adapted.view(adapted.passes[0]).slot_model(), REQUESTS, rows=3))
    assert got == [reference(merged(adapted, arm), REQUESTS) for arm in range(2)]


def test_a_broken_arm_disturbs_no_other(tiny_base):
    trainee = cohort(tiny_base, *ARMS[:2])
    flat = trainee.flats[0]
    whole = tokens(in_slots(trainee.view(trainee.passes[0]).slot_model(), REQUESTS))
    with torch.no_grad():
        flat.values[1].fill_(float("nan"))
    view = trainee.view(trainee.passes[0])
    model = view.slot_model()
    assert model.check(view.logits) is None
    got = in_slots(model, REQUESTS)
    assert {answer.finish for [answer] in got[1]} == {"broken"}
    assert tokens(got)[0] == whole[0]


def test_the_trainee_stays_as_it_was(tiny_base):
    trainee = cohort(tiny_base, *ARMS[:2])
    view = trainee.view(trainee.passes[0])
    before = view.logits(torch.from_numpy(PROMPTS[2])[None])
    addresses = [parameter.data_ptr() for parameter in trainee.model.parameters()]
    in_slots(view.slot_model(), REQUESTS)
    assert torch.equal(view.logits(torch.from_numpy(PROMPTS[2])[None]), before)
    assert [parameter.data_ptr() for parameter in trainee.model.parameters()] == addresses


SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
KNOWN = {
    "query norms": (Qwen3ForCausalLM, Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8)),
    "one product for q, k and v": (GPTNeoXForCausalLM, GPTNeoXConfig(**SMALL)),
    "a window longer than a slot": (
        MistralForCausalLM,
        MistralConfig(**SMALL, num_key_value_heads=2),
    ),
    "experts": (
        MixtralForCausalLM,
        MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4),
    ),
}
UNKNOWN = {
    "a short window": (
        MistralForCausalLM,
        MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=4),
    ),
    "capped scores": (Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8)),
    "attention of its own": (
        BloomForCausalLM,
        BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    ),
}


def build(kind) -> tuple[torch.nn.Module, SlotModel]:
    torch.manual_seed(0)
    model = kind[0](kind[1]).eval().requires_grad_(False)
    short = torch.zeros(1, 2, dtype=torch.int64)
    slot_model = SlotModel(model, [], 1, CPU, torch.float32, lambda m: m(input_ids=short))
    return model, slot_model


@pytest.mark.parametrize("kind", KNOWN)
def test_other_models_in_slots(kind):
    model, slot_model = build(KNOWN[kind])
    assert slot_model.check(lambda ids: model(input_ids=ids).logits[None]) is None
    assert tokens(in_slots(slot_model, REQUESTS, rows=3)) == [reference(model, REQUESTS)]


@pytest.mark.parametrize("kind", UNKNOWN)
def test_models_whose_attention_is_not_known_are_told_apart(kind):
    model, slot_model = build(UNKNOWN[kind])
    assert slot_model.check(lambda ids: model(input_ids=ids).logits[None])


def test_a_layer_that_is_not_applied_is_noticed(tiny_base):
    """The check compares with the ordinary pass, whatever it is that differs."""
    trainee = cohort(tiny_base, *ARMS[:2])
    view = trainee.view(trainee.passes[0])
    without = trainee.view(None).slot_model()
    reason = without.check(lambda ids: view.logits(ids)[:1])
    assert reason is not None
    assert "standard deviations" in reason


def test_requests_of_like_length_share_slots():
    lengths = [100, 90, 51, 49, 30, 24, 10]
    requests = [GenerationRequest(np.ones(n - 5, np.int64), 5) for n in lengths]
    assert list(slots.classes(requests)) == [[0, 1, 2], [3, 4], [5], [6]]


@pytest.mark.parametrize(
    ("kind", "config", "exchanged"),
    [
        (Qwen3ForCausalLM, Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8), 9),
        (Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2), 0),
        (GPTNeoXForCausalLM, GPTNeoXConfig(**SMALL), 0),
    ],
    ids=["root mean square", "with 1 added to its gain", "layer norm of torch"],
)
def test_norms_are_exchanged_only_where_a_trial_agrees(kind, config, exchanged):
    torch.manual_seed(0)
    model = kind(config)
    ids = torch.from_numpy(PROMPTS[2])[None]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "weight", None), torch.nn.Parameter):
                module.weight.add_(0.1 * torch.randn(module.weight.shape))
        before = model(input_ids=ids).logits
        fuse_norms(model, torch.float32)
        assert sum(isinstance(m, FusedNorm) for m in model.modules()) == exchanged
        torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-5)
