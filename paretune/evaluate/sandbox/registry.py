"""Sandboxes by name, and the choice of the strongest one that works here."""

from __future__ import annotations

from typing import Protocol

from paretune.errors import UserError
from paretune.evaluate.sandbox import bubblewrap
from paretune.evaluate.sandbox.pool import Pool
from paretune.evaluate.sandbox.program import Limits, Sandbox

AUTO = "auto"
UNSAFE = "unsafe"


class Factory(Protocol):
    """Starts a sandbox, or says in a UserError why this machine cannot have it."""

    def __call__(self, *, workers: int | None, limits: Limits | None) -> Sandbox: ...


def _namespaces(*, workers: int | None, limits: Limits | None) -> Sandbox:
    return Pool("namespaces", "namespaces", workers=workers, limits=limits)


def _bubblewrap(*, workers: int | None, limits: Limits | None) -> Sandbox:
    return Pool(
        "bubblewrap", "namespaces", workers=workers, limits=limits, around=bubblewrap.command
    )


def _landlock(*, workers: int | None, limits: Limits | None) -> Sandbox:
    return Pool("landlock", "landlock", workers=workers, limits=limits)


def _unsafe(*, workers: int | None, limits: Limits | None) -> Sandbox:
    return Pool(UNSAFE, "none", workers=workers, limits=limits)


# The strongest first: ``auto`` tries them in this order, and never ``unsafe``
_FACTORIES: dict[str, Factory] = {
    "bubblewrap": _bubblewrap,
    "namespaces": _namespaces,
    "landlock": _landlock,
    UNSAFE: _unsafe,
}


def register(name: str, factory: Factory) -> None:
    """Add a sandbox of your own under ``name``, or replace one; ``auto`` does not choose it."""
    _FACTORIES[name] = factory


def open_sandbox(
    name: str = AUTO, *, workers: int | None = None, limits: Limits | None = None
) -> Sandbox:
    """Start a sandbox.

    Args:
        name: ``auto``, the strongest that works here, or one of the registry.
        workers: programs at once; by default one for each core this process may use.
        limits: what one program may use.

    Raises:
        UserError: there is no such sandbox, or this machine cannot have it.
    """
    if name == AUTO:
        return _strongest(workers, limits)
    if name not in _FACTORIES:
        known = ", ".join([AUTO, *_FACTORIES])
        raise UserError(f"sandbox: there is no '{name}'; give one of {known}")
    try:
        return _FACTORIES[name](workers=workers, limits=limits)
    except UserError as error:
        raise UserError(f"sandbox {name}: not possible here ({error}); {_REMEDY}") from error


_REMEDY = (
    "allow unprivileged user namespaces on this machine (sysctl user.max_user_namespaces above 0, "
    "and kernel.unprivileged_userns_clone=1 or kernel.apparmor_restrict_unprivileged_userns=0 "
    "where these exist), or run where the kernel has Landlock; on a machine that holds nothing of "
    "worth, sandbox: unsafe runs the programs without protection"
)


def _strongest(workers: int | None, limits: Limits | None) -> Sandbox:
    reasons = []
    for name, factory in _FACTORIES.items():
        if name == UNSAFE:
            break
        try:
            return factory(workers=workers, limits=limits)
        except UserError as error:
            reasons.append(f"{name} ({error})")
    raise UserError(
        "sandbox: programs that nobody has read are to be run, and none of the sandboxes works "
        f"here: {', '.join(reasons)}; {_REMEDY}"
    )
