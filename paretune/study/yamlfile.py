"""Study files: YAML in, a checked ``Study`` out, and every mistake at once with its line."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from paretune.errors import UserError, UserErrors
from paretune.study import yamltree
from paretune.study.arms import ArmConfig
from paretune.study.config import Study, StudyConfig
from paretune.study.mistakes import Mistake, MistakesError, closest, shown, suggestion
from paretune.study.mistakes import Path as KeyPath
from paretune.study.places import Places
from paretune.study.secrets import secrets_in
from paretune.study.sweeps import complete_defaults, expand, swept
from paretune.study.translate import keys_of, translate, value_at, without_explained
from paretune.study.yamltree import Tree, YamlError


def load_study(path: Path) -> Study:
    """Read and check a study file.

    Paths in it (data files, a base in a folder) are relative to the file's own folder; in the
    result they are absolute, so that it means the same from anywhere.

    Raises:
        UserError: the file cannot be read.
        UserErrors: everything that is wrong in it, a line of text for each mistake.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _study(text, str(path), path.absolute().parent)


def parse_study(text: str, name: str) -> Study:
    """Check the text of a study file without looking for the paths that it names.

    Args:
        text: the YAML.
        name: how messages call the file.

    Raises:
        UserErrors: everything that is wrong in it, a line of text for each mistake.
    """
    return _study(text, name, None)


def dump_study(study: Study) -> str:
    """A study as YAML with every default written out; it loads back to an equal study."""
    values = study.config.model_dump(mode="json", by_alias=True)
    body = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None,
    )
    return f"# {len(study.arms)} arms: {', '.join(arm.label for arm in study.arms)}\n{body}"


class _Dumper(yaml.SafeDumper):
    """Plain text is quoted wherever our reader would take it for something else."""

    yaml_implicit_resolvers = yamltree.RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _study(text: str, name: str, folder: Path | None) -> Study:
    try:
        tree = yamltree.read(text)
    except YamlError as error:
        raise UserErrors([f"{name}, {error}"]) from None
    mistakes: list[Mistake] = list(secrets_in(tree.value))
    if folder is not None:
        mistakes += _resolve_paths(tree.value, folder)
    arms, wrong_arms, entries = _arms(tree)
    mistakes += wrong_arms
    document = dict(tree.value)
    if isinstance(document.get("defaults", {}), dict):
        document["defaults"] = complete_defaults(document.get("defaults", {}))
    config = None
    try:
        config = StudyConfig.model_validate(document)
    except ValidationError as error:
        mistakes += translate(error, StudyConfig, document)
    if config is not None and config.repeat_best is not None:
        used = {arm.seed for arm in arms}
        if used and used <= set(config.repeat_best.seeds) and len(used) == 1:
            reason = f"{used.pop()} is the seed of every arm already; give others"
            mistakes.append(Mistake(("repeat_best", "seeds"), reason))
    messages = [(e.line, e.message) for e in tree.errors]
    messages += [(tree.line(m.path), str(m)) for m in mistakes]
    if messages or config is None:
        unique = dict.fromkeys(sorted(messages, key=lambda message: message[0]))
        raise UserErrors([f"{name}, line {line}: {message}" for line, message in unique])
    return Study(config=config, arms=tuple(arms), places=Places(name, tree.line, entries))


def _arms(tree: Tree) -> tuple[list[ArmConfig], list[Mistake], dict[str, int]]:
    """The arms that a document stands for, what is wrong in them, and each arm's entry."""
    given, entries = tree.value.get("defaults"), tree.value.get("arms")
    defaults = complete_defaults(given) if isinstance(given, dict) else complete_defaults({})
    mistakes = _wrong_settings(defaults, ("defaults",))
    sound = {
        key: value
        for key, value in defaults.items()
        if not any(key in wrong.path for wrong in mistakes)
    }
    arms: list[ArmConfig] = []
    first: dict[str, KeyPath] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        path: KeyPath = ("arms", index)
        if not isinstance(entry, dict):
            continue  # StudyConfig says so
        found, wrong = _entry(entry, sound, defaults, path)
        for arm in found:
            if arm.id in first:
                other = first[arm.id]
                reason = (
                    f"two of the arms that it stands for are the same ({arm.label})"
                    if other == path
                    else f"{arm.label} is the same arm as {shown(other)} on line {tree.line(other)}"
                )
                wrong.append(Mistake(path, reason))
            first.setdefault(arm.id, path)
        arms += found
        mistakes += without_explained(wrong)
    return arms, mistakes, {arm_id: int(path[1]) for arm_id, path in first.items()}


