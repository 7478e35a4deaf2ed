"""Scoring on one GPU with other settings than the default's, each beside the default.

Usage: python benchmarks/scoring_switches.py [--rows a,b] [--tiny] [--results DIR] [--shared DIR],
on a machine with a GPU; writes rows of scoring.json. Requests are packed before, so that a row
tells what the device does; models are those of benchmarks/scoring.py.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from claims import CARD, DEVICE, Claims
from cohort_models import config, random_model
from measurements import row
from scoring import (
    ARMS,
    DTYPE,
    Pairs,
    compiled_from,
    drifted_cohort,
    requests,
    timed,
    tokenizer_of_english,
)
from scoring import CLAIMS as SCORING
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward

from paretune.evaluate.tasks import log_likelihood
from paretune.evaluate.tasks.encode import Encoder
from paretune.evaluate.tasks.pack import pack
from paretune.model import tree
from paretune.model.regions import Compiler, Regions
from paretune.model.trainee import ArmView, Trainee
from paretune.study.config import Base

CLAIMS = Claims("scoring")
Rows = Iterator[dict[str, Any]]
Switch = Callable[[ArmView], AbstractContextManager[Any]]


def compiled_by(compiler: Compiler, **settings: Any) -> Switch:
    """Blocks compiled anew, in another way, with other settings of the inductor."""

    @contextmanager
    def switch(view: ArmView) -> Iterator[None]:
        trees = view._trainee.packed
        if trees._regions is None:  # a CPU compiles nothing
            yield
            return
        before = trees._regions
        trees._regions = Regions(view._trainee.model, compiler)
        try:
            with torch._inductor.config.patch(settings):
                yield
        finally:
            trees._regions = before

    return switch


def rows_of(tokens: int) -> Switch:
    """Rows of so many tokens for each arm."""
    names = ("GPU_CAPACITY", "LEAST_GPU_CAPACITY", "CPU_CAPACITY")
    return lambda _: patch.multiple(log_likelihood, **dict.fromkeys(names, tokens))


@contextmanager
def flex(view: ArmView) -> Iterator[None]:
    """Attention in FlexAttention, without our own kernel."""

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **settings: Any) -> Any:
        return flex_attention_forward(module, query, key, value, mask, **settings)

    AttentionInterface.register(tree.TREE, attend)
    try:
        with compiled_by(Compiler())(view):
            yield
    finally:
        AttentionInterface.register(tree.TREE, tree.attend_in_tree)


DEFAULT: Switch = lambda _: nullcontext()  # noqa: E731
AUTOTUNED = compiled_by(Compiler(), max_autotune=True, coordinate_descent_tuning=True)
ONE_MODEL: dict[str, Switch] = {
    "rows of 8,192 tokens": rows_of(8192),
    "rows of 32,768 tokens": rows_of(32_768),
    "kernels chosen by timing": AUTOTUNED,
    "attention in FlexAttention": flex,
}
SEVERAL: dict[str, Switch] = {
    "rows of 1,024 tokens an arm": rows_of(1024),
    "rows of 4,096 tokens an arm": rows_of(4096),
    "without merged products": compiled_by(Compiler(merge=False)),
}


def switched(title: str, work: str, view: ArmView, pairs: Pairs, switches: Any) -> Rows:
    """Seconds by default, and with each switch."""
    encoder = Encoder(tokenizer_of_english(), view._trainee.model.config)
    portions = encoder.portions(pairs)

    def seconds(switch: Switch) -> float:
        with switch(view), compiled_from(0):
            likelihoods = log_likelihood.LogLikelihoods(portions)
            likelihoods.score(view)  # packs and compiles
            return timed(lambda: likelihoods.score(view))[0]

    plain = seconds(DEFAULT)
    for words, switch in switches.items():
        try:
            own = seconds(switch)
        except Exception:  # a switch that fails is no reason to leave out the next
            traceback.print_exc()
            continue
        yield row(
            f"{title}, {words}",
            work,
            "s",
            our_value=own,
            peer="the default",
            peer_value=plain,
            ratio=plain / own,
            goal="stated, not fixed",
            device=CARD,
        )


@CLAIMS
def one_model_1b() -> Rows:
    """HellaSwag by one model of 1B parameters."""
    SCORING.tiny, SCORING.shared = CLAIMS.tiny, CLAIMS.shared
    model = random_model(CLAIMS.shape("1b"), DTYPE, DEVICE)
    view = Trainee(model, [], [], [], None, DEVICE, Base(name="random")).view(None)
    pairs = requests()["hellaswag"][:12_000]
    work = f"HellaSwag, {len(pairs) // 4:,} documents, 1B shape"
    yield from switched("scoring one model", work, view, pairs, ONE_MODEL)


@CLAIMS
def several_arms_1b() -> Rows:
    """HellaSwag by twelve LoRA arms of 1B parameters."""
    SCORING.tiny, SCORING.shared = CLAIMS.tiny, CLAIMS.shared
    with tempfile.TemporaryDirectory() as folder:
        random_model(CLAIMS.shape("1b"), DTYPE, DEVICE).save_pretrained(folder)
        cohort = drifted_cohort(folder)
    pairs = requests()["hellaswag"][:4000]
    work = f"HellaSwag, {len(pairs) // 4:,} documents, {ARMS} LoRA arms (r 16), 1B shape"
    view = cohort.view(cohort.passes[0])
    yield from switched("scoring twelve arms", work, view, pairs, SEVERAL)


@CLAIMS
def tree_attention() -> Rows:
    """One layer's attention over a packed row of HellaSwag: our kernel beside FlexAttention."""
    SCORING.tiny, SCORING.shared = CLAIMS.tiny, CLAIMS.shared
    encoder = Encoder(tokenizer_of_english(), config("1b"))
    portions = encoder.portions(requests()["hellaswag"][:4000])
    for shape, arms, length in (("1b", 1, 16_384), ("7b", 1, 16_384), ("1b", ARMS, 2048)):
        of = config(CLAIMS.shape(shape))
        length = 1024 if CLAIMS.tiny else length
        packed_row = next(pack((each.tokenized() for each in portions), length)).row.padded(length)
        ends = torch.from_numpy(packed_row.ends).to(DEVICE)
        sizes = (of.num_attention_heads, of.num_key_value_heads, of.num_key_value_heads)
        size = of.hidden_size // of.num_attention_heads
        inputs = [
            torch.randn(arms, length, heads, size, device=DEVICE, dtype=DTYPE).transpose(1, 2)
            for heads in sizes
        ]

        @torch.no_grad()
        def seconds(
            tile: int | None, inputs: list[torch.Tensor] = inputs, ends: torch.Tensor = ends
        ) -> float:
            mask = tree.block_mask(ends, tile=tile)
            module = torch.nn.Module().eval()
            run = torch.compile(lambda: tree.attend_in_tree(module, *inputs, mask)[0])
            times = 1 if CLAIMS.tiny else 20
            run()
            run()
            return timed(lambda: [run() for _ in range(times)])[0] / times

        flexible, own = seconds(None), seconds(tree.tile_tokens(of))
        yield row(
            "scoring: attention of one layer",
            f"{shape.upper()} shape, {arms} x {length:,} tokens of HellaSwag",
            "s",
            our_value=own,
            peer="FlexAttention",
            peer_value=flexible,
            ratio=flexible / own,
            goal="stated, not fixed",
            device=CARD,
        )


if __name__ == "__main__":
    CLAIMS.main(__doc__)
