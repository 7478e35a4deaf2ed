"""Weights with an arm axis: full finetuning of several arms in one forward pass."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from paretune.model.flat import Flat
from paretune.study.arms import ArmConfig


class FullBank:
    """All weights of full-finetuning arms, [K, ...] each, in float32.

    Args:
        arms: the K arms; ``positions`` are their places in the cohort.
        base: the base's parameters by name, each once (tied weights under their first name).
        copied: names of those that products read in bf16.
    """

    def __init__(
        self,
        arms: Sequence[ArmConfig],
        positions: Sequence[int],
        base: dict[str, torch.Tensor],
        device: torch.device,
        copied: Collection[str] = (),
    ) -> None:
        self.arms = list(arms)
        self._base = base
        shapes = {name: tuple(value.shape) for name, value in base.items()}
        self.flat = Flat(
            positions, shapes, arm_axis=True, device=device, copied=copied, train_copies=True
        )
        self.reset()

    def reset(self) -> None:
        """Set every arm to the base's weights."""
        for row in range(len(self.arms)):
            for name, own in self.flat.tensors(row).items():
                own.copy_(self._base[name])
        self.flat.refresh()


class ArmModule(torch.nn.Module):
    """A module of the base whose weights are each arm's own; rows come arm-major, [K * B, ...].

    With one arm the module itself runs on that arm's weights, so that its arithmetic is the
    base's own. Its parameters live in a bank, never here.

    Args:
        names: the module's own name of a parameter -> its name in the bank.

    Attributes:
        weights: [K, ...] by the module's own names, of the arms of the current pass.
        rows: rows of the whole batch, for embeddings of positions that all rows share.
    """

    def __init__(
        self, module: torch.nn.Module, names: dict[str, str], device: torch.device
    ) -> None:
        super().__init__()
        self._names = names
        self.weights: dict[str, torch.Tensor] = {}
        self.count = self.rows = 0
        self._float32 = False
        for name, parameter in _own(module).items():
            # Shape, type and device stay known; the memory is given back
            stand_in = torch.empty(1, dtype=parameter.dtype, device=device).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(stand_in, requires_grad=False))
        self.module = module
        self._folded = _folded(module)

    @property
    def weight(self) -> Any:
        """Shape and type of one arm's weight, for code that asks the base's modules."""
        return self.module.weight

    def use(self, bank: FullBank | None) -> None:
        """Compute with the weights of a bank's arms from here on; None: with nobody's."""
        self.weights = self.of(bank) if bank else {}
        self.count = len(bank.arms) if bank else 0

    def of(self, bank: FullBank) -> dict[str, torch.Tensor]:
        """A bank's weights [K, ...] of this module, by the module's own names."""
        return {own: bank.flat.parameters[stored] for own, stored in self._names.items()}

    @contextmanager
    def float32_outputs(self) -> Iterator[None]:
        """Within, a linear layer on a GPU does not round its outputs to bf16."""
        self._float32 = isinstance(self.module, torch.nn.Linear)
        try:
            yield
        finally:
            self._float32 = False

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[K * B, ...] -> [K * B, ...]; a single row of positions serves all rows."""
        if self.count == 0:
            raise ValueError("full arms have no base beneath them")
        if self._float32 and x.is_cuda:
            return _float32_linear(x, self.weights["weight"].mT, self.weights.get("bias"))
        if self.count == 1:
            alone = {name: value.view(value.shape[1:]) for name, value in self.weights.items()}
            return _call(self.module, alone, x, *args, **kwargs)
        if x.shape[0] == 1:
            x = x.expand(self.rows, *x.shape[1:])
        return self._folded(self.weights, x, *args, **kwargs)


def carries_arm_axis(module: torch.nn.Module) -> bool:
    """Whether :class:`ArmModule` can stand in the place of a module that has parameters itself.

    Linear layers (also GPT-2's Conv1D) can. Embeddings of any make can, and what multiplies or
    adds vectors along the last axis, such as a norm of any make; these are tried out.
    """
    if type(module) is torch.nn.Linear or isinstance(module, Conv1D):
        return True
    own = _own(module)
    if any(True for _ in module.children()):
        return False
    if isinstance(module, torch.nn.Embedding):
        plain = type(module) is torch.nn.Embedding
        ids = torch.tensor([[0, 1], [1, 0]] * 2)
        return module.max_norm is None and (plain or _works(module, ids, own))
    if any(p.dim() != 1 for p in own.values()) or len({p.shape for p in own.values()}) > 1:
        return False
    (width,) = next(iter(own.values())).shape
    return _works(module, torch.randn(4, 3, width, generator=_generator()), own)


def refuse_reason(model: torch.nn.Module) -> str | None:
    """Why the weights of a model cannot carry an arm axis, or None where they can."""
    for name, module in model.named_modules():
        if _own(module) and not carries_arm_axis(module):
            return f"{name} is a {type(module).__name__}, whose weights cannot carry several arms"
    return None


def give_arm_axis(
    model: torch.nn.Module, device: torch.device
) -> tuple[dict[str, torch.Tensor], list[ArmModule]]:
    """Put an :class:`ArmModule` in the place of every module with weights.

    Returns:
        The base's weights by name, each once, and the new modules.

    Raises:
        ValueError: a module cannot carry an arm axis (see :func:`refuse_reason`).
    """
    reason = refuse_reason(model)
    if reason:
        raise ValueError(reason)
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    # Tied weights are one tensor under several names; the bank knows the first
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    old = {name: m for name, m in model.named_modules() if _own(m)}
    modules = []
    for name, module in old.items():
        names = {own: first[id(p)] for own, p in _own(module).items()}
        modules.append(ArmModule(module, names, device))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, modules[-1])
    return base, modules


def _own(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of a module itself, not of modules in it."""
    return dict(module.named_parameters(recurse=False))


def _call(
    module: torch.nn.Module, weights: dict[str, torch.Tensor], *args: Any, **kwargs: Any
) -> torch.Tensor:
    out: torch.Tensor = functional_call(module, weights, args, kwargs)
    return out


Folded = Callable[..., torch.Tensor]


def _folded(module: torch.nn.Module) -> Folded:
    """What computes the module for several arms: of weights [K, ...] and rows [K * B, ...]."""
    if isinstance(module, Conv1D):
        return lambda own, x: _linear(x, own["weight"], own["bias"])
    if isinstance(module, torch.nn.Linear):
        return lambda own, x: _linear(x, own["weight"].mT, own.get("bias"))
    if isinstance(module, torch.nn.Embedding):
        return functools.partial(_embedding, module)
    return functools.partial(_elementwise, module)


def _linear(
    x: torch.Tensor, weight_KDO: torch.Tensor, bias_KO: torch.Tensor | None
) -> torch.Tensor:
    x_KND = x.reshape(weight_KDO.shape[0], -1, x.shape[-1])
    if bias_KO is None:
        y_KNO = torch.bmm(x_KND, weight_KDO)
    else:
        y_KNO = torch.baddbmm(bias_KO[:, None], x_KND, weight_KDO)
    return y_KNO.view(*x.shape[:-1], y_KNO.shape[-1])


def _float32_linear(
    x: torch.Tensor, weight_KDO: torch.Tensor, bias_KO: torch.Tensor | None
) -> torch.Tensor:
    """The same from bf16 factors, with outputs that are not rounded to bf16."""
    x_KND = x.reshape(weight_KDO.shape[0], -1, x.shape[-1]).to(torch.bfloat16)
    with torch.autocast("cuda", enabled=False):
        y_KNO = torch.bmm(x_KND, weight_KDO.to(torch.bfloat16), out_dtype=torch.float32)
    if bias_KO is not None:
        y_KNO = y_KNO + bias_KO[:, None].float()
    return y_KNO.view(*x.shape[:-1], y_KNO.shape[-1])


def _embedding(
    module: torch.nn.Module,
    own: dict[str, torch.Tensor],
    ids: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    # Table by table: an arm's rows lie apart in the bank, and one table of all would be a copy
    count = len(own["weight"])
    parts = []
    for k, weight_VD in enumerate(own["weight"].unbind()):

        def mine(value: Any, k: int = k) -> Any:
            """An arm's rows of whatever has rows; positions of one row serve all."""
            if not torch.is_tensor(value) or value.shape[0] != ids.shape[0]:
                return value
            return value.chunk(count)[k]

        given = {name: mine(value) for name, value in kwargs.items()}
        weights = {"weight": weight_VD}
        parts.append(_call(module, weights, *map(mine, (ids, *args)), **given))
    return torch.cat(parts)


def _elementwise(
    module: torch.nn.Module,
    own: dict[str, torch.Tensor],
    x: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    """A norm of any make: each row meets its own arm's vector, [K * B, 1, ..., D]."""
    rows = {}
    for name, value_KD in own.items():
        each = x.shape[0] // value_KD.shape[0]
        shape = (x.shape[0], *(1,) * (x.dim() - 2), value_KD.shape[1])
        rows[name] = value_KD.repeat_interleave(each, dim=0).view(shape)
    if type(module) is torch.nn.LayerNorm:
        y = F.layer_norm(x, module.normalized_shape, None, None, module.eps) * rows["weight"]
        return y + rows["bias"] if "bias" in rows else y
    if type(module) is torch.nn.RMSNorm:
        return F.rms_norm(x, list(module.normalized_shape), None, module.eps) * rows["weight"]
    return _call(module, rows, x, *args, **kwargs)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def _works(module: torch.nn.Module, x: torch.Tensor, own: dict[str, torch.nn.Parameter]) -> bool:
    """Whether two arms' weights give in one pass over four rows what they give one by one.

    The module may be on the meta device; what it has besides parameters is taken to be ones.
    """
    trial = copy.deepcopy(module)
    for name, buffer in trial.named_buffers():
        trial.register_buffer(name, torch.ones(buffer.shape, dtype=buffer.dtype))
    drawn = _generator()
    weights = {
        name: torch.nn.Parameter(torch.randn(2, *parameter.shape, generator=drawn))
        for name, parameter in own.items()
    }
    try:
        together = _folded(trial)(weights, x)
        alone = [
            _call(trial, {name: v[k] for name, v in weights.items()}, x[2 * k : 2 * k + 2])
            for k in range(2)
        ]
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError):
        return False
    return torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
