"""What an export gives is the arm, as PEFT and transformers load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from runner_helpers import small_study
from transformers import AutoModelForCausalLM, AutoTokenizer

import paretune
from paretune import UserError
from paretune.model.load import location
from paretune.model.lora_cohort import lora_cohort
from paretune.runner.ledger import Ledger
from paretune.runner.run import run

ARMS = """
  - {method: full, learning_rate: 1e-3}
  - {method: lora, rank: 4, alpha: 6, learning_rate: 5e-3, targets: [q_proj, down_proj]}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    run(small_study(folder, arms=ARMS, at="6ba, 12ba"), folder / "out", report=False)
    return folder / "out"


def ids() -> torch.Tensor:
    return torch.randint(0, 2048, (3, 40), generator=torch.Generator().manual_seed(0))


def arm_of(folder: Path, method: str) -> str:
    return next(s.arm for s in paretune.status(folder) if s.arm.startswith(method))


def arm_logits(folder: Path, arm_id: str, tokens: int) -> torch.Tensor:
    """The arm's own logits, from its adapter tensors put into a cohort by hand."""
    ledger = Ledger.open(folder)
    arm = ledger.arms()[arm_id]
    trainee = lora_cohort(ledger.study().config.base, [arm], torch.device("cpu"))
    from safetensors.torch import load_file

    stored = load_file(ledger.checkpoint(arm_id, tokens) / "adapter_model.safetensors")
    for name, value in trainee.flats[0].tensors(0).items():
        layer, _, part = name.rpartition(".")
        value.copy_(stored[f"base_model.model.{layer}.lora_{part}.weight"].T)
    return trainee.view(trainee.passes[0]).logits(ids())[0]


def assert_same(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest logit, everywhere."""
    assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()


def base_model(folder: Path) -> torch.nn.Module:
    base = Ledger.open(folder).study().config.base
    return AutoModelForCausalLM.from_pretrained(location(base), dtype=torch.float32).eval()


@torch.no_grad()
def test_adapter_loads_in_peft_and_gives_the_arms_logits(done: Path, tmp_path: Path) -> None:
    arm_id = arm_of(done, "lora")
    exported, tokens, to = paretune.export(done, arm_id, tmp_path / "adapter")
    assert (exported, tokens) == (arm_id, 12 * 64)
    model = peft.PeftModel.from_pretrained(base_model(done), to)
    ours = arm_logits(done, arm_id, tokens)
    theirs = model(ids()).logits
    assert_same(theirs, ours)
    assert (theirs - base_model(done)(ids()).logits).abs().max() > 0.1


@torch.no_grad()
def test_merged_model_loads_in_transformers_and_gives_the_arms_logits(
    done: Path, tmp_path: Path
) -> None:
    arm_id = arm_of(done, "lora")
    _, tokens, to = paretune.export(done, f"{arm_id}@384", tmp_path / "m", merged=True)
    assert tokens == 6 * 64
    model = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
    ours = arm_logits(done, arm_id, tokens)
    assert_same(model(ids()).logits, ours)
    tokenizer = AutoTokenizer.from_pretrained(to)
    assert tokenizer.decode(tokenizer("def main():")["input_ids"]) == "def main():"
    base = Path(location(Ledger.open(done).study().config.base))
    settings = "generation_config.json"
    assert (to / settings).read_bytes() == (base / settings).read_bytes()


@torch.no_grad()
def test_full_arm_is_a_model_that_scores_as_recorded(done: Path, tmp_path: Path) -> None:
    """Its bits per byte, computed here from transformers' own loss, equal the ledger's."""
    arm_id = arm_of(done, "full")
    _, tokens, to = paretune.export(done, arm_id, tmp_path / "full")
    model = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
    probe = [json.loads(line) for line in (done / "base" / "probe.jsonl").open()]
    bits = bytes_ = 0.0
    for row in probe:
        sample = torch.tensor([row["tokens"]])
        bits += (
            float(model(sample, labels=sample).loss) * (sample.shape[1] - 1) / 0.6931471805599453
        )
        bytes_ += row["n_bytes"]
    rows = Ledger.open(done).scores(arm_id)
    (recorded,) = [
        r["value"]
        for r in rows
        if r["tokens"] == tokens and r["metric"] == "self_probe/bits_per_byte"
    ]
    assert bits / bytes_ == pytest.approx(recorded, rel=1e-5)


def test_an_adapter_that_peft_would_change_is_not_written(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which those are is tested on real models in tests/train/test_families.py."""
    arm_id, to = arm_of(done, "lora"), tmp_path / "adapter"
    reason = "it would not adapt up_proj and 3 more"
    monkeypatch.setattr("paretune.runner.export.peft_differs", lambda *given: reason)
    with pytest.raises(UserError, match=f"{reason}.*--merge"):
        paretune.export(done, arm_id, to)
    assert not to.exists()
    assert paretune.export(done, arm_id, to, merged=True)[2] == to


def test_mistakes_are_explained(done: Path, tmp_path: Path) -> None:
    arm_id = arm_of(done, "lora")
    with pytest.raises(UserError, match=r"no such arm 'nonsense'.*there is full-lr0.001"):
        paretune.export(done, "nonsense", tmp_path / "a")
    with pytest.raises(UserError, match="no checkpoint at that budget; there is 384, 768"):
        paretune.export(done, f"{arm_id}@9M", tmp_path / "a")
    with pytest.raises(UserError, match="is not a quantity"):
        paretune.export(done, f"{arm_id}@lots", tmp_path / "a")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        paretune.export(done, arm_id, tmp_path / "used")
    with pytest.raises(UserError, match="no study here"):
        paretune.export(tmp_path, arm_id, tmp_path / "a")
    damaged = tmp_path / "copy"
    shutil.copytree(done, damaged)
    path = damaged / "arms" / arm_id / "checkpoints" / "768" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        paretune.export(damaged, arm_id, tmp_path / "a")
