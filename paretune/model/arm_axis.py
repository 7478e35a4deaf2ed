"""Weights with an arm axis: full finetuning of several arms in one forward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass
class Current:
    """Whose weights the modules of one model use right now; one object shared by all of them.

    ``rows`` are those of the whole batch, all arms together.
    """

    bank: FullBank | None = None
    rows: int = 0

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """[K, ...] by name."""
        if self.bank is None:
            raise ValueError("full arms have no base beneath them")
        return self.bank.flat.parameters

    @property
    def count(self) -> int:
        """Number of arms folded into the batch."""
        return 0 if self.bank is None else len(self.bank.arms)


class ArmModule(torch.nn.Module):
    """A module of the base whose weights are each arm's own; rows come arm-major, [K * B, ...].

    With one arm the module itself runs on that arm's weights, so that its arithmetic is the
    base's own. Its parameters live in the bank, never here.

    Args:
        names: the module's own name of a parameter -> its name in the bank.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        names: dict[str, str],
        current: Current,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._names = names
        self._current = current
        for name, parameter in _own(module).items():
            # Shape, type and device stay known; the memory is given back
            stand_in = torch.empty(1, dtype=parameter.dtype, device=device).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(stand_in, requires_grad=False))
        self.module = module
        self._folded = _folded(module)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[K * B, ...] -> [K * B, ...]; a single row of positions serves all rows."""
        weights = self._current.weights
        own = {name: weights[stored] for name, stored in self._names.items()}
        count = self._current.count
        if count == 1:
            alone = {name: value.view(value.shape[1:]) for name, value in own.items()}
            return _call(self.module, alone, x, *args, **kwargs)
        if x.shape[0] == 1:
            x = x.expand(self._current.rows, *x.shape[1:])
        return self._folded(own, x, *args, **kwargs)

    def of_each_arm(
        self, weights: Mapping[str, torch.Tensor]
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Weight [d_out, d_in] and bias of a linear layer for each arm of a bank."""
        matrices = weights[self._names["weight"]].unbind()
        if "bias" not in self._names:
            return [(matrix, None) for matrix in matrices]
        return list(zip(matrices, weights[self._names["bias"]].unbind(), strict=True))


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
        return module.max_norm is None and _works(module, torch.tensor([[0, 1], [1, 0]] * 2), own)
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
    model: torch.nn.Module, current: Current, device: torch.device
) -> dict[str, torch.Tensor]:
    """Put an :class:`ArmModule` in the place of every module with weights.

    Returns:
        The base's weights by name, each once.

    Raises:
        ValueError: a module cannot carry an arm axis (see :func:`refuse_reason`).
    """
    reason = refuse_reason(model)
    if reason:
        raise ValueError(reason)
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    # Tied weights are one tensor under several names; the bank knows the first
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    modules = {name: m for name, m in model.named_modules() if _own(m)}
    for name, module in modules.items():
        names = {own: first[id(p)] for own, p in _own(module).items()}
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, ArmModule(module, names, current, device))
    return base


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


def _embedding(
    module: torch.nn.Module,
    own: dict[str, torch.nn.Parameter],
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
    own: dict[str, torch.nn.Parameter],
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
    """Whether two arms' weights give in one pass over four rows what they give one by one."""
    drawn = _generator()
    weights = {
        name: torch.nn.Parameter(torch.randn(2, *parameter.shape, generator=drawn))
        for name, parameter in own.items()
    }
    try:
        together = _folded(module)(weights, x)
        alone = [
            _call(module, {name: v[k] for name, v in weights.items()}, x[2 * k : 2 * k + 2])
            for k in range(2)
        ]
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError):
        return False
    return torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