def _entry(
    entry: dict[str, Any], sound: dict[str, Any], defaults: dict[str, Any], path: KeyPath
) -> tuple[list[ArmConfig], list[Mistake]]:
    """One entry of ``arms``: first each setting alone, then the arms that they make together.

    ``sound`` are those of the ``defaults`` which are free of mistakes.
    """
    paired = entry.get("paired")
    own = {key: value for key, value in entry.items() if key != "paired"}
    wrong = _wrong_settings(own, path)
    if isinstance(paired, dict):
        lists = {key: value for key, value in paired.items() if isinstance(value, list)}
        wrong += _wrong_settings(lists, (*path, "paired"), every_list=True)
    given = {*own, *defaults, *(paired if isinstance(paired, dict) else ())}
    for key, field in ArmConfig.model_fields.items():
        if field.is_required() and key not in given:
            wrong.append(Mistake((*path, key), f"missing; it holds {field.description}"))
    if wrong:
        return [], wrong
    try:
        combinations = expand(entry, sound)
    except MistakesError as error:
        return [], [Mistake(path + inner.path, inner.message) for inner in error.found]
    arms = []
    for settings in combinations:
        try:
            arms.append(ArmConfig.model_validate(settings))
        except ValidationError as error:
            for inner in translate(error, ArmConfig, settings):
                in_pair = isinstance(paired, dict) and inner.path[0] in paired
                place: KeyPath = (*path, "paired") if in_pair else path
                wrong.append(Mistake(place + inner.path, inner.message))
    return arms, list(dict.fromkeys(wrong))


def _wrong_settings(
    settings: dict[str, Any], path: KeyPath, *, every_list: bool = False
) -> list[Mistake]:
    """What is wrong with each setting of an arm, looked at alone; ``every_list``: all are swept."""
    wrong = []
    for key, value in settings.items():
        field = ArmConfig.model_fields.get(key)
        if key == "paired":
            reason = "belongs to an entry of arms, where lists advance together"
            wrong.append(Mistake((*path, key), reason))
            continue
        if field is None:
            known = keys_of(ArmConfig)
            wrong.append(
                Mistake((*path, key), f"unknown key{suggestion(key, known)}", closest(key, known))
            )
            continue
        sweep = every_list or swept(key, value) is value
        for index, item in enumerate(value if sweep else [value]):
            if item is None and field.default is None:
                continue
            place = (*path, key, index) if sweep else (*path, key)
            wrong += [Mistake(place + inner.path[1:], inner.message) for inner in _alone(key, item)]
    return wrong


def _alone(key: str, value: Any) -> list[Mistake]:
    """What is wrong with one setting in an arm that is otherwise sound."""
    sound: dict[str, Any] = {"method": "lora", "learning_rate": 1.0, "rank": 1}
    if key == "attention_dropout":  # the one setting that LoRA does not have
        sound = {"method": "full", "learning_rate": 1.0}
    arm = {**sound, key: value}
    try:
        ArmConfig.model_validate(arm)
    except ValidationError as error:
        return [
            mistake for mistake in translate(error, ArmConfig, arm) if mistake.path[:1] == (key,)
        ]
    return []


def _resolve_paths(document: dict[str, Any], folder: Path) -> list[Mistake]:
    """Make paths in the document absolute, in place; report those at which there is nothing."""
    mistakes = []
    for holder, key, path in _paths(document):
        written = holder[key]
        resolved = os.path.join(folder, os.path.expanduser(written))
        # What a mirror's placeholders stand for, only the tasks can say
        pattern = resolved.replace("{split}", "*").replace("{config}", "*")
        if written and (os.path.exists(resolved) or glob.glob(pattern, recursive=True)):
            holder[key] = os.path.normpath(resolved)
        elif path[0] != "base" or written.startswith(("./", "../", "/", "~")):
            what = "no file matches" if glob.has_magic(written) else "nothing is there"
            mistakes.append(Mistake(path, f"{what}: {os.path.normpath(resolved)}"))
    return mistakes


def _paths(document: dict[str, Any]) -> Iterator[tuple[Any, Any, KeyPath]]:
    """Every place that holds a path: the value around it, the key in that, the whole key."""
    base = document.get("base")
    if isinstance(base, str) and base != "pocket":
        yield document, "base", ("base",)
    if isinstance(base, dict) and isinstance(base.get("name"), str) and base["name"] != "pocket":
        yield base, "name", ("base", "name")
    places: list[KeyPath] = [("target", "data"), ("target", "heldout")]
    texts = value_at(document, ("source", "texts"))
    mirror = document.get("mirror")
    for name, written in mirror.items() if isinstance(mirror, dict) else ():
        if isinstance(written, str):
            yield mirror, name, ("mirror", name)
    count = len(texts) if isinstance(texts, list) else 0
    places += [("source", "texts", index, "data") for index in range(count)]
    for place in places:
        data = value_at(document, place)
        written = data.get("path") if isinstance(data, dict) else None
        if isinstance(written, str):
            yield data, "path", (*place, "path")
        if isinstance(written, list):
            for index, item in enumerate(written):
                if isinstance(item, str):
                    yield written, index, (*place, "path", index)
