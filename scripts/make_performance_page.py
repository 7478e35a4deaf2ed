"""Write docs/performance.md from benchmarks/results/cohort.json, failures included."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from make_measured_page import about, groups, table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results" / "cohort.json"
SCRIPTS = sorted((ROOT / "benchmarks").glob("cohort_*.py"))
HEAD = """\
# How fast a cohort trains

`python benchmarks/cohort.py` makes this table on a machine with one GPU, and `make docs` makes this
page from it. Models have the real shape and random weights. A peer runs in the same process, on the
same weights, tokens and first adapters, before or after ours; the script stops a row whose losses
differ by more than 1%, or in which something is compiled after the second step. A ratio above 1 is
in our favour.
"""
NOTES = """
## What is computed

- **LoRA.** The frozen base is bf16, its residual stream too, as in PEFT with a bf16 base. Adapters,
  their gradients and the optimizer's moments are float32; products use bf16 copies of the adapters.
  Gradients of adapters leave the product in float32.
- **Full finetuning.** The numerics of transformers under `bf16=True` (autocast): products in bf16,
  and everything else, the residual stream included, in float32. Autocast casts each weight anew in
  every pass; here the optimizer writes the bf16 copy. Autocast rounds the gradient of each weight
  to bf16 before it is cast to float32; here it stays in bf16, the same numbers in half the memory.
  When a batch is cut into pieces, their gradients are summed in float32.
- **Loss.** Logits are bf16, the softmax float32, as in transformers. They are made a slice of
  tokens at a time, turned into their gradient, and dropped. On pairs they are made where a label
  is: prompts and padding have none. On a CPU that is exact. On a GPU shapes are fixed, so that a
  quarter, a half, three quarters or all of a piece's positions are taken, whichever is enough.
- **A CPU** computes all of it in float32, an arm at a time, and compiles nothing.

## Where the speed comes from

- One product of the frozen base serves all arms' rows. The small products of the adapters go first,
  and the large one adds to them while it computes.
- The model's repeated blocks are compiled once, for fixed shapes. What lies between the products
  becomes a few kernels.
- Adapted products that take the same input (queries, keys and values; the two halves of a gated
  layer) become one.
- Forward and backward pass of a piece of LoRA arms are captured as one CUDA graph in the third step
  and replayed from then on. The host only copies tokens. On pairs there is a graph for each number
  of positions that the head is computed for, captured when it is first needed; all compute in the
  same memory. Full arms are not replayed yet: autocast leaves queries and keys in float32, which
  the kernel of variable lengths does not take.
- A full arm's products, its output head and its embedding add their weight's gradient where it is
  kept. Autograd would make each gradient first and add it after: from one run to the next, 1.37
  became 1.41 times transformers' rate at the 3B shape, and 63.4 GiB became 61.9.
- LoRA arms' attention takes the fastest kernel there is: cuDNN for whole rows, FlashAttention's
  variable lengths for several texts in a row and for sliding windows. No mask is made.
- One kernel updates all arms: clipping, decay, moments, weights and the bf16 copy in one pass.

## Memory and time before the start

`paretune plan` predicts peak memory and time from the model's shape (`paretune/study/memory.py`).
Its peaks lie within 10% of those in the table above; a test compares them, those of the former
default (below) with what compiled blocks kept then.

- Of a compiled block is kept what its linear layers give, and the attention's output. What else
  linear layers take is computed again in the backward pass. Where nothing is compiled (attention
  dropout, a quantised base), it is kept too.
- Cohorts and pieces are sized by it. Where one row of an arm would not fit, activations are
  checkpointed: each block keeps its input alone and computes the rest again.
- After twelve steps the ledger gets a line with the pace and the peak as they are
  (`runs/*.jsonl`, event `pace`). Later cohorts leave room for what was needed beyond the model's
  peak.
- A cohort that finds no room all the same is split in two. Both halves go on from the states they
  have saved, and the ledger says so (event `split`).

