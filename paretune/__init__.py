"""Paretune: what a finetune learns and what it forgets, for every method, on your model and data.

The names below are the public interface; everything else may change. They are loaded when first
used, so that importing the package costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from paretune.version import VERSION

if TYPE_CHECKING:
    from paretune.analyse.cost import costs
    from paretune.analyse.flips import flips
    from paretune.analyse.frontier import frontier
    from paretune.analyse.hypervolume import hypervolumes
    from paretune.analyse.matched import matched
    from paretune.analyse.pairs import compare_pairs
    from paretune.analyse.results import tidy
    from paretune.analyse.sensitivity import sensitivity
    from paretune.errors import UserError, UserErrors
    from paretune.report.figures import charts
    from paretune.runner.advise import advice as advise
    from paretune.runner.card import card
    from paretune.runner.claims import claims
    from paretune.runner.compare import compare
    from paretune.runner.export import export
    from paretune.runner.planner import StudyPlan, plan
    from paretune.runner.record import record_of as load
    from paretune.runner.report import write_report
    from paretune.runner.run import run
    from paretune.runner.spectrum import model_spectra, study_spectra
    from paretune.runner.status import ArmStatus, status
    from paretune.study.arms import ArmConfig
    from paretune.study.config import Study, StudyConfig
    from paretune.study.yamlfile import load_study, parse_study

__version__ = VERSION
# Where torch is not loaded yet: threads that wait by spinning starve each other when the cores are
# shared with other work. On two busy cores training went nine times faster with threads that sleep
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_WHERE = {
    "ArmConfig": "paretune.study.arms",
    "ArmStatus": "paretune.runner.status",
    "Study": "paretune.study.config",
    "StudyConfig": "paretune.study.config",
    "StudyPlan": "paretune.runner.planner",
    "UserError": "paretune.errors",
    "UserErrors": "paretune.errors",
    "advise": "paretune.runner.advise:advice",
    "card": "paretune.runner.card",
    "charts": "paretune.report.figures",
    "claims": "paretune.runner.claims",
    "compare": "paretune.runner.compare",
    "compare_pairs": "paretune.analyse.pairs",
    "costs": "paretune.analyse.cost",
    "export": "paretune.runner.export",
    "flips": "paretune.analyse.flips",
    "frontier": "paretune.analyse.frontier",
    "hypervolumes": "paretune.analyse.hypervolume",
    "load": "paretune.runner.record:record_of",
    "load_study": "paretune.study.yamlfile",
    "matched": "paretune.analyse.matched",
    "model_spectra": "paretune.runner.spectrum",
    "parse_study": "paretune.study.yamlfile",
    "plan": "paretune.runner.planner",
    "run": "paretune.runner.run",
    "sensitivity": "paretune.analyse.sensitivity",
    "status": "paretune.runner.status",
    "study_spectra": "paretune.runner.spectrum",
    "tidy": "paretune.analyse.results",
    "write_report": "paretune.runner.report",
}

__all__ = [
    "ArmConfig",
    "ArmStatus",
    "Study",
    "StudyConfig",
    "StudyPlan",
    "UserError",
    "UserErrors",
    "advise",
    "card",
    "charts",
    "claims",
    "compare",
    "compare_pairs",
    "costs",
    "export",
    "flips",
    "frontier",
    "hypervolumes",
    "load",
    "load_study",
    "matched",
    "model_spectra",
    "parse_study",
    "plan",
    "run",
    "sensitivity",
    "status",
    "study_spectra",
    "tidy",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'paretune' has no attribute '{name}'")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
