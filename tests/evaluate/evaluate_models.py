"""Small models for the tests of scoring: K separate Llama models that answer as one ArmModel."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 96
TEXT = [
    "The cat sat on the mat.\nThe dog ran after the cat.\n",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 22))\n",
    "It was a cold day in April, and the clocks were striking thirteen.\n",
]


def llama(seed: int, *, vocabulary: int = VOCABULARY, scale: float = 6.0) -> LlamaForCausalLM:
    """A tiny random Llama; ``scale`` sharpens its distributions so that choices are clear-cut."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5.0)
        model.lm_head.weight.mul_(scale)
    return model


class Models:
    """K models with weights of their own as one ArmModel; counts its forward passes."""

    def __init__(self, *models: LlamaForCausalLM, rows: int = 4) -> None:
        self.models = models
        self.count = len(models)
        self.device = torch.device("cpu")
        self.rows = rows
        self.passes = 0

    def logits(self, input_ids_BS: Any, attention_mask_BS: Any = None, position_ids_BS: Any = None):
        self.passes += 1
        out = [
            model(
                input_ids=input_ids_BS,
                attention_mask=attention_mask_BS,
                position_ids=position_ids_BS,
                use_cache=False,
            ).logits
            for model in self.models
        ]
        return torch.stack(out)

    def step(
        self,
        input_ids_KBS: Any,
        *,
        past: Any = None,
        attention_mask_KBS: Any = None,
        position_ids_KBS: Any = None,
        use_cache: bool = True,
    ):
        """Splits one arm-major transformers cache among the models and joins theirs again."""
        self.passes += 1
        B = input_ids_KBS.shape[1]
        logits, caches = [], []
        for k, model in enumerate(self.models):
            own = DynamicCache()
            if past is not None:
                for layer in range(len(past.layers)):
                    keys, values = past.layers[layer].keys, past.layers[layer].values
                    own.update(keys[k * B : (k + 1) * B], values[k * B : (k + 1) * B], layer)
            settings = {}
            if attention_mask_KBS is not None:
                settings["attention_mask"] = attention_mask_KBS[k]
            if position_ids_KBS is not None:
                settings["position_ids"] = position_ids_KBS[k]
            out = model(
                input_ids=input_ids_KBS[k], past_key_values=own, use_cache=use_cache, **settings
            )
            logits.append(out.logits)
            caches.append(out.past_key_values)
        joined = DynamicCache()
        for layer in range(len(caches[0].layers)):
            joined.update(
                torch.cat([cache.layers[layer].keys for cache in caches]),
                torch.cat([cache.layers[layer].values for cache in caches]),
                layer,
            )
        return torch.stack(logits), joined


def broken(seed: int) -> LlamaForCausalLM:
    """A model whose logits are all NaN."""
    model = llama(seed)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    return model


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 288 entries; id 0 is the end-of-text token."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=288,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|endoftext|>")


def random_tokens(length: int, seed: int, *, vocabulary: int = VOCABULARY) -> np.ndarray:
    """Tokens 1 to V - 1, int64."""
    return np.random.default_rng(seed).integers(1, vocabulary, length)
