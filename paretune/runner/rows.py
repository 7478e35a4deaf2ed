"""What each kind of record in a ledger must hold, checked as it is read.

A checksum tells that a record is what someone wrote, not that Paretune did. So types are checked
too, and names that become paths; what does not fit is damage like any other.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from paretune.errors import Damaged, UserError

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@,-]{0,200}")
# Becomes a file name, with dots for slashes
_Metric = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][^\x00-\x1f\x7f]{0,120}$")]
_Count = Annotated[StrictInt, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@with_config(ConfigDict(extra="allow"))
class ScoreRow(TypedDict):
    """A line of scores.jsonl."""

    tokens: _Count
    metric: _Metric
    value: _Number | None
    side: NotRequired[StrictStr]
    unit: NotRequired[StrictStr]
    higher_is_better: NotRequired[StrictBool]
    stderr: NotRequired[_Number | None]
    n: NotRequired[_Count]
    reason: NotRequired[StrictStr | None]
    note: NotRequired[StrictStr]
    items_sha256: NotRequired[StrictStr | None]


@with_config(ConfigDict(extra="allow"))
class CurveRow(TypedDict):
    """A line of train.jsonl."""

    leg: StrictStr
    step: _Count
    tokens: _Count
    loss: NotRequired[_Number | None]
    grad_norm: NotRequired[_Number | None]
    learning_rate: NotRequired[_Number | None]


@with_config(ConfigDict(extra="allow"))
class StatusRecord(TypedDict, total=False):
    """status.json."""

    state: Literal["planned", "running", "done", "diverged"]
    step: _Count
    tokens: _Count
    seconds: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
    diverged_at: _Count | None
    reason: StrictStr | None


@with_config(ConfigDict(extra="allow"))
class LogRow(TypedDict):
    """A line of runs/RUNNER.jsonl."""

    time: StrictStr
    event: StrictStr


@with_config(ConfigDict(extra="allow"))
class PaceRow(TypedDict):
    """What a cohort on a GPU notes of its memory after a few steps."""

    arms: list[StrictStr]
    measured_bytes: _Count


@with_config(ConfigDict(extra="allow"))
class EndedRow(TypedDict):
    """What a process notes at its end."""

    seconds: dict[StrictStr, _Number]
    versions: dict[StrictStr, StrictStr]
    device: StrictStr
    command: StrictStr
    started: StrictStr | None
    finished: StrictStr | None


@with_config(ConfigDict(extra="allow"))
class Facts(TypedDict, total=False):
    """ledger.json."""

    format: Annotated[StrictInt, Field(ge=1, lt=2**31)]
    paretune: StrictStr
    study: StrictStr


@with_config(ConfigDict(extra="allow"))
class CohortsRecord(TypedDict):
    """cohorts.json."""

    cohorts: list[list[Annotated[StrictStr, Field(pattern=f"^{_PLAIN.pattern}$")]]]


SCORES = TypeAdapter(list[ScoreRow])
CURVE = TypeAdapter(list[CurveRow])
STATUS = TypeAdapter(StatusRecord)
LOG_ROW = TypeAdapter(LogRow)
PACE = TypeAdapter(PaceRow)
ENDED = TypeAdapter(EndedRow)
FACTS = TypeAdapter(Facts)
COHORTS = TypeAdapter(CohortsRecord)


def checked(kind: TypeAdapter[Any], value: Any, path: Path) -> Any:
    """``value`` itself, once it is known to be of this kind.

    Raises:
        Damaged: it is not; the message names the file, the row and the field.
    """
    try:
        kind.validate_python(value)
    except ValidationError as error:
        raise not_of_kind(error, path) from error
    return value


def fits(kind: TypeAdapter[Any], value: Any) -> bool:
    """Whether ``value`` is of this kind."""
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


def not_of_kind(error: ValidationError, path: Path) -> Damaged:
    """The damage that a failed validation of a file's content stands for."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = [f"row {part + 1}" if isinstance(part, int) else str(part) for part in first["loc"]]
    place = f" ({', '.join(where)}: {first['msg']})" if where else f" ({first['msg']})"
    return Damaged(path, f"{path}: not what Paretune writes{place}; restore it from a backup")


def plain_name(name: str, what: str) -> str:
    """``name``, once it is known to be safe as the name of a file or folder.

    Raises:
        UserError: it could lead elsewhere, or is no name.
    """
    if not _PLAIN.fullmatch(name):
        raise UserError(
            f"{what}: '{name[:80]!s}' is not a name that Paretune gives; "
            "letters, digits and . _ - only, beginning with a letter or digit"
        )
    return name
