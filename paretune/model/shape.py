"""The shape of a model as the memory and time model needs it, read without any weights."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from paretune.model.attention import attending
from paretune.model.compilation import repeated_blocks
from paretune.model.layers import Layer, linear_layers
from paretune.study.shapes import ModelShape


def model_shape(model: Any, *, quantised: bool = False) -> ModelShape:
    """The shape of a model on any device, the meta device included.

    Args:
        quantised: it trains as the quantised base of adapters, which is not compiled.
    """
    layers = linear_layers(model)
    config = model.config.get_text_config(decoder=True)
    shared = _sharing(model, layers)
    blocks = {id(block): block for block in repeated_blocks(model)}
    names = {name: key for name, module in model.named_modules() if (key := id(module)) in blocks}
    per_block: dict[str, int] = {}
    for name, layer in layers.items():
        kept = layer.d_out + (0 if name in shared else layer.d_in)
        block = next((b for b in names if name.startswith(b + ".")), "")
        per_block[block] = per_block.get(block, 0) + kept
    count = max(1, len(blocks))  # of a single layer nothing repeats: it is one block
    heads = int(getattr(config, "num_attention_heads", 1))
    head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        matrices=sum(layer.d_in * layer.d_out for layer in layers.values()),
        vocabulary=int(config.vocab_size),
        width=int(config.hidden_size),
        layers=len(layers),
        blocks=count,
        outputs=sum(layer.d_out for layer in layers.values()),
        kept=sum(per_block.values()),
        widest=max(per_block.values(), default=0),
        attended=heads * head * count,
        eager=quantised or not blocks,
    )


@torch.no_grad()
def _sharing(model: Any, layers: dict[str, Layer]) -> set[str]:
    """Layers whose input another layer has taken already, found in one short forward pass."""
    seen: dict[int, torch.Tensor] = {}
    shared: set[str] = set()

    def note(name: str) -> Any:
        def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if id(inputs[0]) in seen:
                shared.add(name)
            seen[id(inputs[0])] = inputs[0]  # kept, so that its id is not used again

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_pre_hook(note(name)) for name in layers]
    device = next(model.parameters()).device
    # A model that cannot run here counts every layer's input: its memory is overestimated
    unable = RuntimeError, NotImplementedError, TypeError, ValueError
    with suppress(*unable), attending(model):  # which makes no masks: those need numbers
        model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return shared
