"""An arm's weights at a budget, as others read them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping

import torch

from paretune.model.export import save_adapter, save_full
from paretune.runner.ledger import Ledger
from paretune.runner.workspace import Workspace
from paretune.study.arms import ArmConfig


class Checkpoints:
    """Writes the checkpoints that a study keeps; several threads may, of different arms.

    Args:
        transposed: the base stores its matrices as [d_in, d_out], as GPT-2 does.
    """

    def __init__(self, workspace: Workspace, ledger: Ledger, *, transposed: bool) -> None:
        self._workspace = workspace
        self._ledger = ledger
        self._transposed = transposed
        self._keep = workspace.config.checkpoints.keep
        self._one_full = threading.Lock()  # it may read the base, which changes torch's defaults

    def wanted(self, arm: ArmConfig, tokens: int) -> bool:
        """Whether a budget's is kept and not there."""
        return self._keep != "none" and not self._ledger.checkpoint(arm.id, tokens).exists()

    def write(self, arm: ArmConfig, tokens: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Write one, from the named tensors that the arm trains."""
        base = self._workspace.config.base
        with self._ledger.writing_checkpoint(arm.id, tokens) as folder:
            if arm.method == "full":
                with self._one_full:
                    save_full(folder, weights, base)
            else:
                save_adapter(folder, arm, weights, base, transposed=self._transposed)

    def forget_earlier(self, arm: ArmConfig, tokens: int) -> None:
        """Delete those of smaller budgets, where only the last is kept."""
        if self._keep != "last":
            return
        for step in self._workspace.budgets:
            if self._workspace.tokens(step) < tokens:
                earlier = self._ledger.checkpoint(arm.id, self._workspace.tokens(step))
                shutil.rmtree(earlier, ignore_errors=True)
