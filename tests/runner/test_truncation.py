"""Truncated updates: best by numpy's SVD, loaded by PEFT and transformers, scored as arms are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from runner_helpers import small_study
from transformers import AutoModelForCausalLM

from paretune import UserError
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.run import run
from paretune.runner.truncation import Cut, curve_table, parse_cuts, score_cuts, write_cuts
from paretune.spectrum.truncate import leading
from paretune.study.config import Base

BOTH = pytest.mark.parametrize("fixture", ["tiny_base", "tiny_gpt2"])


@pytest.mark.parametrize("shape", [(20, 20), (12, 30), (30, 12)])
def test_leading_part_is_the_best_of_its_rank(shape: tuple[int, int]) -> None:
    """Eckart and Young: what is left has the norm of the values that were cut."""
    D = np.random.default_rng(0).standard_normal(shape)
    U, s, Vt = np.linalg.svd(D, full_matrices=False)
    part = leading(torch.from_numpy(D), 8)
    for rank in (1, 3, 8):
        best = (U[:, :rank] * s[:rank]) @ Vt[:rank]
        assert part.update(rank).numpy() == pytest.approx(best, abs=1e-8)
        assert part.energy[rank - 1] == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum())
    assert leading(torch.zeros(shape), 4).update(4).abs().max() == 0


def finetuned(base: str, folder: Path, everything: bool) -> Any:
    """A finetune in all its parameters, or in its layers' matrices alone."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if everything or (parameter.dim() == 2 and any(c.isdigit() for c in name)):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.eval()


def truncated_by_numpy(base: str, tuned: Any, rank: int, scale: float) -> Any:
    """W0 + s Delta_r in every matrix inside the layers, by numpy's SVD; the rest the base's."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    new = dict(tuned.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and any(c.isdigit() for c in name):
                D = (new[name] - parameter).double().numpy()
                U, s, Vt = np.linalg.svd(D, full_matrices=False)
                parameter += torch.from_numpy(scale * (U[:, :rank] * s[:rank]) @ Vt[:rank]).float()
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 96, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out: torch.Tensor = model(ids).logits
    return out


@BOTH
def test_extracted_adapter_gives_in_peft_the_truncated_models_logits(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Rank 40 is above every smaller side (32): the adapter is then the finetune itself."""
    base = request.getfixturevalue(fixture).name
    tuned = finetuned(base, tmp_path / "tuned", everything=False)
    cuts = parse_cuts("3,40", "0.5,1")
    folders = write_cuts(base, str(tmp_path / "tuned"), cuts, tmp_path / "out", device="cpu")
    for cut, folder in zip(cuts, folders, strict=True):
        loaded = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(folder)
        ).eval()
        assert loaded.peft_config["default"].r == cut.rank
        expected = logits(truncated_by_numpy(base, tuned, cut.rank or 0, cut.scale))
        assert torch.allclose(logits(loaded), expected, atol=1e-5 * float(expected.abs().max()))
    whole = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        str(tmp_path / "out" / "rank40"),
    ).eval()
    assert torch.allclose(logits(whole), logits(tuned), atol=1e-4)


@BOTH
def test_written_models(fixture: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The whole update gives the tuned model; embeddings and norms are its own at every rank."""
    base = request.getfixturevalue(fixture).name
    tuned = finetuned(base, tmp_path / "tuned", everything=True)
    cuts = [Cut(None), Cut(2)]
    folders = write_cuts(
        base, str(tmp_path / "tuned"), cuts, tmp_path / "out", merged=True, device="cpu"
    )
    whole, cut = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in folders
    )
    assert torch.allclose(logits(whole), logits(tuned), atol=1e-5)
    reference = truncated_by_numpy(base, tuned, 2, 1.0)
    new = dict(tuned.named_parameters())
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if not (parameter.dim() == 2 and any(c.isdigit() for c in name)):
                parameter.copy_(new[name])
    assert torch.allclose(logits(cut), logits(reference), atol=1e-4)


def test_a_written_model_has_the_biases_that_an_adapter_trained(
    tiny_gpt2: Base, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2.name, dtype=torch.float32)
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], bias="all", fan_in_fan_out=True)
    tuned = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    tuned.save_pretrained(str(tmp_path / "tuned"))
    [folder] = write_cuts(
        tiny_gpt2.name, str(tmp_path / "tuned"), [Cut(None)], tmp_path, merged=True, device="cpu"
    )
    written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.allclose(logits(written), logits(tuned), atol=1e-5)


ARMS = """
  - {method: full, learning_rate: 3e-3}
  - {method: lora, rank: 4, learning_rate: 5e-3}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truncation")
    run(small_study(folder, arms=ARMS, at="8ba"), folder / "out", report=False)
    return folder / "out"


def value(table: Any, metric: str, rank: int | None) -> float:
    rows = table[table["metric"] == metric]
    found = rows[rows["rank"].isna() if rank is None else rows["rank"] == rank]
    assert len(found) == 1
    return float(found["value"].iloc[0])


def test_ends_of_the_curve_are_the_base_and_the_arm(study: Path) -> None:
    """Scored by the study's suite: all of the update is the arm, none of anything the base."""
    ledger = Ledger.open(study)
    for prefix, rest in (("full", "base"), ("lora", "tuned")):
        arm = next(arm for arm in ledger.arms() if arm.startswith(prefix))
        table = score_cuts(study, prefix, parse_cuts("2", None), rest=rest, device="cpu")
        scores = {
            (name, row["metric"]): row["value"]
            for name in (BASE, arm)
            for row in ledger.scores(name)
        }
        for metric in ("target/bits_per_byte", "self_probe/kl"):
            at_base = scores[BASE, metric]
            assert value(table, metric, 0) == pytest.approx(at_base, rel=1e-5, abs=1e-6)
        if prefix == "lora":
            for metric in ("target/bits_per_byte", "self_probe/kl"):
                at_arm = pytest.approx(scores[arm, metric], rel=1e-4)
                assert value(table, metric, None) == at_arm
    whole = score_cuts(study, "full", [Cut(None, 1.0)], rest="tuned", device="cpu")
    arm = next(arm for arm in ledger.arms() if arm.startswith("full"))
    own = {row["metric"]: row["value"] for row in ledger.scores(arm)}
    for metric in own:
        assert value(whole, metric, None) == pytest.approx(own[metric], rel=1e-5)
    assert "rank0" in curve_table(whole)


def test_what_is_scored_is_not_scored_again(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = score_cuts(study, "lora", parse_cuts("1", "0.5"), device="cpu")
    monkeypatch.setattr("paretune.runner.truncation.frozen", None)
    again = score_cuts(study, "lora", parse_cuts("1", "0.5"), device="cpu")
    assert again.equals(first)
    assert set(again["scale"]) == {0.5, 1.0}


@pytest.mark.parametrize(
    ("ranks", "scales", "message"),
    [
        ("1,x", None, "--truncate 1,x: write ranks with commas, as 1,4,16"),
        ("-1", None, "--truncate -1: write ranks"),
        (None, "half", "--scale half: write numbers with commas"),
        (None, "inf", "--scale inf: write numbers"),
    ],
)
def test_wrong_cuts(ranks: str | None, scales: str | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_cuts(ranks, scales)
    assert message in str(caught.value)


def test_an_adapter_needs_a_rank(tiny_base: Base, tmp_path: Path) -> None:
    finetuned(tiny_base.name, tmp_path / "tuned", everything=True)
    with pytest.raises(UserError, match="an adapter has a rank"):
        write_cuts(
            tiny_base.name, str(tmp_path / "tuned"), [Cut(None, 0.5)], tmp_path, device="cpu"
        )
