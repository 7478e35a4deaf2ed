"""Many arms' rows decoded together: prompts fill slots of a cache, then all rows step at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.model.adapter import Bank
from paretune.model.slots.cache import NAME, Filling, SlotCache, Unsupported, running
from paretune.model.slots.fuse import fuse_norms, rotary_in_one_kernel, rotary_modules
from paretune.model.slots.twin import Rows, twin

# Tokens of the check, and how far its logits may lie from the model's own, in units of their spread
CHECK_TOKENS, CHECK_PROMPT = 10, 9
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}


class SlotModel:
    """A model whose rows live in slots; made for one generation, with the weights of the moment.

    Attributes:
        count: K arms; rows are arm-major.
        vocabulary: V.
        token_bytes: of cache that a token of one row takes; known after :meth:`check`.
    """

    def __init__(
        self,
        model: Any,
        banks: Sequence[Bank],
        count: int,
        device: torch.device,
        dtype: torch.dtype,
        run: Callable[[Any], object],
    ) -> None:
        self.count, self.device = count, device
        self._rows = Rows(count)
        self._dtype = dtype
        self._model, self._head = twin(model, banks, self._rows, dtype, run)
        self._model.config.get_text_config(decoder=True)._attn_implementation = NAME
        self._rotary: list[Any] = []
        if device.type == "cuda":
            fuse_norms(self._model, dtype)
        self.vocabulary = len(self._head.weight)
        self.cache = SlotCache(0, 0, device, dtype)
        self.token_bytes = 0

    def allocate(self, rows: int, length: int) -> None:
        """Empty slots for ``rows`` rows of each arm, of ``length`` tokens."""
        self.token_bytes = self.cache.token_bytes or self.token_bytes
        self.cache = SlotCache(self.count * rows, length, self.device, self._dtype)

    @torch.no_grad()
    def prefill(
        self,
        arm: int | None,
        prompts: Sequence[NDArray[np.int64]],
        rows: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        """Run prompts and keep their cache; logits [N, V] after each of them.

        Args:
            arm: whose prompts they are; None for equally many of each arm, arm-major.
            rows: for each prompt, the rows of the cache that go on from it.
        """
        width = max(len(prompt) for prompt in prompts)
        tokens = np.zeros((len(prompts), width), dtype=np.int64)
        for index, prompt in enumerate(prompts):
            tokens[index, : len(prompt)] = prompt
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        filling = Filling.of(rows, self.device)
        self.cache.filling = filling
        self._rows.arm, self._head.last_R = arm, (lengths - 1).to(self.device)
        try:
            positions = torch.arange(width, device=self.device).expand(len(prompts), width)
            logits = self._forward(torch.from_numpy(tokens).to(self.device), positions)
        finally:
            self.cache.filling, self._rows.arm, self._head.last_R = None, None, None
        held_N = lengths.to(self.device, torch.int32)
        self.cache.length_R[filling.rows_R] = held_N[filling.source_R]
        return logits

    @torch.no_grad()
    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        """Logits [R, V] after one more token of every row; ``cache.length_R`` is the caller's."""
        positions = self.cache.length_R.clamp(min=0).long()[:, None]
        return self._forward(token_R[:, None], positions)

    def _forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        with running(self.cache), rotary_in_one_kernel(self._rotary):
            out = self._model(
                input_ids=input_ids,
                position_ids=position_ids,
                past_key_values=self.cache,
                use_cache=True,
            )
        logits: torch.Tensor = out.logits[:, 0]
        return logits.float()

    @torch.no_grad()
    def check(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
        """Why this model's logits are not those of the ordinary forward pass; None if they are.

        What a model's attention or an arm's layers do beyond what is known here shows as a
        difference; such a model is decoded with its own cache instead.

        Args:
            logits: the ordinary logits [K, B, S, V] of tokens [B, S].
        """
        generator = torch.Generator().manual_seed(0)
        tokens_S = torch.randint(self.vocabulary, (CHECK_TOKENS,), generator=generator)
        expected_KSV = logits(tokens_S[None].to(self.device))[:, 0].float()
        self.allocate(1, CHECK_TOKENS)
        if self.device.type == "cuda":
            self._rotary = rotary_modules(self._model, self._dtype)
        try:
            prompt = tokens_S[:CHECK_PROMPT].numpy()
            after = self.prefill(None, [prompt] * self.count, [[k] for k in range(self.count)])
            # One arm's prompts take another way through the layers
            last = self.count - 1
            got = [torch.cat([after[:last], self.prefill(last, [prompt], [[last]])])]
            for token in tokens_S[CHECK_PROMPT:]:
                got.append(self.step(token.to(self.device).expand(self.count)))
                self.cache.length_R += 1
        except (
            Unsupported,
            RuntimeError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:
            return f"{type(error).__name__}: {error}"
        if self.cache.unread or not self.cache.token_bytes:
            return "its attention is not the one that transformers lets others replace"
        expected_KSV = expected_KSV[:, CHECK_PROMPT - 1 :]
        # A diverged arm has no numbers to compare
        known_KSV = expected_KSV.isfinite().all(-1, keepdim=True)
        apart_KSV = (torch.stack(got, dim=1) - expected_KSV) / expected_KSV.std(-1, keepdim=True)
        apart = float(apart_KSV.masked_fill(~known_KSV, 0.0).square().mean().sqrt())
        if not apart < TOLERANCE[self._dtype]:
            return f"its logits are {apart:.2g} standard deviations from the ordinary ones"
        self.allocate(0, 0)
        return None
