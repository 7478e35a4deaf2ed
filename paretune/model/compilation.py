"""What can be compiled: single functions, and a model's repeated blocks (``regions``).

torch compiles a piece of code at most eight times in a process; what would need a ninth form runs
uncompiled from there on, several times slower. A study trains and scores many cohorts of different
shapes in one process, so here that limit is raised for as long as our own code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
FORMS = 8  # torch's own limit for one piece of code
_NO_LIMIT = 1 << 30


def forms_allowed(forms: int = _NO_LIMIT) -> AbstractContextManager[Any]:
    """Within, one piece of code may be compiled this many times, for shapes or kinds of arguments.

    By default as often as it takes, which is right only where nothing but these can differ.
    """
    from torch._dynamo import config

    limits = {"recompile_limit": forms, "accumulated_recompile_limit": _NO_LIMIT}
    return config.patch(limits)  # type: ignore[no-any-return]


def start_workers() -> None:
    """Let the processes start that build a GPU's kernels, beside what comes before the first.

    Each of them imports torch; what is compiled meanwhile is built one by one in this process. It
    changes nothing but the time, so it may fail where torch has no such call.
    """
    with suppress(ImportError, AttributeError):
        from torch._inductor.async_compile import maybe_warm_pool

        maybe_warm_pool()  # as torch does at the first compilation; nothing without Triton


def fused(
    function: Callable[Arguments, Result], *, dynamic: bool = False
) -> Callable[Arguments, Result]:
    """A function of tensors as one kernel, or as few as the compiler needs.

    It is compiled when it is first called, and again for what is new in its arguments, without a
    limit. Within code that is being compiled it becomes a part of that.

    Args:
        dynamic: one form for all shapes, rather than a form for each.
    """
    compiled: list[Callable[Arguments, Result]] = []

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not compiled:
            compiled.append(torch.compile(function, dynamic=dynamic))
        with forms_allowed():
            return compiled[0](*args, **kwargs)

    return run


def fused_on_gpu(
    function: Callable[Concatenate[torch.Tensor, Arguments], Result],
    *,
    dynamic: bool = False,
    on_cpu: Callable[Concatenate[torch.Tensor, Arguments], Result] | None = None,
) -> Callable[Concatenate[torch.Tensor, Arguments], Result]:
    """A function of tensors, :func:`fused` on a GPU and as it is written on a CPU.

    There it is plain eager code: its arithmetic is then the same to the bit on every machine and in
    every process, it needs no compiler, and small studies do not wait for one. The device is that
    of the first argument.

    Args:
        dynamic: on a GPU, one form for all shapes, rather than a form for each.
        on_cpu: the same function in another form, where that is faster in eager code.
    """
    plain, compiled = on_cpu or function, fused(function, dynamic=dynamic)

    @wraps(function)
    def run(first: torch.Tensor, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return (compiled if first.is_cuda else plain)(first, *args, **kwargs)

    return run


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
