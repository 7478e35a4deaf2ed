"""Rows of the output head on instruction pairs: for labels alone, beside all positions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from claims import CARD, clear
from cohort_instruct import packed, pairs, tokenizer
from cohort_models import NAMES, lora
from cohort_peers import Timing
from cohort_run import CLAIMS, GIB, agree, ours, trainer_of
from measurements import row

from paretune.data.blocks import Blocks
from paretune.train import piece

# Steps until graphs for the usual numbers of labels are captured
WARM = 10


def share_of_labels(blocks: Blocks) -> float:
    """Share of all positions that have a label."""
    counts = [int(blocks.batch(np.array([i])).loss_mask[:, 1:].sum()) for i in range(blocks.count)]
    return sum(counts) / (blocks.count * blocks.block_length)


@CLAIMS
def labels_3b() -> Iterator[dict[str, Any]]:
    """The output head for labels alone, twelve arms of 3B on pairs."""
    name, count = CLAIMS.shape("3b"), 12
    batch, length = (2, 128) if CLAIMS.tiny else (4, 1024)
    tokens = tokenizer(CLAIMS.shared / "models" / "english-30m")
    chosen = pairs(CLAIMS.shared / "data" / "instruct", 200 if CLAIMS.tiny else 2000)
    arms = [lora(16, 1e-4 * (1 + i / 100)) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        blocks, _ = packed(Path(folder), chosen, tokens, length)

        def run() -> Timing:
            clear()
            return ours(trainer_of(arms, name, blocks, batch), name, warm=WARM)

        with patch.object(piece, "labelled_positions", return_value=None):
            whole = run()
        some = run()
        print(f"  losses differ by {agree(some, whole, 1e-2):.1e}", flush=True)
        share = share_of_labels(blocks)
    work = f"{NAMES[name]}, {count} x {batch} x {length}; {share:.0%} of positions have a label"
    common: dict[str, Any] = {"peer": "for all positions", "goal": "stated, not fixed"}
    common["device"] = CARD
    made = count * batch * length
    yield row(
        "the output head for labels alone",
        work,
        "positions/s in all",
        our_value=made / some.seconds,
        peer_value=made / whole.seconds,
        ratio=whole.seconds / some.seconds,
        **common,
    )
    yield row(
        "the output head for labels alone: memory",
        work,
        "GiB at the peak",
        our_value=some.memory / GIB,
        peer_value=whole.memory / GIB,
        ratio=whole.memory / some.memory if some.memory else None,
        **common,
    )
