"""Tiny bases and data that many tests use."""

from __future__ import annotations

import os

# Before torch is loaded: spinning threads starve each other on shared cores (see paretune)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from paretune.data.blocks import Blocks
from paretune.study.config import Base

torch.set_num_threads(2)
VOCABULARY = 96


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Every test begins at the same random numbers, whichever tests have run before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A Llama with random weights (32 wide, 2 layers, tied embeddings), saved to disk."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return Base(name=str(folder))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A GPT-2 with random weights: transposed matrices, biases, learned positions, dropouts."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return Base(name=str(folder))


@pytest.fixture(scope="session")
def text_blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """64 rows of 16 tokens with structure to learn: each token follows from the one before."""
    folder = tmp_path_factory.mktemp("blocks")
    generator = np.random.default_rng(0)
    rows = np.zeros((64, 16), dtype=np.uint16)
    rows[:, 0] = generator.integers(0, VOCABULARY, 64)
    for position in range(1, 16):
        rows[:, position] = (
            rows[:, position - 1] * 5 + 7 + generator.integers(0, 3, 64)
        ) % VOCABULARY
    np.save(folder / "tokens.npy", rows)
    return Blocks(folder, "cpt")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.exists():
        pytest.fail("../shared is not beside the repository; run without -m shared")
    return folder
