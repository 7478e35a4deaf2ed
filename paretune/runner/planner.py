"""Planning a study: every mistake that can be known now, and what the study will take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from paretune.data.prepare import Prepared, check_budgets, prepare
from paretune.model.load import load_tokenizer
from paretune.runner.device import check_compiler, choose, measure
from paretune.runner.sharding import check_sharding
from paretune.runner.workspace import (
    check_arms,
    check_tokens,
    one_by_one,
    unreached_by_lora,
    workload,
)
from paretune.study.arms import ArmConfig
from paretune.study.config import Study
from paretune.study.plan import Plan, cohorts, make_plan
from paretune.study.shapes import Machine
from paretune.study.yamlfile import load_study
from paretune.train.legs import leg_schedule, legs
from paretune.train.schedule import Span


@dataclass(frozen=True)
class StudyPlan:
    """A plan with what it is about: arms, budgets in tokens, and the machine it assumes."""

    study: Study
    arms: dict[str, ArmConfig]
    trained: dict[str, int]
    budgets: tuple[int, ...]
    machine: Machine
    plan: Plan
    notes: tuple[str, ...]


def plan(study: Study | Path | str, *, device: str | None = None) -> StudyPlan:
    """Check a study and say what it will take; nothing is trained and nothing is kept.

    Raises:
        UserError: any mistake in the file, the base, the arms, the data or the budgets.
    """
    if not isinstance(study, Study):
        study = load_study(Path(study))
    with study.places.named():
        return _plan(study, device)


def _plan(study: Study, device: str | None) -> StudyPlan:
    config = study.config
    trained = check_arms(study)
    notes: list[str] = []
    tokenizer = load_tokenizer(config.base)
    with TemporaryDirectory() as folder:
        prepared: Prepared = prepare(config, tokenizer, Path(folder) / "data", note=notes.append)
        check_tokens(config.base, tokenizer, prepared.blocks)
        # Built to find what is wrong with texts and tasks now, not when the base is scored
        from paretune.evaluate.suite import Suite

        Suite.build(config, tokenizer, prepared, Path(folder))
        steps = check_budgets(config, prepared.blocks)
        count = prepared.blocks.count
        del prepared
    batch, length = config.training.batch_size, config.training.block_length
    span = Span(tokens_per_step=batch * length, steps_per_epoch=max(1, count // batch))
    mode = config.budgets.mode
    for arm in study.arms:
        for leg in legs(steps, mode, arm.schedule, span):
            leg_schedule(leg, mode, arm.schedule, span, steps)
    runs = legs(steps, mode, study.arms[0].schedule, span)
    where = choose(device)
    check_compiler(where)
    machine = measure(where)
    work = workload(config, machine)
    reason = one_by_one(config, study.arms, machine)
    if reason:
        notes.append(f"full arms train one after another: {reason}")
    if any(arm.method != "full" for arm in study.arms) and (unreached := unreached_by_lora(config)):
        notes.append(unreached)
    groups = cohorts(study.arms, trained, work)
    check_sharding(study, groups, trained, work, planning=True)
    made = make_plan(
        groups,
        trained,
        work,
        steps=sum(leg.stop - leg.start for leg in runs),
        budgets=len(steps) if config.checkpoints.keep == "all" else 1,
    )
    return StudyPlan(
        study=study,
        arms={arm.id: arm for arm in study.arms},
        trained=trained,
        budgets=tuple(step * batch * length for step in steps),
        machine=machine,
        plan=made,
        notes=tuple(notes),
    )
