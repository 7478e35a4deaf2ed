"""The study english-30m-tasks on one GPU: trained and scored, its spectra, its truncation curves.

Usage: python benchmarks/task_study.py train|spectra|cuts|pack --work DIR [--results DIR]
[--shared DIR] [--tiny]. The study lies in the folder given as --work; each step goes on where it
stopped, so it may be given again. ``pack`` writes all but weights and tokens into one archive
beside the results, from which scripts/make_task_study_page.py makes the study's page.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml
from measurements import arguments

from paretune.errors import UserError
from paretune.evaluate.sandbox.registry import AUTO, UNSAFE, open_sandbox
from paretune.study.recipes import read_recipe

NAME = "english-30m-tasks"
RANKS, SCALES = "1,4,16,64,256", "0.25,0.5,0.75,1.25"
LEFT_OUT = ("checkpoints", "resume", "data", "figures", "singular_values.parquet")
LEARNING = "target/bits_per_byte"


def sandbox_here() -> str:
    """``auto``, or ``unsafe`` where this machine can have none: it should hold nothing of worth."""
    try:
        with open_sandbox() as sandbox:
            print(f"programs run in the sandbox {sandbox.name}", flush=True)
        return AUTO
    except UserError as error:
        print(f"programs run without protection: {error}", flush=True)
        return UNSAFE


def study(tiny: bool) -> dict[str, Any]:
    """The recipe; in a dry run with little of everything."""
    config: dict[str, Any] = yaml.safe_load(read_recipe(NAME))
    config["sandbox"] = sandbox_here()
    config["checkpoints"] = {"keep": "all", "every_seconds": 45.0}
    if tiny:
        config["target"] |= {"items": 4, "data": {"from": "python-packages", "packages": "stdlib"}}
        config["target"]["tasks"] = [
            {"name": "humaneval", "limit": 2, "generation_kwargs": {"max_gen_toks": 4}}
        ]
        config["source"]["self_probe"] = {"samples": 2, "tokens": 16}
        config["source"]["texts"][0]["items"] = 4
        for task in config["source"]["tasks"]:
            task["limit"] = 6
        config["training"] = {"block_length": 64, "batch_size": 2}
        config["arms"] = [
            {"method": "full", "learning_rate": [1e-3]},
            {"method": "lora", "rank": [4], "learning_rate": [1e-3, 3e-3]},
        ]
        config["budgets"]["at"] = ["2ba", "4ba", "8ba"]
    return config


def paretune(*words: str) -> None:
    """Run a command of paretune in this process's place, so that it is it that is asked to stop."""
    os.execv(sys.executable, [sys.executable, "-m", "paretune", *words])


def train(place: Path, shared: Path, tiny: bool) -> None:
    """Train and score every arm at every budget; the ledger names no folder of this machine."""
    link = place.parent / "shared"  # where the recipe looks for base and data
    link.unlink(missing_ok=True)
    link.symlink_to(shared.resolve())
    file = place / f"{NAME}.yaml"
    if not file.exists():
        file.write_text(yaml.safe_dump(study(tiny), sort_keys=False))
    paretune("run", file.name, "--out", NAME, "--no-report")


def best_full(folder: Path) -> str:
    """The full arm that learned most by its last checkpoint."""
    from paretune import load
    from paretune.analyse.results import tidy

    results = tidy(load(folder))
    rows = results[(results["metric"] == LEARNING) & (results["method"] == "full")]
    rows = rows[rows["tokens"] == rows["tokens"].max()]
    if rows.empty:
        sys.exit("no full arm has been scored yet: give the step train again")
    return str(rows.loc[rows["value"].astype(float).idxmin(), "arm"])


def cuts(folder: Path, tiny: bool) -> None:
    """Truncation curve of the best full arm, and its update scaled."""
    arm = best_full(folder)
    ranks, scales = ("1,4", "0.5") if tiny else (RANKS, SCALES)
    for option, value in (("--truncate", ranks), ("--scale", scales)):
        command = ["-m", "paretune", "spectrum", str(folder), arm, option, value]
        subprocess.run([sys.executable, *command], check=True)


def pack(folder: Path, out: Path) -> None:
    """The ledger with its spectra, without weights, tokens, and singular values of other arms."""
    chosen = best_full(folder)
    logs = itertools.count(1)

    def kept(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(info.name)
        if path.parent.name == "runs":  # a log is named after its machine
            info.name = str(path.with_name(f"process-{next(logs)}.jsonl"))
        if path.name == "singular_values.parquet" and chosen in path.parts:
            return info
        return None if path.name in LEFT_OUT or path.name.startswith(".") else info

    archive = out / f"{NAME}.tar.xz"
    with tarfile.open(archive, "w:xz", preset=6) as made:
        made.add(folder, NAME, filter=kept)
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB", flush=True)


def main() -> None:
    """Do one step."""
    parser = arguments(__doc__)
    parser.add_argument("step", choices=("train", "spectra", "cuts", "pack"))
    parser.add_argument("--work", type=Path, required=True, help="where the study lies")
    asked = parser.parse_args()
    place = asked.work.resolve() / "study"
    place.mkdir(parents=True, exist_ok=True)
    results = asked.results.resolve() if asked.results else place / "results"
    os.chdir(place)
    folder = Path(NAME)
    if asked.step == "train":
        train(place, asked.shared, asked.tiny)
    elif asked.step == "spectra":
        paretune("spectrum", NAME)
    elif asked.step == "cuts":
        cuts(folder, asked.tiny)
    else:
        pack(folder, results.parent)


if __name__ == "__main__":
    main()
