"""The recipes for data of one's own are ready as they stand, beside such data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import paretune
from paretune.study.recipes import read_recipe


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "own-pairs",
            "target.data: 178 pairs to train on, 22 blocks of 256 tokens; 22 held out to score",
        ),
        ("own-text", "target.data: 18 documents to train on"),
    ],
)
def test_a_recipe_for_own_data_plans_as_it_stands(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(20):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"Note {i} says what {i} is. " * 200)
    pairs = ({"prompt": f"What is {i} and {i}?", "response": f"It is {2 * i}."} for i in range(200))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "study.yaml").write_text(read_recipe(name))
    planned = paretune.plan(tmp_path / "study.yaml")
    assert len(planned.arms) == 3 + 6
    assert len(planned.budgets) == 2
    assert any(said in note for note in planned.notes), planned.notes
