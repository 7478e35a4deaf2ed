"""Gathering matrices for a batched solver: everyone gets their own result, also the given up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.runner.tuned import base_of, tuned_of
from paretune.spectrum import compute, solvers
from paretune.spectrum.compute import spectra
from paretune.spectrum.measuring import Options


@pytest.fixture
def batched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batched solver on a CPU, LAPACK in the kernels' place; every third matrix given up."""
    sizes: list[int] = []

    def eigenvalues(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(slots.shape[-1])
        good = torch.arange(len(slots)) % 3 != 2
        return torch.linalg.eigvalsh(slots), good

    import sys

    modules = {"tridiagonal": {"eigenvalues": eigenvalues}, "kernels": {"forget": lambda a: None}}
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, f"paretune.spectrum.{name}", SimpleNamespace(**content))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 24, 1 << 24))
    monkeypatch.setattr(solvers, "SMALLEST", 16)
    monkeypatch.setattr(solvers, "_SLOTS", 5)
    monkeypatch.setattr(compute, "solver_for", solvers.Batched)
    return sizes


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_give_what_the_direct_solver_gives(
    batched: list[int], tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes change between batches, batches end in the middle of a matrix, the last is partial."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=80, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    for name in ("a", "b"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
    weights, matrices = base_of(str(tmp_path / "base"))
    models = [tuned_of(str(tmp_path / name), weights, matrices) for name in ("a", "b")]

    def run() -> dict[tuple[object, str], dict[str, object]]:
        cpu = [torch.device("cpu")]
        found = spectra(weights, matrices, models, Options(), cpu, workers=workers)
        return {(one.key, one.row["matrix"]): one.row for one in found}

    ours = run()
    assert {16, 32} == set(batched)
    monkeypatch.setattr(compute, "solver_for", lambda device: solvers.Direct())
    direct = run()
    assert ours.keys() == direct.keys()
    for key, row in direct.items():
        for name, value in row.items():
            expected = pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            assert ours[key][name] == expected, (key, name)
