"""How many directions learning needs, and how many forgetting: W0 + s Delta_r, scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from paretune.analyse.statistics import change_sign, paired_difference
from paretune.errors import UserError
from paretune.evaluate.items import Items, score
from paretune.files import append_jsonl, read_jsonl
from paretune.model.layers import linear_layers
from paretune.model.load import load_shape
from paretune.model.trainee import Trainee, frozen, scoring_rows
from paretune.runner.device import choose
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.progress import Progress, Silent
from paretune.runner.tuned import base_of, checkpoints, tuned_in, tuned_of
from paretune.runner.workspace import Workspace
from paretune.spectrum.adapters import Adapter
from paretune.spectrum.matrices import Matrix
from paretune.spectrum.measuring import Tuned
from paretune.spectrum.truncate import Leading, leading, updates, write_adapter, write_model
from paretune.spectrum.weights import Weights
from paretune.study.config import Base

if TYPE_CHECKING:
    import pandas as pd

LOG = "truncation.jsonl"


@dataclass(frozen=True)
class Cut:
    """One point of a truncation curve: W0 + ``scale`` Delta truncated to ``rank`` (None: all)."""

    rank: int | None
    scale: float = 1.0

    @property
    def label(self) -> str:
        """As files and folders call it."""
        rank = "full" if self.rank is None else f"rank{self.rank}"
        return rank if self.scale == 1 else f"{rank}-scale{self.scale:g}"


def parse_cuts(ranks: str | None, scales: str | None) -> list[Cut]:
    """Every rank at every scale, from ``1,4,16`` and ``0.5,1``; scales alone keep all ranks.

    Raises:
        UserError: not a list of such numbers.
    """
    kept: list[int | None] = [None]
    factors = [1.0]
    if ranks is not None:
        try:
            kept = [int(part) for part in ranks.split(",")]
        except ValueError:
            kept = [-1]
        if min(rank for rank in kept if rank is not None) < 0:
            raise UserError(f"--truncate {ranks}: write ranks with commas, as 1,4,16")
    if scales is not None:
        try:
            factors = [float(part) for part in scales.split(",")]
        except ValueError:
            factors = [math.nan]
        if not all(math.isfinite(factor) for factor in factors):
            raise UserError(f"--scale {scales}: write numbers with commas, as 0.5,1")
    return list(dict.fromkeys(Cut(rank, scale) for rank in kept for scale in factors))


def score_cuts(
    folder: Path | str,
    arm: str,
    wanted: Sequence[Cut],
    *,
    rest: str = "tuned",
    device: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Score truncations of one finished checkpoint with the study's own suite; nothing is trained.

    Beside the cuts asked for, rank 0 and the whole update are scored, the ends of every curve.

    Args:
        arm: ARM, at its last checkpoint, or ARM@BUDGET.
        rest: what embeddings, norms and other tensors outside the layers' matrices are: the tuned
            model's, so that only matrices are cut, or the base's.

    Returns:
        One row for each cut and metric, as they stand in arms/<arm-id>/truncation.jsonl: value and
        change from the base, paired item by item, with its 95% interval.

    Raises:
        UserError: no such study, arm or checkpoint.
    """
    import pandas as pd

    progress = progress or Silent()
    if rest not in ("tuned", "base"):
        raise UserError(f"--rest {rest}: what is not cut is either tuned or base")
    ledger = Ledger.open(Path(folder))
    study = ledger.study()
    arm_id, tokens, path = checkpoints(ledger, [arm])[-1]
    weights, matrices = base_of(study.config.base.name, study.config.base.revision)
    tuned = tuned_in((arm_id, tokens), path, weights, matrices)
    log = ledger.arm_folder(arm_id) / LOG
    have = {_cut_key(row) for row in read_jsonl(log)}
    points = dict.fromkeys([Cut(0), *wanted, Cut(None)])
    todo = [cut for cut in points if (tokens, cut.rank, cut.scale, rest) not in have]
    if todo:
        work = Workspace.build(study, ledger, progress.line)
        base = frozen(study.config.base, choose(device))
        base.rows = scoring_rows(base.device, study.config.training.block_length)
        work.suite.attach_base(base.view(None))
        model = _Model(base, weights, tuned, matrices, max(c.rank or 0 for c in todo), rest)
        progress.begin("scoring truncations", len(todo))
        for cut in todo:
            energy = model.set(cut)
            (results,) = work.suite.score(base.view(None))
            rows = [_row(ledger, tokens, cut, rest, energy, items) for items in results]
            append_jsonl(log, rows)
            progress.advance()
            shown = "  ".join(f"{r['metric']} {r['value']:.4f}" for r in rows if r["value"])
            progress.line(f"{cut.label} ({energy:.1%} of the update): {shown}")
    rows = [r for r in read_jsonl(log) if r["tokens"] == tokens and r["rest"] == rest]
    return pd.DataFrame(rows)


