"""Small real studies on the pocket base."""

from __future__ import annotations

from pathlib import Path

from paretune.study.config import Study
from paretune.study.yamlfile import parse_study

SMALL = """
name: small
base: pocket
regime: cpt
target:
  data: {from: json, path: %(data)s}
  items: 4
source:
  self_probe: {samples: 4, tokens: 16}
training: {block_length: 32, batch_size: 2}
defaults: {schedule: {shape: %(shape)s, warmup: 4ba}}
arms:
%(arms)s
budgets: {at: [%(at)s], mode: %(mode)s}
checkpoints: {every_seconds: %(every)s}
"""

ARMS = """
  - {method: full, learning_rate: 1e-3}
  - {method: lora, rank: [2, 4], learning_rate: 5e-3}
"""


def write_text_rows(path: Path, rows: int = 60) -> Path:
    """Documents with something to learn: counting, in several ways."""
    import json

    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    with path.open("w") as file:
        for i in range(rows):
            text = "".join(
                f"def {words[(i + j) % 5]}_{j}(x):\n    return x + {i}\n" for j in range(8)
            )
            file.write(json.dumps({"text": text}) + "\n")
    return path


def study_text(
    folder: Path,
    *,
    arms: str = ARMS,
    at: str = "10ba, 20ba",
    mode: str = "hot",
    shape: str = "cosine",
    every: float = 60,
) -> str:
    """A study file's text; the data are written into ``folder``."""
    data = write_text_rows(folder / "rows.jsonl")
    values = {"data": data, "arms": arms, "at": at, "mode": mode, "shape": shape, "every": every}
    return SMALL % values


def small_study(folder: Path, **settings: object) -> Study:
    """The same, parsed."""
    return parse_study(study_text(folder, **settings), "small.yaml")  # type: ignore[arg-type]
