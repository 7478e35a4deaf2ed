"""What cannot be sharded, or needs more devices than there are: refused before it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paretune.errors import UserError
from paretune.study.arms import ArmConfig
from paretune.study.config import Study
from paretune.study.memory import Workload
from paretune.study.sharding import Sharding
from paretune.study.units import size


def check_sharding(
    study: Study,
    groups: Sequence[Sequence[ArmConfig]],
    trained: Mapping[str, int],
    load: Workload,
    *,
    planning: bool = False,
) -> None:
    """Look at the cohorts that one device has no room for, or that the study wants sharded.

    Args:
        planning: the machine may have too few devices.

    Raises:
        UserError: an arm that cannot be sharded, or too few devices, with the numbers.
    """
    with study.places.named():
        for group in groups:
            found = load.sharding(group, trained)
            if found is None:
                continue
            for arm in group:
                _refuse_variants(study, arm, found)
            if not planning:
                _refuse_size(study, group, found, load)


def _refuse_variants(study: Study, arm: ArmConfig, found: Sharding) -> None:
    """What reads whole weights outside of a forward pass, or draws by rows of a batch."""
    why = (
        "training.devices_per_cohort shards the base"
        if study.config.training.devices_per_cohort
        else "one device has no room for this arm, and the base is sharded"
    )
    held = {
        "dora": bool(arm.dora),
        "bias": bool(arm.bias),
        "init": arm.init == "pissa",
        "attention_dropout": bool(arm.attention_dropout),
    }
    for setting, on in held.items():
        if on:
            raise UserError(
                f"{study.places.arm_key(arm.id, setting)}: {_NAMES[setting]} needs whole weights, "
                f"and {why}; leave out one of the two"
            )
    if study.config.base.quantise:
        raise UserError(
            f"base.quantise: a quantised base cannot be sharded, and {why}; leave out one of the "
            "two"
        )


_NAMES = {
    "dora": "DoRA",
    "bias": "training biases",
    "init": "PiSSA",
    "attention_dropout": "attention dropout",
}


def _refuse_size(study: Study, group: Sequence[ArmConfig], found: Sharding, load: Workload) -> None:
    machine = load.machine
    key = study.places.arm_key(group[0].id, "method")
    if not found.devices:
        raise UserError(
            f"{key}: no number of devices like {machine.name} has room: {parts(found)}; use "
            "smaller blocks (training.block_length) or fewer arms together"
        )
    if machine.kind == "cuda" and found.devices > machine.devices:
        raise UserError(
            f"{key}: {machine.name} has {size(machine.memory)}, and this takes {found.devices} of "
            f"them, sharded (FSDP2), with {size(found.memory)} on each: {parts(found)}. There "
            f"{'is' if machine.devices == 1 else 'are'} {machine.devices} here; run it where there "
            "are more, or set training.offload: true"
        )


def parts(found: Sharding) -> str:
    """What each device holds, in words."""
    text = (
        f"weights {size(found.weights)}, gradients {size(found.gradients)}, optimizer states "
        f"{size(found.states)}, gathered blocks {size(found.gathered)}, activations "
        f"{size(found.activations)}" + (" (recomputed)" if found.recompute else "")
    )
    if found.host:
        text += f", and {size(found.host)} of the machine's memory for all"
    return text
