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
from paretune.evaluate.batches import ROW_TOKENS, batches, position_slices, right_padded
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
        self._row_tokens = row_tokens
        self._base_NSV: torch.Tensor | None = None

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

    @torch.no_grad()
    def attach(self, base: ArmModel) -> None:
        """Keep the base's log-probabilities [N, S, V], float32, in host memory.

        They are computed in the batches that arms are scored in, so that on a CPU in float32 the
        base's divergence from itself is exactly 0.
        """
        _one(base)
        for batch in self._batches(base):
            logits_BSV = self._logits(base, batch)[0]
            _, S, V = logits_BSV.shape
            if self._base_NSV is None:
                self._base_NSV = torch.empty(len(self.windows), S, V)
            for row, index in enumerate(batch):
                for part in position_slices(S, V, base.device):
                    self._base_NSV[index, part] = log_probabilities(logits_BSV[row, part]).cpu()

    @torch.no_grad()
    def score(self, arms: ArmModel) -> list[tuple[Items, Items]]:
        """For each arm its divergence from the base, and its bits per byte, on the samples.

        The divergence is KL(base || arm) over the whole vocabulary at every token,
        sum_v p_base(v) (log p_base(v) - log p_arm(v)): nats summed over an item's tokens, weight
        the tokens. Bits are those of the sampled tokens, end-of-text tokens included; weight the
        UTF-8 bytes of the decoded text.
        """
        kl = np.zeros((arms.count, len(self.windows)))
        nats = np.zeros((arms.count, len(self.windows)))
        for batch in self._batches(arms):
            logits_KBSV = self._logits(arms, batch)
            for row, index in enumerate(batch):
                kl[:, index], nats[:, index] = self._row(logits_KBSV[:, row], index)
        tokens = np.array([len(window.tokens) - 1 for window in self.windows], dtype=np.float64)
        n_bytes = np.array([window.n_bytes for window in self.windows], dtype=np.float64)
        kl_items = outcomes("self_probe/kl", self.windows, kl, tokens)
        bits = outcomes("self_probe/bits_per_byte", self.windows, nats / math.log(2), n_bytes)
        return list(zip(kl_items, bits, strict=True))

    def _row(
        self, logits_KSV: torch.Tensor, index: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Divergence and negative log-likelihood of one sample, in nats: [K] and [K]."""
        if self._base_NSV is None:
            raise ValueError("attach the base before arms are scored")
        K, S, V = logits_KSV.shape
        targets_S = torch.from_numpy(self.windows[index].tokens[1:]).to(logits_KSV.device)
        kl_KS = torch.empty(K, S, device=logits_KSV.device)
        nats_KS = torch.empty(K, S, device=logits_KSV.device)
        for part in position_slices(S, V, logits_KSV.device):
            base_sV = self._base_NSV[index, part].to(logits_KSV.device)
            p_base_sV = base_sV.exp()
            impossible_sV = p_base_sV == 0
            for arm in range(K):
                log_p_sV = log_probabilities(logits_KSV[arm, part])
                nats_KS[arm, part] = -log_p_sV.gather(1, targets_S[part, None])[:, 0]
                term_sV = (base_sV - log_p_sV).mul_(p_base_sV)
                # A token the base never writes adds nothing, whatever its log-probability is
                kl_KS[arm, part] = term_sV.masked_fill_(impossible_sV, 0.0).sum(-1)
        return kl_KS.double().sum(-1).cpu().numpy(), nats_KS.double().sum(-1).cpu().numpy()

    def _batches(self, arms: ArmModel) -> list[list[int]]:
        return list(batches([len(w.tokens) - 1 for w in self.windows], arms, self._row_tokens))

    def _logits(self, arms: ArmModel, batch: list[int]) -> torch.Tensor:
        tokens = right_padded([self.windows[index].tokens for index in batch])
        return arms.logits(tokens[:, :-1].to(arms.device))


def log_probabilities(logits_PV: torch.Tensor) -> torch.Tensor:
    """Log-softmax in float32."""
    return torch.log_softmax(logits_PV.float(), -1)


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
