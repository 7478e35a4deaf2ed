"""A causal LM over rows that are packed as trees, for one or many arms at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from paretune.errors import first_line
from paretune.model.asked import asked_of_hidden, asked_of_logits, put
from paretune.model.compilation import forms_allowed
from paretune.model.flat import compute_type
from paretune.model.regions import Regions
from paretune.model.tree import BLOCK, TREE, TreeRow, block_mask, dense_mask, tile_tokens

LOG = logging.getLogger("paretune")
# Largest difference of a log-probability from that of a plain row, as a share of their spread,
# that is taken for rounding in a model of any depth
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.08, torch.float16: 0.02}
# Above it: root mean squares of what a tree may be apart, in that of the model's own rounding, and
# where a model rounds so coarsely that a wrong mask could hide in it. Measured at a 7B shape in
# bf16: a tree 0.05, other attention kernels 0.07, a wrong mask or wrong positions 1, one token too
# many in sight 0.5
_TIMES_ROUNDING = 2
_MOST = 0.25
# Operations of scoring, counted without what sequences share, from which on it pays to compile a
# model's blocks. Measured on an H200 at the shape of Llama-3.2-1B: it takes 6 s and saves 2.3 s of
# each 1e16, in this call and again in those at later budgets
COMPILED_FROM = 2e16
_NUDGED = 251  # one value in so many of the embeddings; odd, so that no one channel has them all


class PackedModel:
    """Runs packed rows through a model whose attention takes masks and positions.

    On a GPU attention runs in FlexAttention, which passes over what the tree does not see, where
    the model offers it, and the model's blocks are compiled; elsewhere as SDPA with a mask.

    Args:
        model: a Hugging Face causal LM.
        forward: ``Trainee.forward``, with the arms' adapters in place.
        head: the model's output layer, where its logits are a product with it and no more.
        flex: attention in FlexAttention, compiled; on a GPU by default.
    """

    def __init__(
        self,
        model: Any,
        forward: Callable[..., Any],
        head: torch.nn.Module | None,
        device: torch.device,
        *,
        flex: bool | None = None,
    ) -> None:
        self._model = model
        self._forward = forward
        self._head = head
        self._device = device
        self._flex = device.type == "cuda" if flex is None else flex
        self._regions = Regions(model) if self._flex else None
        self._parameters = sum(each.numel() for each in model.parameters())
        # Our own attention, which is fast without a compiler: its tiles, and whether it is in use
        self._tile = tile_tokens(model.config.get_text_config(decoder=True)) if self._flex else None
        self._kernel = False
        self._refusal: str | None = None
        self._checked = False

    def scores(
        self, row: TreeRow, count: int, *, compiled: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each token asked for, and the likeliest in its place: [K, M] each.

        Args:
            compiled: on a GPU, compile the model's blocks for rows of this length. What cannot be
                compiled is computed as it is, with a message.
        """
        if self._flex and len(row.tokens) % BLOCK:
            row = row.padded(-(-len(row.tokens) // BLOCK) * BLOCK)
        if compiled and self._regions is not None:
            try:
                with self._regions.compiled():
                    return self._scores(row, count)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._regions = None
                LOG.warning("scoring goes on uncompiled, more slowly: %s", first_line(error))
        # FlexAttention is compiled by itself then, for the shapes of every cohort
        with forms_allowed() if self._flex else nullcontext():
            return self._scores(row, count)

    def _scores(self, row: TreeRow, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        places_P = self._tensor(row.places)
        with self._masked(row) as mask:
            out = self._forward(
                self._tensor(row.tokens).expand(count, -1),
                position_ids_NS=self._tensor(row.positions).expand(count, -1),
                part="logits" if self._head is None else "hidden",
                attention_mask=mask,
                use_cache=False,
            )
        if self._head is not None:
            return asked_of_hidden(out[0][:, places_P], self._head, row.asked, row.targets)
        return asked_of_logits(out.logits[:, places_P], row.asked, row.targets)

    def pays(self, tokens: int) -> bool:
        """Whether so much is to be scored that blocks are worth compiling.

        FlexAttention is slow without.

        Args:
            tokens: of all sequences of all arms.
        """
        return not self._kernel or 2 * self._parameters * tokens >= COMPILED_FROM

    @property
    def sparse(self) -> bool:
        """Whether the cost of a row is that of what its tokens see, not of its square."""
        return self._flex

    def refusal(self, count: int, longest: int) -> str | None:
        """Why this model cannot be given trees, or None: found out by trying a small one.

        Args:
            longest: tokens of the longest sequence that will be scored.
        """
        config = getattr(self._model.config, "text_config", None) or self._model.config
        window = getattr(config, "sliding_window", None)
        if window and longest > window:
            return f"its attention reaches back only {window} tokens"
        if not self._checked:
            self._refusal = self._try(count)
            self._checked = True
        return self._refusal

    def _try(self, count: int) -> str | None:
        row, chains = _sample_tree(int(self._model.get_input_embeddings().weight.shape[0]))
        while True:
            try:
                packed_KM = self.scores(row, count, compiled=False)[0]
                reason = self._differs(packed_KM, chains, count)
            except (TypeError, ValueError, RuntimeError, NotImplementedError, IndexError) as error:
                reason = f"its forward pass takes no tree ({type(error).__name__})"
            except Exception as error:  # of Triton's own kinds, on a device that it does not know
                if self._tile is None:
                    raise
                reason = f"its attention's kernel fails ({first_line(error)})"
            if reason is None:
                return None
            if self._tile is not None:
                LOG.debug("FlexAttention rather than our own kernel: %s", reason)
                self._tile, self._kernel = None, False
            elif self._flex:
                self._flex, self._regions = False, None
            else:
                return reason

    def _differs(self, packed_KM: torch.Tensor, chains: list[TreeRow], count: int) -> str | None:
        """By how much a tree is apart from its chains, where that is more than rounding.

        A deep or wide model in bf16 gives other logits for whatever changes the order of a sum. How
        far apart is found out on its own plain rows, with the last bit of a few of their values
        changed before the first block: from there on all is rounded differently.
        """
        plain_KM = self._plain(chains, count)
        spread = float(plain_KM.std().clamp(min=1e-6))
        apart_KM = (packed_KM - plain_KM) / spread
        worst, typical = float(apart_KM.abs().max()), float(apart_KM.square().mean().sqrt())
        if worst <= _TOLERANCE[self._kind()]:
            return None
        rounding = 0.0
        for first in (0, _NUDGED // 2):
            with self._nudged(first):
                own_KM = (self._plain(chains, count) - plain_KM) / spread
            rounding = max(rounding, float(own_KM.square().mean().sqrt()))
        if typical <= min(_TIMES_ROUNDING * rounding, _MOST):
            return None
        return (
            "with a tree's mask and positions it gives other logits (log-probabilities are apart "
            f"by {typical:.2g} of their spread, at most {worst:.2g}; rounding explains "
            f"{rounding:.2g})"
        )

    def _kind(self) -> torch.dtype:
        """The type that products are computed in."""
        kind: torch.dtype = self._model.get_input_embeddings().weight.dtype
        if kind in (torch.bfloat16, torch.float16):
            return kind
        return compute_type(self._device)  # autocast's, where weights are float32

    @contextmanager
    def _nudged(self, first: int) -> Iterator[None]:
        """Within, a few values of the embeddings are off by the last bit of what is computed."""
        factor = 1 + torch.finfo(self._kind()).eps

        def nudge(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            values = output.flatten().clone()
            values[first::_NUDGED] *= factor
            return values.view_as(output)

        hook = self._model.get_input_embeddings().register_forward_hook(nudge)
        try:
            yield
        finally:
            hook.remove()

    def _plain(self, chains: list[TreeRow], count: int) -> torch.Tensor:
        """What trees without branches ask for, each from an ordinary row: [K, M]."""
        found = []
        for chain in chains:
            tokens_KS = self._tensor(chain.tokens).expand(count, -1)
            logits_KSV = self._forward(tokens_KS, use_cache=False).logits
            log_p_KSV = torch.log_softmax(logits_KSV.float(), -1)
            places, targets = self._tensor(chain.places[chain.asked]), self._tensor(chain.targets)
            found.append(log_p_KSV[:, places, targets])
        return torch.cat(found, dim=1)

    @contextmanager
    def _masked(self, row: TreeRow) -> Iterator[Any]:
        """The mask that the model's attention takes, with the attention that takes it."""
        ends_S = self._tensor(row.ends)
        if not self._flex:
            low = self._device.type == "cuda"
            yield dense_mask(ends_S, self._model, torch.bfloat16 if low else torch.float32)
            return
        config = self._model.config.get_text_config(decoder=True)
        before = config._attn_implementation
        config._attn_implementation = TREE
        try:
            mask = block_mask(ends_S, tile=self._tile)
            yield mask
            self._kernel |= mask.served
        finally:
            config._attn_implementation = before

    def _tensor(self, values: Any) -> torch.Tensor:
        return put(values, self._device)


def _sample_tree(vocabulary: int) -> tuple[TreeRow, list[TreeRow]]:
    """A tree of two contexts with two branches each, and its four chains as rows of their own.

    The entries of the tree are the chains' entries, one chain after the other.
    """
    draw = np.random.default_rng(0)
    length, tokens, positions, ends = 12, [], [], []
    for start in (0, 3 * length):
        tokens.append(draw.integers(0, vocabulary, 3 * length))
        positions += [np.arange(2 * length), np.arange(length, 2 * length)]
        ends += [np.full(length, start + 3 * length), np.full(length, start + 2 * length)]
        ends.append(np.full(length, start + 3 * length))
    all_tokens = np.concatenate(tokens)
    chains, places, targets = [], [], []
    for start in (0, 3 * length):
        for branch in (1, 2):
            path = np.r_[
                start : start + length, start + branch * length : start + (branch + 1) * length
            ]
            asked = np.arange(length, 2 * length)
            wanted = draw.integers(0, vocabulary, length)
            chains.append(
                TreeRow(
                    tokens=all_tokens[path],
                    positions=np.arange(2 * length),
                    ends=np.full(2 * length, 2 * length),
                    places=asked,
                    asked=np.arange(length),
                    targets=wanted,
                )
            )
            places.append(path[asked])
            targets.append(wanted)
    row = TreeRow(
        tokens=all_tokens,
        positions=np.concatenate(positions),
        ends=np.concatenate(ends),
        places=np.concatenate(places),
        asked=np.arange(4 * length),
        targets=np.concatenate(targets),
    )
    return row, chains
