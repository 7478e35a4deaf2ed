"""Tasks of the lm-evaluation-harness by name, with their data from the hub or from a mirror."""

from __future__ import annotations

import io
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from paretune.data.mirror import Mirror
from paretune.data.network import UNREACHED, answered_at_once
from paretune.errors import UserError, first_line
from paretune.evaluate.tasks.templates import templates_compiled_once
from paretune.study.mistakes import closest
from paretune.study.tasks import Task

# The harness's own: of Python and of numpy while tasks load, and of the few-shot sampler
PYTHON_SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234


def load(task: Task, mirror: Mirror, where: str) -> list[Any]:
    """The harness's task objects that a name stands for: one, or those of a group or tag.

    Their requests are built, with the few-shot seed and settings of ``lm_eval --tasks NAME``.

    Args:
        where: the key of the study file, for messages.

    Raises:
        UserError: there is no such task, its data cannot be read, or a setting does not fit it.
    """
    with _quiet(), _seeded(), templates_compiled_once():
        names = _index([task.name])
        if task.name not in names:
            known = closest(task.name, _all_names())
            hint = f"; did you mean {known}?" if known else ""
            raise UserError(f"{where}: the harness has no task '{task.name}'{hint}")
        found = _load(task, _specification(task.name, names, mirror), names, mirror, where)
        for part in found:
            _configure(part, task, where)
            _check_code(part, where)
            part.set_fewshot_seed(seed=FEWSHOT_SEED)
            part.build_all_requests(limit=task.limit)
    return found


def generates(name: str) -> bool:
    """Whether a task, or one of those that a group or tag stands for, asks for written answers."""
    with _quiet():
        entries = _index([name]).values()
    return any((entry.cfg or {}).get("output_type") == "generate_until" for entry in entries)


def _load(
    task: Task, specification: Any, names: Mapping[str, Any], mirror: Mirror, where: str
) -> list[Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=_folders(names))
    unreached = False
    try:
        with answered_at_once() as unreached:
            loaded = manager.load([{"group": "paretune", "task": [specification]}])
    except UserError:
        raise
    except Exception as error:  # of the hub's client, and of whatever a task's own code does
        data = [_data(entry.cfg or {}) for entry in names.values()]
        wanted = sorted({"/".join(filter(None, each)) for each in data if each})
        reason = UNREACHED if unreached else f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{where}: {task.name} cannot be loaded ({reason}); if it is its data that is missing "
            f"({', '.join(wanted[:3])}), name local files: mirror in a study file, --mirror on the "
            "command line"
        ) from error
    return list(loaded["tasks"].values())


def _configure(part: Any, task: Task, where: str) -> None:
    """Settings of the study file in the place of the task's own, by the harness's own rules."""
    own = part.get_config("num_fewshot")
    if task.num_fewshot is not None and own == 0 and task.num_fewshot != 0:
        raise UserError(
            f"{where}: {task.name} is defined without examples (num_fewshot 0); remove num_fewshot"
        )
    part.set_config(
        key="num_fewshot", value=own or 0 if task.num_fewshot is None else task.num_fewshot
    )
    generates = part.OUTPUT_TYPE == "generate_until"
    if (task.generation_kwargs or task.repeats) and not generates:
        raise UserError(
            f"{where}: {task.name} generates nothing, so it takes no generation_kwargs or repeats"
        )
    if task.generation_kwargs:
        part.set_config(key="generation_kwargs", value=task.generation_kwargs.given(), update=True)
    if task.repeats:
        part.set_config(key="repeats", value=task.repeats)


def _check_code(part: Any, where: str) -> None:
    """Refuse a task that executes what a model wrote by itself, not through code_eval."""
    if not getattr(part, "UNSAFE_CODE", False):
        return
    folder = Path(str((part.get_config("metadata") or {}).get("config_source"))).parent
    if not any("code_eval" in path.read_text(encoding="utf-8") for path in folder.glob("*.py")):
        raise UserError(
            f"{where}: {part.task_name} executes what a model wrote in the same process, out of "
            "reach of any sandbox; Paretune does not run it"
        )


def _specification(name: str, names: Mapping[str, Any], mirror: Mirror) -> Any:
    """What to load for a name: tasks whose data is mirrored read it from there, unmodified."""
    entry = names[name]
    kind = entry.kind.name
    if kind == "TAG":
        members = [_specification(member, names, mirror) for member in sorted(entry.tags)]
        return {"group": f"paretune-{name}", "task": members}
    if kind == "GROUP":
        members = [_member(member, names, mirror) for member in _members(entry.cfg)]
        return {**entry.cfg, "group": f"paretune-{name}", "task": members}
    return _specification_of(name, names, mirror)


