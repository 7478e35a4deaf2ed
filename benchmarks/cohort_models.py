"""Random models at real shapes, random tokens, and the arms that train on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.data.blocks import Blocks
from paretune.model import full_cohort, lora_cohort, trainee
from paretune.model.shape import model_shape
from paretune.study.arms import ArmConfig
from paretune.study.config import Base
from paretune.study.shapes import ModelShape

# vocabulary, width, inner width, layers, heads, key-value heads, head and embedding tied
SHAPES = {
    "13b": (32_000, 5120, 13_824, 40, 40, 40, False),
    "7b": (32_000, 4096, 11_008, 32, 32, 32, False),
    "3b": (128_256, 3072, 8192, 28, 24, 8, True),
    "1b": (128_256, 2048, 8192, 16, 32, 8, True),
    "0.35b": (49_152, 960, 2560, 32, 15, 5, True),
    "0.1b": (49_152, 576, 1536, 30, 9, 3, True),
    "tiny": (8192, 64, 96, 3, 4, 2, True),
}
NAMES = {
    "13b": "13B shape (Llama-2)",
    "7b": "7B shape (Llama-2)",
    "3b": "3B shape (Llama-3.2)",
    "1b": "1B shape (Llama-3.2)",
    "0.35b": "0.35B shape (SmolLM)",
    "0.1b": "0.1B shape (SmolLM)",
    "tiny": "tiny shape",
}
BASE = Base(name="random")


def config(shape: str) -> LlamaConfig:
    """The configuration of a shape."""
    vocabulary, width, inner, layers, heads, kv_heads, tied = SHAPES[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
    )


def random_model(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The shape with the random weights that transformers gives it under seed 0."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = LlamaForCausalLM(config(shape))
    finally:
        torch.set_default_dtype(before)
    model.to(dtype)
    exact_positions(model, device)
    return model.eval().requires_grad_(False)


def exact_positions(model: Any, device: torch.device) -> None:
    """Rotary frequencies in float32, as from_pretrained leaves them; a cast rounds them."""
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)


@contextmanager
def loading(shape: str, device: torch.device) -> Iterator[Base]:
    """A base whose weights are made on the device instead of being read from a folder."""
    before = trainee.load_model
    users = (trainee, lora_cohort, full_cohort)

    def load(base: Base, on: torch.device, *, dtype: torch.dtype = torch.float32, **_: Any) -> Any:
        return random_model(shape, dtype, device)

    for module in users:
        module.load_model = load
    try:
        yield BASE
    finally:
        for module in users:
            module.load_model = before


def token_blocks(folder: Path, shape: str, count: int, length: int) -> Blocks:
    """Random rows of tokens on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    np.save(folder / "tokens.npy", draw.integers(0, SHAPES[shape][0], (count, length), np.uint32))
    return Blocks(folder, "cpt")


def lora(rank: int, rate: float = 1e-4, **settings: Any) -> ArmConfig:
    """A LoRA arm on all linear layers with a constant rate."""
    return ArmConfig.model_validate(
        {"method": "lora", "rank": rank, "learning_rate": rate, "schedule": CONSTANT, **settings}
    )


def full(rate: float = 1e-5) -> ArmConfig:
    """A full arm with a constant rate."""
    return ArmConfig.model_validate({"method": "full", "learning_rate": rate, "schedule": CONSTANT})


CONSTANT = {"shape": "constant", "warmup": "0%"}


def flops_per_token(shape: str, length: int, *, full: bool) -> float:
    """4 N (adapters) or 6 N (full) FLOPs, N without the embedding's look-up; attention left out."""
    vocabulary, width, inner, layers, heads, kv_heads, _ = SHAPES[shape]
    head = width // heads
    per_layer = width * (2 * width + 2 * kv_heads * head) + 3 * width * inner
    return (6 if full else 4) * (layers * per_layer + vocabulary * width)


def shape_of(name: str) -> ModelShape:
    """A shape as the memory and time model reads it."""
    with torch.device("meta"):
        return model_shape(LlamaForCausalLM(config(name)))
