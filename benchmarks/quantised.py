"""What keeping a base in 4 or 8 bits does to scores, before and after training.

Usage: python benchmarks/quantised.py [--tiny] [--results DIR] [--shared DIR], on any machine;
writes rows of variants.json. Two bases, held-out text of each base's own kind, and Python, which
LoRA arms then learn over the base as it is and over the rounded one.
"""

from __future__ import annotations

import gzip
import json
import math
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cohort_models import lora
from measurements import SHARED, arguments, folder_of, row, show, update

from paretune.data.blocks import Blocks
from paretune.model.load import load_tokenizer
from paretune.model.lora_cohort import lora_cohort
from paretune.model.trainee import Trainee, frozen
from paretune.study.config import Base
from paretune.train.schedule import Resolved
from paretune.train.trainer import Trainer

CPU = torch.device("cpu")
LENGTH, BATCH = 128, 4
NAMES = {None: "float32", "nf4": "nf4", "int8": "int8"}


def english(shared: Path) -> str:
    """Held-out English novels."""
    path = shared / "data" / "corpus" / "english_novels-validation.jsonl.gz"
    with gzip.open(path, "rt") as file:
        return str(json.loads(file.readline())["text"])


def python() -> str:
    """This interpreter's standard library, some modules of it."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "\n".join(path.read_text(errors="ignore") for path in sorted(folder.glob("[a-c]*.py")))


def windows(text: str, tokenizer: Any, count: int) -> tuple[torch.Tensor, int]:
    """Rows of tokens [N, LENGTH], and the bytes of text that they stand for."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: count * LENGTH]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    return rows, len(tokenizer.decode(rows[:, 1:].flatten().tolist()).encode())


@torch.no_grad()
def bits_per_byte(trainee: Trainee, text: tuple[torch.Tensor, int], group: Any = None) -> float:
    """Of the base, or of the first arm of ``group``."""
    rows, n_bytes = text
    nats = 0.0
    for part in rows.split(16):
        log_p = torch.log_softmax(trainee.view(group).logits(part)[0][:, :-1].double(), -1)
        nats -= float(log_p.gather(-1, part[:, 1:, None]).sum())
    return nats / math.log(2) / n_bytes


def measure(title: str, name: str, steps: int, shared: Path = SHARED) -> list[dict[str, Any]]:
    """Bits per byte of a base and of an arm trained over it, by how the base is kept."""
    tokenizer = load_tokenizer(Base(name=name))
    own = windows(english(shared)[:200_000], tokenizer, 24)
    code = python()
    heldout = windows(code[: len(code) // 8], tokenizer, 24)
    training, _ = windows(code[len(code) // 8 :], tokenizer, (steps + 1) * BATCH)
    folder = Path(tempfile.mkdtemp())
    np.save(folder / "tokens.npy", training.numpy().astype(np.uint16))
    work = f"{title}, {steps} steps of {BATCH} x {LENGTH} tokens of Python"
    rows = []
    plain: dict[str, float] = {}
    for kind, shown in NAMES.items():
        base = Base.model_validate({"name": name, "quantise": kind})
        untrained = frozen(base, CPU)
        found = {
            "English, untrained": bits_per_byte(untrained, own),
            "Python, untrained": bits_per_byte(untrained, heldout),
        }
        if steps:
            found |= trained(base, Blocks(folder, "cpt"), steps, heldout, own)
        print(f"{title}, {shown}: {found}", flush=True)
        if kind is None:
            plain = found
            continue
        rows += [
            row(
                f"quantised base, {shown}: {what}",
                work if "after" in what else title,
                "bits per byte",
                our_value=value,
                peer="the same over the base in float32",
                peer_value=plain[what],
                ratio=plain[what] / value,
                goal="stated, not fixed",
            )
            for what, value in found.items()
        ]
    return rows


def trained(
    base: Base,
    blocks: Blocks,
    steps: int,
    heldout: tuple[torch.Tensor, int],
    own: tuple[torch.Tensor, int],
) -> dict[str, float]:
    """Bits per byte of a LoRA arm that has learned Python for some steps."""
    trainee = lora_cohort(base, [lora(16, 2e-3)], CPU)
    trainer = Trainer(trainee, blocks, BATCH)
    always = [Resolved("constant", 0, 10**6, 10**6, 0.0)]
    for t in range(steps):
        trainer.step(t, always)
    group = trainee.passes[0]
    return {
        "Python, after LoRA r16": bits_per_byte(trainee, heldout, group),
        "English, after LoRA r16": bits_per_byte(trainee, own, group),
    }


def main() -> None:
    """Measure both bases; the rows of each are kept as they come."""
    asked = arguments(__doc__).parse_args()
    # Where a base is, and the steps that its arms train for
    bases = {
        "pocket base (2M)": ("pocket", 1 if asked.tiny else 40),
        "english-30m": (str(asked.shared / "models" / "english-30m"), 0),
    }
    for title, (place, steps) in bases.items():
        rows = measure(title, place, steps, asked.shared)
        update("variants", rows, folder_of(asked))
        show(rows)


if __name__ == "__main__":
    main()