Merging products and computing activations again became the default on 2026-11-27, after these rows
were measured: only those called "merged products", "recomputed activations" and "both" have them,
and "the default" beside them is the former one. Together they cost no speed (1.00 times it for one
arm of 7B and for 16 arms of 3B) and save 15% to 20% of memory. One arm of 7B takes 25.5 GiB with
both: 0.64 of PEFT's 39.6 GiB under autocast, 0.53 of its 48.2 GiB with a bf16 base.

## What stands in the way of more

The limit counts the products of the frozen base alone. Attention, the adapters' products and what
is elementwise come on top: the rows "share of the limit" say what each takes of a step. Products
reach about 89% of the rate of one large product while the device is hot.

One arm of 7B on a row of 4,096 tokens shows it best. A step took 243 ms. The base's products took
151 ms of it (134 ms at the limit), attention 36 ms, the adapters' products about 24 ms, elementwise
kernels 15 ms. What was tried, on the same device, each beside the way before it:

- cuDNN's attention instead of FlashAttention: 1.02 ms a layer instead of 1.85 ms, forward and
  backward.
- The adapter's product first, and the base's product adding to it: 573 instead of 623 microseconds
  for a matrix of 4096 x 11008.
- One grouped product over all arms' ranks instead of one for each bank: slower for equal ranks (47
  instead of 37 microseconds for 16 arms of rank 32), so it is not used.
- Products that take the same input merged: 1.02 times the tokens a second.

With the products at the limit, attention as it is and nothing else, a step would take 170 ms.

Twelve arms on pairs spend 77% of a step in matrix products, which run at about 700 TFLOP/s: without
all the rest they would be 9.4 times as fast as TRL with 24 padded pairs a batch. With about six
pairs a step, as many tokens as an arm of the first row takes, TRL waits for its host, and they are
14.9 times as fast. What was tried, on one device:

- Heads of keys and values that are not repeated for attention, and pieces of two rows of each arm
  instead of one, which then fit: 2% more tokens a second in all. The head for labels alone: 1%.
- TRL's rate varies more than that. The packed way ran at 4,345, 5,356 and 4,952 tokens/s in three
  runs, the last on an H200.
"""


def page() -> str:
    """The whole page."""
    rows = json.loads(RESULTS.read_text())
    tables = [f"\n{about(g)}.\n\n{table(g)}" for g in groups(rows)]
    return HEAD + "".join(tables) + _below(rows) + _missing(rows) + NOTES


def _below(rows: list[dict[str, Any]]) -> str:
    """The rows whose peer is nearer than their goal asks, in speed or in memory."""
    lines = []
    for row in rows:
        case = f"{row['name']}, {row['work']}, {row['device']}"
        goal = re.match(r"at least ([\d.]+) times the peer", row["goal"])
        if goal and row["ratio"] and row["ratio"] < float(goal[1]):
            what = f"{case}: {row['ratio']:.2f} times {row['peer']}"
            lines.append(f"- {what}; the goal is {float(goal[1]):g}.")
        share = re.match(r"at most ([\d.]+) of the peer's", row["goal"])
        if share and row["ratio"] and 1 / row["ratio"] > float(share[1]):
            what = f"{case}: {1 / row['ratio']:.2f} of {row['peer']}"
            lines.append(f"- {what}; the goal is {float(share[1]):g}.")
    return "\nBelow their goal:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _missing(rows: list[dict[str, Any]]) -> str:
    """The rows that the script has and the results do not."""
    asked = {name for row in rows for name in row["command"].partition("--rows ")[2].split(",")}
    code = "".join(path.read_text() for path in SCRIPTS)
    found = re.findall(r'@CLAIMS\ndef (\w+)\(.*?"""(.*?)\.?"""', code, re.DOTALL)
    left = [f"- `{name}`: {what}." for name, what in found if name not in asked]
    if not left:
        return ""
    return (
        "\nThe script has these rows too; they are not measured yet:\n\n" + "\n".join(left) + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")
