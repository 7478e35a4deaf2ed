"""Small operations of a model done by one kernel each, where a trial shows that they are the same.

Decoding launches hundreds of kernels a token that each do next to nothing; norms and rotary
embeddings, written out in transformers as seven to twelve of them, are the most of these.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

ROTARY = "apply_rotary_pos_emb"
TOLERANCE = 1e-2  # relative, of bf16 results


class FusedNorm(torch.nn.Module):
    """Root mean square norm (Zhang and Sennrich, 2019) in one kernel."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        weight = self.weight.to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, self.eps)


@torch.no_grad()
def fuse_norms(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Exchange the model's own norm modules that compute a root mean square norm."""
    known: dict[tuple[type, int, float], bool] = {}
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            weights = list(module.parameters())
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            plain = not list(module.children()) and not type(module).__module__.startswith("torch.")
            if not plain or len(weights) != 1 or weights[0].dim() != 1 or eps is None:
                continue
            fused = FusedNorm(weights[0].detach(), float(eps))
            kind = (type(module), len(weights[0]), float(eps))
            if kind not in known:
                known[kind] = _same(module, fused, dtype)
            if known[kind]:
                setattr(parent, name, fused)


def _same(module: torch.nn.Module, fused: FusedNorm, dtype: torch.dtype) -> bool:
    device, width = fused.weight.device, len(fused.weight)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(3, width, device=device, generator=generator).to(dtype)
    # A gain of its own: one of all ones hides whether a family adds 1 to it
    gain = torch.randn(width, device=device, generator=generator).to(fused.weight.dtype)
    own = copy.copy(module)
    own._parameters = dict.fromkeys(module._parameters, torch.nn.Parameter(gain))
    expected = own(x).float()
    got = F.rms_norm(x, (width,), gain.to(dtype), fused.eps).float()
    return bool((expected - got).norm() <= TOLERANCE * expected.norm())


@torch.no_grad()
def rotary_modules(model: torch.nn.Module, dtype: torch.dtype) -> list[Any]:
    """Python modules that define the model's classes and whose rotary function is the usual one."""
    from paretune.model.slots.rotary_kernel import apply_rotary_pos_emb

    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    q, k, angle = (
        torch.randn(2, heads, 3, 16, device=device, generator=generator) for heads in (4, 2, 1)
    )
    angle = angle[:, 0, :, :8].repeat(1, 1, 2)
    given = (q.to(dtype), k.to(dtype), angle.cos(), angle.sin())
    found = []
    for name in sorted({type(module).__module__ for module in model.modules()}):
        original = getattr(sys.modules.get(name), ROTARY, None)
        if original is None:
            continue
        try:
            pairs = list(zip(original(*given), apply_rotary_pos_emb(*given), strict=True))
        except (TypeError, ValueError, RuntimeError):
            continue
        if all((a.float() - b.float()).norm() <= TOLERANCE * a.float().norm() for a, b in pairs):
            found.append(sys.modules[name])
    return found


@contextmanager
def rotary_in_one_kernel(modules: list[Any]) -> Iterator[None]:
    """Context in which these Python modules use the fused rotary function."""
    if not modules:
        yield
        return
    from paretune.model.slots.rotary_kernel import apply_rotary_pos_emb

    originals = [getattr(module, ROTARY) for module in modules]
    for module in modules:
        setattr(module, ROTARY, apply_rotary_pos_emb)
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            setattr(module, ROTARY, original)
