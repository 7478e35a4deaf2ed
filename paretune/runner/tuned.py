"""What BASE and TUNED on the command line stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paretune.data.network import UNREACHED, answered_at_once
from paretune.errors import UserError, first_line
from paretune.model.layers import linear_layers
from paretune.model.load import load_shape, location
from paretune.runner.ledger import Ledger
from paretune.runner.naming import find_arm, find_budget
from paretune.spectrum.adapters import Adapter, is_adapter
from paretune.spectrum.matrices import Matrix, match, matrices_of, vocabulary
from paretune.spectrum.measuring import Tuned
from paretune.spectrum.weights import Weights
from paretune.study.config import Base


def is_study(text: str) -> bool:
    """Whether an argument is a study's folder."""
    return (Path(text) / "study.yaml").exists()


def base_of(name: str, revision: str | None = None) -> tuple[Weights, list[Matrix]]:
    """A base's weights and its matrices: ``pocket``, a folder, or a name on the hub.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    base = Base(name=name, revision=revision)
    weights = Weights.of(folder_of(location(base), revision))
    return weights, matrices_of(weights, _transposed(Base(name=str(weights.folder))))


def tuned_of(
    text: str, base: Weights, matrices: Sequence[Matrix], *, any_vocabulary: bool = False
) -> Tuned:
    """A tuned model: a folder, a PEFT adapter, a name on the hub, or STUDY:ARM[@BUDGET].

    Raises:
        UserError: it is not there, or is no finetune of the base.
    """
    return tuned_in(text, checkpoint_place(text), base, matrices, any_vocabulary=any_vocabulary)


def tuned_in(
    key: object,
    folder: Path,
    base: Weights,
    matrices: Sequence[Matrix],
    *,
    any_vocabulary: bool = False,
) -> Tuned:
    """The model or adapter in a folder, under a key of the caller's.

    Raises:
        UserError: it is no finetune of the base.
    """
    if is_adapter(folder):
        return Tuned(key, Adapter.of(folder, matrices))
    weights = Weights.of(folder)
    names = match(base, weights, matrices)
    changed = vocabulary(base, weights)
    if changed and not any_vocabulary:
        name, rows, others = changed
        raise UserError(
            f"{folder}: {name} has {others:,} rows, in the base it has {rows:,}: another "
            "vocabulary. If tokens were only added, say --any-vocabulary: matrices inside the "
            "layers are compared, embeddings never are"
        )
    return Tuned(key, weights, names)


def checkpoints(ledger: Ledger, arms: Sequence[str]) -> list[tuple[str, int, Path]]:
    """Every kept checkpoint of a study, or of the arms named as ARM or ARM@BUDGET.

    Returns:
        Arm id, tokens, and the checkpoint's folder, its checksums compared.

    Raises:
        UserError: there is none.
    """
    wanted: list[tuple[str, int]] = []
    for text in arms:
        name, _, budget = text.partition("@")
        arm_id = find_arm(ledger, name)
        have = _kept(ledger, arm_id)
        if not have:
            raise _none_kept(arm_id)
        picked = [find_budget(arm_id, budget, have, "checkpoint")] if budget else have
        wanted += [(arm_id, tokens) for tokens in picked]
    if not arms:
        wanted = [(arm_id, t) for arm_id in ledger.arms() for t in _kept(ledger, arm_id)]
        if not wanted:
            raise _none_kept(str(ledger.folder))
    return [(arm, tokens, ledger.check_checkpoint(arm, tokens)) for arm, tokens in wanted]


def folder_of(text: str, revision: str | None = None) -> Path:
    """A local folder as it is, or a model of the hub, downloaded (weights and configuration only).

    Raises:
        UserError: neither.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if text.count("/") > 1 or text.startswith((".", "/", "~")):
        raise UserError(f"{text}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json"]
    unreached = False
    try:
        with answered_at_once() as unreached:
            return Path(snapshot_download(text, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = UNREACHED if unreached else first_line(error)
        raise UserError(
            f"{text}: neither a folder nor a model on the hub that can be read ({reason})"
        ) from error


def checkpoint_place(text: str) -> Path:
    """The folder of a tuned model or adapter: a folder, a name on the hub, or STUDY:ARM[@BUDGET].

    Raises:
        UserError: it is not there.
    """
    study, _, arm = text.rpartition(":")
    if study and is_study(study):
        ledger = Ledger.open(Path(study))
        return checkpoints(ledger, [arm])[-1][2]
    return folder_of(location(Base(name=text)))


def _kept(ledger: Ledger, arm_id: str) -> list[int]:
    folder = ledger.arm_folder(arm_id) / "checkpoints"
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def _none_kept(where: str) -> UserError:
    return UserError(
        f"{where}: no checkpoint is kept; run the study with checkpoints: {{keep: all}}"
    )


def _transposed(base: Base) -> list[str]:
    """Modules that store their matrix as [d_in, d_out]; none where no model can be built."""
    try:
        layers = linear_layers(load_shape(base))
    except UserError:
        return []
    return [name for name, layer in layers.items() if layer.transposed]