def _member(member: Any, names: Mapping[str, Any], mirror: Mirror) -> Any:
    """A member of a group: a name, or one with settings of its own."""
    name = member.get("task") if isinstance(member, dict) else member
    if not isinstance(name, str) or name not in names:
        return member  # an inline definition
    own = member if isinstance(member, dict) else {}
    return {**own, **_specification(name, names, mirror)}


def _specification_of(name: str, names: Mapping[str, Any], mirror: Mirror) -> Any:
    config = names[name].cfg or {}
    data = _data(config)
    if data is None or not mirror.holds(*data):
        return {"task": name}
    splits = {str(config[key]) for key in config if key.endswith("_split") and config[key]}
    fewshot = config.get("fewshot_config")
    if isinstance(fewshot, dict) and fewshot.get("split"):
        splits.add(str(fewshot["split"]))
    return {"task": name, "custom_dataset": mirror.loader(*data, splits)}


def _data(config: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """A task's data set and configuration on the hub, or None."""
    if not config.get("dataset_path"):
        return None
    return str(config["dataset_path"]), config.get("dataset_name")


def _members(config: Mapping[str, Any]) -> list[Any]:
    members = config.get("task")
    return members if isinstance(members, list) else [members]


def _index(names: Sequence[str]) -> dict[str, Any]:
    """The harness's entries for names, and for all that their groups and tags hold.

    Reading all of its 14,000 task files as YAML takes 15 s; here only the folders are read in
    whose files a name is written.
    """
    from lm_eval.tasks import TaskManager

    entries: dict[str, Any] = {}
    folders: set[Path] = set()
    wanted, asked = set(names), set(names)
    while wanted:
        folders |= _folders_that_name(wanted)
        if not folders:
            break
        entries = TaskManager(include_defaults=False, include_path=sorted(folders)).task_index
        below: set[str] = set()
        for name in asked & set(entries):
            below |= _names_below(name, entries)
        wanted = below - asked
        asked |= below
    return {name: entry for name, entry in entries.items() if name in asked}


def _names_below(name: str, entries: Mapping[str, Any]) -> set[str]:
    entry = entries[name]
    if entry.kind.name == "TAG":
        return set(entry.tags)
    if entry.kind.name == "GROUP":
        members = [m.get("task") if isinstance(m, dict) else m for m in _members(entry.cfg)]
        return {member for member in members if isinstance(member, str)}
    return set()


def _folders(names: Mapping[str, Any]) -> list[Path]:
    return sorted({entry.yaml_path.parent for entry in names.values() if entry.yaml_path})


@cache
def _task_files() -> tuple[tuple[Path, str], ...]:
    """The harness's task files and their text, 7 MB, read once: files are slow on some disks."""
    import lm_eval.tasks

    paths = sorted(Path(lm_eval.tasks.__file__).parent.rglob("*.yaml"))
    return tuple((path, path.read_text(encoding="utf-8")) for path in paths)


def _folders_that_name(names: set[str]) -> set[Path]:
    """Folders with a file in which a name stands as a task, group or tag."""
    word = "|".join(re.escape(name) for name in sorted(names))
    start = r"^\s*(?:-\s*)?(?:(?:task|group|tag)\s*:)?\s*"
    line = re.compile(rf"{start}[\"']?(?:{word})[\"']?\s*$", re.MULTILINE)
    return {path.parent for path, text in _task_files() if line.search(text)}


def _all_names() -> set[str]:
    line = re.compile(r"^(?:task|group)\s*:\s*[\"']?([\w.+-]+)[\"']?\s*$", re.MULTILINE)
    return {name for _, text in _task_files() for name in line.findall(text)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of the harness and of datasets, which would break ours."""
    from datasets.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        is_progress_bar_enabled,
    )

    enabled = is_progress_bar_enabled()
    disable_progress_bar()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if enabled:
            enable_progress_bar()


@contextmanager
def _seeded() -> Iterator[None]:
    """Python's and numpy's generators as the harness seeds them; ours go on afterwards."""
    python, numbers = random.getstate(), np.random.get_state()
    random.seed(PYTHON_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
