"""Study files are read with their paths, and written so that they read back to the same study."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from paretune.errors import UserError, UserErrors
from paretune.study.recipes import list_recipes
from paretune.study.yamlfile import dump_study, load_study, parse_study
from paretune.study.yamltree import read

STUDY = """\
name: mine
base: ./base
regime: cpt
target:
  data: {from: json, path: [rows/*.jsonl, one.jsonl.gz]}
  heldout: {from: text, path: heldout}
source:
  texts:
    - {name: prose, data: {from: json, path: prose.jsonl}}
budgets: {at: [2M, 500k, 1.25M]}
arms:
  - &full {method: full, learning_rate: [1e-4, 1e-3]}
  - <<: *full
    learning_rate: 3e-3
    clip: null
    schedule: {shape: trapezoid, warmup: 100ba}
  - method: lora
    paired: {rank: [16, 256], learning_rate: [2e-4, 1e-4]}
    targets: [[q_proj, v_proj], all]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study with every file that it names."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "heldout").mkdir()
    for name in ("rows/a.jsonl", "one.jsonl.gz", "prose.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def test_paths_are_relative_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    config = load_study(folder / "study.yaml").config
    assert config.base.name == str(folder / "base")
    assert config.target.data.path == (  # type: ignore[union-attr]
        str(folder / "rows/*.jsonl"),
        str(folder / "one.jsonl.gz"),
    )
    assert config.target.heldout.path == str(folder / "heldout")  # type: ignore[union-attr]
    assert config.source.texts[0].data.path == str(folder / "prose.jsonl")  # type: ignore[union-attr]


def test_a_relative_file_name_gives_absolute_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert load_study(Path("study.yaml")) == load_study(folder / "study.yaml")


def test_parse_leaves_paths_alone() -> None:
    config = parse_study(STUDY, "study.yaml").config
    assert config.base.name == "./base"
    assert config.target.heldout.path == "heldout"  # type: ignore[union-attr]


def test_a_name_is_no_path(folder: Path) -> None:
    """``gpt2`` is the hub's unless a folder of that name is there; ``pocket`` is always ours."""
    file = folder / "study.yaml"
    file.write_text(STUDY.replace("./base", "gpt2"))
    assert load_study(file).config.base.name == "gpt2"
    (folder / "gpt2").mkdir()
    assert load_study(file).config.base.name == str(folder / "gpt2")
    (folder / "pocket").mkdir()
    file.write_text(STUDY.replace("./base", "pocket"))
    assert load_study(file).config.base.name == "pocket"


def test_arms_of_the_file() -> None:
    arms = parse_study(STUDY, "study.yaml").arms
    assert [(arm.method, arm.rank, arm.learning_rate, arm.targets) for arm in arms] == [
        ("full", None, 1e-4, None),
        ("full", None, 1e-3, None),
        ("full", None, 3e-3, None),
        ("lora", 16, 2e-4, ("q_proj", "v_proj")),
        ("lora", 256, 1e-4, ("q_proj", "v_proj")),
        ("lora", 16, 2e-4, "all"),
        ("lora", 256, 1e-4, "all"),
    ]
    assert arms[2].clip is None
    assert arms[2].schedule.warmup == "100ba"


def test_budgets_ascend() -> None:
    budgets = parse_study(STUDY, "study.yaml").config.budgets.at
    assert [str(budget) for budget in budgets] == ["500k", "1.25M", "2M"]


@pytest.mark.parametrize(
    "text",
    [STUDY, *(recipe.text for recipe in list_recipes())],
    ids=["mine", *(recipe.name for recipe in list_recipes())],
)
def test_a_dump_loads_back_to_the_same_study(text: str) -> None:
    study = parse_study(text, "study.yaml")
    dumped = dump_study(study)
    again = parse_study(dumped, "dumped.yaml")
    assert again == study
    assert [arm.id for arm in again.arms] == [arm.id for arm in study.arms]
    assert dump_study(again) == dumped


def test_a_dump_writes_the_defaults_out() -> None:
    dumped = dump_study(parse_study(STUDY, "study.yaml"))
    for line in ("  optimizer: adamw", "  alpha: 2r", "  eps: 1.0e-08", "  seed: 0"):
        assert line in dumped.splitlines()
    assert "from: json" in dumped
    assert "from_" not in dumped


@pytest.mark.parametrize("about", ["1e-4", "no", "yes: no", "null", "8M", "~", "1:30", " x", "été"])
def test_text_that_looks_like_something_else_stays_text(about: str) -> None:
    study = parse_study(f"about: '{about}'\n{STUDY}", "study.yaml")
    assert study.config.about == about
    assert parse_study(dump_study(study), "dumped.yaml").config.about == about


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: there is no such file"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: été".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_study(tmp_path / "latin.yaml")


def test_a_byte_order_mark_is_no_mistake(folder: Path) -> None:
    file = folder / "study.yaml"
    plain = load_study(file)
    file.write_bytes(b"\xef\xbb\xbf" + STUDY.encode())
    assert load_study(file) == plain


def test_a_small_file_cannot_grow_without_bound() -> None:
    """Nine aliases of nine aliases of ... ("billion laughs") stop at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    with pytest.raises(UserErrors, match="more than 100,000 values"):
        parse_study("\n".join(lines), "study.yaml")
    with pytest.raises(UserErrors, match="nested too deeply"):
        parse_study("a: " + "[" * 3000, "study.yaml")


ODD = [None, True, 0, -1, 2.5, "", "x", "2r", "8M", [], [[]], ["x"], [1, 2], {}, {"x": 1}]
ODD += [{"from": "json"}, {"from": ["json"]}, {"paired": []}, float("nan"), float("inf"), 10**30]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a document, as the value around it and the key in that."""
    if not isinstance(value, dict | list):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [place for key, item in items for place in ((value, key), *_places(item))]


def _spoil(document: Any, chance: random.Random) -> None:
    """Put a value where it does not belong, or misspell a key."""
    holder, key = chance.choice(_places(document))
    if isinstance(holder, dict) and chance.random() < 0.3:
        holder[key[1:] + key[:1]] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(chance.choice(ODD))


@pytest.mark.parametrize("recipe", list_recipes(), ids=lambda recipe: recipe.name)
def test_no_file_whatever_gives_a_traceback(recipe: Any, tmp_path: Path) -> None:
    """A spoilt file is a sound study still, or gives messages with lines, and nothing else."""
    chance = random.Random(recipe.name)
    file = tmp_path / "study.yaml"
    messages: list[str] = []
    for _ in range(60):
        document = copy.deepcopy(read(recipe.text).value)
        for _ in range(chance.choice([1, 1, 2])):
            _spoil(document, chance)
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        try:
            study = load_study(file)
        except UserErrors as error:
            messages += error.messages
        else:
            assert parse_study(dump_study(study), "dumped.yaml") == study
    assert len(messages) > 30
    for message in messages:
        assert re.match(re.escape(f"{file}, line ") + r"\d+: .", message)
        assert "Input should" not in message


@pytest.mark.parametrize(
    "line", ['"a\\ud800": 1', 'about: "\\udfff"', 'budgets: {at: ["\\ud800"]}']
)
def test_half_of_a_character_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(UserErrors, match=r"study, line 2: .*half of a character"):
        parse_study(f"name: x\n{line}\n", "study")
