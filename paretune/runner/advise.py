"""Advice on a study's ledger: advice.json in its folder, and the same as text."""

from __future__ import annotations

import math
import re
import shlex
import textwrap
from pathlib import Path

from paretune.analyse.advice import Advice, advise
from paretune.errors import UserError
from paretune.files import keep_json
from paretune.runner.ledger import Ledger
from paretune.runner.record import read_record
from paretune.runner.workspace import check_arms
from paretune.study.memory import cohort_bytes
from paretune.study.shapes import Batch
from paretune.study.units import duration, size

UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30}


def advice(
    folder: Path | str,
    *,
    forget_at_most: float | None = None,
    memory: int | str | None = None,
    metric: str | None = None,
) -> Advice:
    """Which arm of the study in ``folder`` to take, and what to run next; kept in advice.json.

    Args:
        forget_at_most: the most that may be forgotten, in the forgetting metric's unit.
        memory: bytes of the device that is to train it, or text such as 24GB.
        metric: the forgetting metric; the study's own by default.

    Raises:
        UserError: no study there, an unknown metric, or a limit that is not a size.
    """
    ledger = Ledger.open(Path(folder))
    record = read_record(ledger)
    bytes_ = parse_memory(memory)
    if forget_at_most is not None and not math.isfinite(forget_at_most):
        raise UserError(f"--forget-at-most {forget_at_most}: give a number, such as 0.5")
    if metric is not None and metric not in record.forgetting_metrics():
        known = ", ".join(record.forgetting_metrics()) or "none yet"
        raise UserError(f"--metric: {metric} is no scored metric of forgetting; there is {known}")
    trained, needs = sizes(ledger)
    found = advise(
        record,
        forget_at_most=forget_at_most,
        metric=metric,
        memory=bytes_,
        trained=trained,
        needs=needs,
    )
    keep_json(ledger.folder / "advice.json", found.record())
    return found


def sizes(ledger: Ledger) -> tuple[dict[str, int], dict[str, int]]:
    """Trained parameters, and a GPU's bytes to train each arm by itself, a row at a time.

    Both are empty where the base is away.
    """
    from paretune.model.load import load_shape
    from paretune.model.shape import model_shape

    study, arms = ledger.study(), ledger.arms()
    try:
        trained = check_arms(study, list(arms.values()))
        with study.places.named():
            base = study.config.base
            shape = model_shape(load_shape(base), quantised=base.quantise is not None)
    except UserError:
        return {}, {}
    one_row = Batch(1, study.config.training.block_length)
    return trained, {
        arm.id: cohort_bytes(shape, [arm], trained, one_row, 1, "cuda") for arm in arms.values()
    }


def parse_memory(value: int | str | None) -> int | None:
    """Bytes from ``24GB`` (powers of ten), ``24GiB`` or a number of bytes."""
    if value is None or isinstance(value, int):
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
    if not match or match[2].upper() not in UNITS or float(match[1]) <= 0:
        raise UserError(f"--memory: '{value}' is not a size; write 24GB or 24GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def advice_text(found: Advice, folder: Path) -> str:
    """The advice for the terminal."""
    lines = [_wrap(found.headline), ""]
    lines += [_wrap(line, "  ") for line in found.why]
    if found.choice is not None:
        one = found.choice
        cost = []
        if one.seconds is not None:
            cost.append(f"{duration(one.seconds)} of this study's device")
        if one.trained is not None and one.bytes is not None:
            kind = "adapter" if one.group != "full" else "weights"
            cost.append(f"{one.trained:,} trained parameters, {kind} of {size(one.bytes)}")
        if one.memory is not None:
            cost.append(f"{size(one.memory)} to train by itself")
        if cost:
            lines.append(_wrap(f"It costs {'; '.join(cost)}.", "  "))
        lines.append(_wrap(_export(folder, one.arm, one.tokens), "  "))
    if found.table:
        lines += ["", "What each limit on forgetting would buy:"]
        lines += [
            f"  forgot {one.forgetting:.3g}, learned {one.learning:.3g}: {one.words}"
            for one in found.table
        ]
    if found.next:
        lines += ["", "What to run next:"]
        lines += [_wrap(f"{i}. {step}", "  ") for i, step in enumerate(found.next, start=1)]
    lines += ["", *(_wrap(note) for note in found.notes)] if found.notes else []
    lines.append(
        _wrap(f"Learning is the gain over the base in {found.learning_metric}, forgetting the "
              f"loss in {found.forgetting_metric}; brackets are 95% intervals.")
    )  # fmt: skip
    return "\n".join(lines)


def _export(folder: Path, arm: str, tokens: int) -> str:
    if not (folder / "arms" / arm / "checkpoints" / str(tokens)).exists():
        return f"Its checkpoint was not kept ({arm}): to have it, run the study with it again."
    name = shlex.quote(str(folder))
    return f"To take it: paretune export {name} {arm}@{tokens} --to exported"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent)
