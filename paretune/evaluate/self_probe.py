"""The self-probe: text sampled once from the base, on which each arm's drift from it is measured.

Nobody has a base's pretraining data; what the base itself writes stands in for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.data.windows import Window
from paretune.errors import UserError
from paretune.evaluate.batches import ROW_TOKENS
from paretune.evaluate.drift import Reference
from paretune.evaluate.items import ArmModel, Items, outcomes
from paretune.files import read_jsonl, write_text
from paretune.study.config import SelfProbe

# Sampling holds the cache and one position's logits, so more rows fit than in training
SAMPLING_ROWS = 4


@torch.no_grad()
def sample(
    base: ArmModel,
    start: int,
    *,
    samples: int,
    tokens: int,
    seed: int,
    row_tokens: int = ROW_TOKENS,
) -> NDArray[np.int64]:
    """Ancestral samples at temperature 1 from the base: [samples, 1 + tokens], first ``start``.

    Each token is drawn by inverting the cumulative distribution at a uniform number; all uniforms
    come from one generator on the CPU seeded with ``seed``, so that neither the device nor the
    batch size changes them. An end-of-text token does not end a sample: sampling goes on with what
    the base writes at the start of its next document, as in packed pretraining data.
    """
    _one(base)
    generator = torch.Generator().manual_seed(seed)
    uniform_NT = torch.rand(samples, tokens, generator=generator, dtype=torch.float64)
    size = max(1, SAMPLING_ROWS * base.rows * row_tokens // tokens)
    parts = [_sample(base, start, uniform_NT[row : row + size]) for row in range(0, samples, size)]
    drawn: NDArray[np.int64] = torch.cat(parts).numpy()
    return drawn


def _sample(base: ArmModel, start: int, uniform_BT: torch.Tensor) -> torch.Tensor:
    uniform_BT = uniform_BT.to(base.device)
    drawn = [torch.full((len(uniform_BT), 1), start, device=base.device)]
    past = None
    for step in range(uniform_BT.shape[1]):
        logits, past = base.step(drawn[-1][None], past=past)
        cumulative = torch.softmax(logits[0, :, -1].double(), -1).cumsum(-1)
        # right=True passes over tokens of probability 0; scaling absorbs rounding of the total
        height = uniform_BT[:, step : step + 1] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, height, right=True)
        drawn.append(token.clamp_(max=cumulative.shape[1] - 1))
    return torch.cat(drawn, dim=1).cpu()


class Probe:
    """Samples of the base, and the base's own log-probabilities on them.

    Attributes:
        windows: the samples; the first token of each is the end-of-text token it started from.
    """

    def __init__(self, windows: Sequence[Window], *, row_tokens: int = ROW_TOKENS) -> None:
        self.windows = list(windows)
        self._reference = Reference(
            [window.tokens for window in windows], [1] * len(windows), row_tokens=row_tokens
        )

    @classmethod
    def of(
        cls,
        base: ArmModel,
        settings: SelfProbe,
        tokenizer: Any,
        path: Path,
        *,
        row_tokens: int = ROW_TOKENS,
    ) -> Probe:
        """The probe kept in ``path`` (JSON lines), sampled from the base where there is none yet.

        Raises:
            UserError: ``path`` holds samples made with other settings.
        """
        if not path.exists():
            # A text begins with the beginning-of-text token where there is one (Llama's <s>)
            first = tokenizer.bos_token_id
            drawn = sample(
                base,
                tokenizer.eos_token_id if first is None else first,
                samples=settings.samples,
                tokens=settings.tokens,
                seed=settings.seed,
                row_tokens=row_tokens,
            )
            rows = [
                _row(index, tokens, tokenizer, settings.seed) for index, tokens in enumerate(drawn)
            ]
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        # Read back even after sampling: a resumed study sees exactly what the first one saw
        rows = read_jsonl(path)
        made_with = {(len(row["tokens"]) - 1, row["seed"]) for row in rows}
        if len(rows) != settings.samples or made_with != {(settings.tokens, settings.seed)}:
            raise UserError(
                f"{path}: these samples were made with other settings than source.self_probe "
                f"({settings.samples} samples of {settings.tokens} tokens, seed {settings.seed}); "
                "use another study folder"
            )
        windows = [
            Window(row["id"], row["id"], np.array(row["tokens"], dtype=np.int64), row["n_bytes"])
            for row in rows
        ]
        probe = cls(windows, row_tokens=row_tokens)
        probe.attach(base)
        return probe

    def attach(self, base: ArmModel) -> None:
        """Keep the base's log-probabilities in host memory."""
        self._reference.attach(base)

    def score(self, arms: ArmModel) -> list[tuple[Items, Items]]:
        """For each arm its divergence from the base, and its bits per byte, on the samples.

        The divergence is KL(base || arm) over the whole vocabulary at every token: nats summed over
        an item's tokens, weight the tokens. Bits are those of the sampled tokens, end-of-text
        tokens included; weight the UTF-8 bytes of the decoded text.
        """
        drift = self._reference.score(arms)
        n_bytes = np.array([window.n_bytes for window in self.windows], dtype=np.float64)
        kl = outcomes("self_probe/kl", self.windows, drift.forward, self._reference.scored)
        bits = outcomes("self_probe/bits_per_byte", self.windows, drift.nats / math.log(2), n_bytes)
        return list(zip(kl, bits, strict=True))


def _row(index: int, tokens: NDArray[np.int64], tokenizer: Any, seed: int) -> dict[str, Any]:
    text = tokenizer.decode(
        tokens[1:].tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return {
        "id": f"sample-{index:04d}",
        "seed": seed,
        "n_bytes": len(text.encode()),
        "text": text,
        "tokens": tokens.tolist(),
    }


def _one(base: ArmModel) -> None:
    if base.count != 1:
        raise ValueError(f"the self-probe needs the base alone, not {base.count} arms")