def write_cuts(
    base: str,
    tuned: str,
    wanted: Sequence[Cut],
    out: Path | str,
    *,
    merged: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write truncations of a tuned model: PEFT adapters, or whole models.

    An adapter of rank r is the best that LoRA could have been: no other of that rank is nearer to
    the finetune. It holds matrices inside the layers only; of a full finetune the changes of
    embeddings and norms stay outside it, while a whole model has them.

    Returns:
        The folders written, OUT/rankR or OUT/rankR-scaleS.

    Raises:
        UserError: a folder is in use, or an adapter without a rank is asked for.
    """
    progress = progress or Silent()
    weights, matrices = base_of(base)
    model = tuned_of(tuned, weights, matrices)
    folders = {cut: Path(out) / cut.label for cut in wanted}
    for cut, folder in folders.items():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: already there and not empty; give another with --out")
        if not merged and not cut.rank:
            raise UserError(f"{cut.label}: an adapter has a rank; give --truncate, or say --merge")
    on = choose(device)
    if merged:
        progress.begin("writing models", len(folders))
        for cut, folder in folders.items():
            write_model(folder, weights, model, matrices, cut.rank, cut.scale, on)
            progress.advance()
        return list(folders.values())
    largest = max(cut.rank or 1 for cut in folders)
    paths = _module_paths(weights, matrices)
    progress.begin("finding directions", len(matrices))
    parts = {}
    for matrix, D in updates(weights, model, matrices, on):
        parts[paths[matrix.name]] = leading(D, largest).to("cpu")
        progress.advance()
    name = None if base == "pocket" else base
    turned = any(matrix.transposed for matrix in matrices)
    for cut, folder in folders.items():
        write_adapter(folder, parts, cut.rank or 1, scale=cut.scale, transposed=turned, base=name)
    return list(folders.values())


def curve_table(table: pd.DataFrame) -> str:
    """Changes from the base by rank and scale, for people."""
    lines = []
    for metric, rows in table.groupby("metric", sort=False):
        gain = "learned" if rows["side"].iloc[0] == "target" else "forgot"
        lines.append(
            f"{metric}: what each cut of the update {gain}, in {rows['unit'].iloc[0]}, "
            "and its 95% interval"
        )
        order = rows["rank"].astype("float64").fillna(math.inf)
        for _, row in rows.assign(order=order).sort_values(["order", "scale"]).iterrows():
            label = Cut(None if math.isinf(row["order"]) else int(row["rank"]), row["scale"]).label
            change, low, high = (
                f"{row[name]:+.4f}" if row[name] == row[name] and row[name] is not None else "-"
                for name in ("change", "change_low", "change_high")
            )
            lines.append(f"  {label:16} {row['energy']:6.1%} of it  {change} [{low}, {high}]")
    return "\n".join(lines)


class _Model:
    """The base's model, whose matrices are set to one cut after another."""

    def __init__(
        self,
        trainee: Trainee,
        weights: Weights,
        tuned: Tuned,
        matrices: list[Matrix],
        rank: int,
        rest: str,
    ) -> None:
        self.weights = weights
        self.tuned = tuned
        self.device = trainee.device
        self.matrices = matrices
        self.parts: dict[str, Leading] = {}
        for matrix, D in updates(weights, tuned, matrices, self.device):
            self.parts[matrix.name] = leading(D, max(1, rank))
        named = dict(trainee.model.named_parameters())
        self.parameters = {m.name: named[_in_model(m.tensor, named)] for m in matrices}
        if rest == "tuned":
            taken = {id(parameter) for parameter in self.parameters.values()}
            for name, parameter in named.items():
                own = _outside(tuned.source, name)
                if id(parameter) not in taken and own is not None:
                    parameter.data.copy_(own)

    @torch.no_grad()
    def set(self, cut: Cut) -> float:
        """Put a cut's weights in place.

        Returns:
            The share of the whole update's squared norm that is kept, over all matrices.
        """
        kept = total = 0.0
        whole = updates(self.weights, self.tuned, self.matrices, self.device)
        for matrix, D in whole:
            size = float(D.square().sum())
            total += size
            if cut.rank is not None:
                part = self.parts[matrix.name]
                rank = min(cut.rank, part.A.shape[0])
                D = part.update(rank)
                size *= float(part.energy[rank - 1]) if rank else 0.0
            kept += size
            stored = self.weights.tensor(matrix.tensor, matrix.expert).to(self.device).double()
            own = self.parameters[matrix.name]
            own = own if matrix.expert is None else own[matrix.expert]
            own.copy_(stored + cut.scale * (D.T if matrix.transposed else D))
        return kept / total if total else 1.0


def _outside(source: Weights | Adapter, name: str) -> torch.Tensor | None:
    """What a tuned model has in the place of a parameter that is not cut; None: the base's."""
    if isinstance(source, Adapter):
        return source.bias(name)
    return source.tensor(name) if name in source.entries else None


def _row(
    ledger: Ledger, tokens: int, cut: Cut, rest: str, energy: float, items: Items
) -> dict[str, Any]:
    import pandas as pd

    value = score(items)
    base = ledger.items(BASE, 0, items.metric)
    mine = pd.DataFrame(
        {"item": items.ids, "group": items.groups, "value": items.value, "weight": items.weight}
    )
    sign = change_sign(items.side, items.higher_is_better)
    change = paired_difference(mine, base, sign=sign)
    return {
        "tokens": tokens,
        "rank": cut.rank,
        "scale": cut.scale,
        "rest": rest,
        "energy": energy,
        "metric": items.metric,
        "side": items.side,
        "unit": items.unit,
        "value": value.value if math.isfinite(value.value) else None,
        "stderr": value.stderr,
        "n": value.n,
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
    }


def _cut_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["tokens"], row["rank"], row["scale"], row["rest"]


def _module_paths(weights: Weights, matrices: Sequence[Matrix]) -> dict[str, str]:
    """The module of each matrix in the model that transformers builds.

    Raises:
        UserError: a matrix is no linear layer, so no adapter can hold its update; names it.
    """
    layers = linear_layers(load_shape(Base(name=str(weights.folder))))
    paths = {}
    for matrix in matrices:
        own = matrix.name.removesuffix(".weight")
        found = [p for p in layers if p == own or p.endswith("." + own) or own.endswith("." + p)]
        if not found:
            raise UserError(
                f"{matrix.name}: no linear layer of the model, so an adapter cannot hold it; "
                "write whole models with --merge"
            )
        paths[matrix.name] = found[0]
    return paths


def _in_model(tensor: str, named: dict[str, Any]) -> str:
    """A stored tensor's parameter in the model: the same name, or one with a prefix."""
    if tensor in named:
        return tensor
    found = [n for n in named if n.endswith("." + tensor) or tensor.endswith("." + n)]
    if not found:
        raise UserError(f"{tensor}: the model that transformers builds has no such parameter")
    return found[0]
