"""Paretune: what a finetune learns and what it forgets, for every method, on your model and data.

The names below are the public interface; everything else may change. They are loaded when first
used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paretune.errors import UserError, UserErrors
    from paretune.run.export import export
    from paretune.run.planner import StudyPlan, plan
    from paretune.run.record import record_of as load
    from paretune.run.report import report
    from paretune.run.runner import run
    from paretune.run.status import ArmStatus, status
    from paretune.study.arms import ArmConfig
    from paretune.study.config import Study, StudyConfig
    from paretune.study.yamlfile import load_study, parse_study

_WHERE = {
    "ArmConfig": "paretune.study.arms",
    "ArmStatus": "paretune.run.status",
    "Study": "paretune.study.config",
    "StudyConfig": "paretune.study.config",
    "StudyPlan": "paretune.run.planner",
    "UserError": "paretune.errors",
    "UserErrors": "paretune.errors",
    "export": "paretune.run.export",
    "load": "paretune.run.record:record_of",
    "load_study": "paretune.study.yamlfile",
    "parse_study": "paretune.study.yamlfile",
    "plan": "paretune.run.planner",
    "report": "paretune.run.report",
    "run": "paretune.run.runner",
    "status": "paretune.run.status",
}

__all__ = [
    "ArmConfig",
    "ArmStatus",
    "Study",
    "StudyConfig",
    "StudyPlan",
    "UserError",
    "UserErrors",
    "export",
    "load",
    "load_study",
    "parse_study",
    "plan",
    "report",
    "run",
    "status",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'paretune' has no attribute '{name}'")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
