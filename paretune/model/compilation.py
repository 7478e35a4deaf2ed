"""What can be compiled: single functions, and a model's repeated blocks (``regions``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def fused(function: Function, *, dynamic: bool = False) -> Function:
    """A function of tensors as one kernel, or as few as the compiler needs; made once.

    Args:
        dynamic: one form for all shapes, rather than a form for each.
    """
    return torch.compile(function, dynamic=dynamic)  # type: ignore[return-value]


def repeated_blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks that a model stacks: children of its outermost lists of modules of one class."""
    blocks: list[torch.nn.Module] = []
    within: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in within):
            continue
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1:
            children = list(module)
            if all(type(child) is type(children[0]) for child in children):
                blocks += children
                within.append(name + ".")
    return blocks
