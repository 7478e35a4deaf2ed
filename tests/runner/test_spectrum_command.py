"""Spectra of models as they lie on disk: shards, prefixes, adapters, studies, interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from runner_helpers import small_study
from transformers import AutoModelForCausalLM

from paretune import UserError
from paretune.runner import spectrum as command
from paretune.runner.claims import claims
from paretune.runner.ledger import Ledger
from paretune.runner.run import run
from paretune.runner.spectrum import model_spectra, study_spectra, summary
from paretune.spectrum.measuring import Found, Options
from paretune.spectrum.store import LOG, Store
from paretune.study.config import Base

BOTH = pytest.mark.parametrize("fixture", ["tiny_base", "tiny_gpt2"])


def tuned_copy(base: str, folder: Path, **saving: Any) -> Any:
    """A finetune in every weight, saved; returns the model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, **saving)
    return model


def matrices(model: Any) -> dict[str, np.ndarray]:
    """Every linear layer's matrix as the model applies it, [d_out, d_in], by its path."""
    found = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear" and name != "lm_head":
            found[name] = module.weight.detach().double().numpy()
        elif type(module).__name__ == "Conv1D":
            found[name] = module.weight.detach().double().numpy().T
    return found


@BOTH
def test_every_matrix_against_numpy(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Shards, tied weights, and GPT-2's transposed and fused matrices."""
    base = request.getfixturevalue(fixture).name
    tuned = tuned_copy(base, tmp_path / "tuned", max_shard_size="20KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 1
    table = model_spectra(
        base, [str(tmp_path / "tuned")], tmp_path / "out",
        options=Options(vectors=True), device="cpu",
    )  # fmt: skip
    old, new = matrices(AutoModelForCausalLM.from_pretrained(base)), matrices(tuned)
    assert set(table["matrix"]) == {f"{name}.weight" for name in old}
    for row in table.to_dict("records"):
        name = row["matrix"].removesuffix(".weight")
        W0, W = old[name], new[name]
        assert (row["d_out"], row["d_in"]) == W0.shape
        values = np.linalg.svd(W - W0, compute_uv=False)
        squares = np.cumsum(values**2) / (values**2).sum()
        assert row["rank90"] == np.argmax(squares >= 0.9) + 1
        assert row["frobenius_relative"] == pytest.approx(
            np.linalg.norm(W - W0) / np.linalg.norm(W0), rel=1e-6
        )
        assert row["spectral"] == pytest.approx(values[0], rel=1e-6)
        U0 = np.linalg.svd(W0, full_matrices=False)[0]
        U = np.linalg.svd(W, full_matrices=False)[0]
        cosines = np.abs(U0.T @ U[:, :10]).max(axis=0)
        assert row["intruders"] == (cosines < 0.5).sum()
    kinds = dict(zip(table["module"], table["kind"], strict=True))
    expected = (
        {"q_proj": "attention", "down_proj": "mlp"}
        if fixture == "tiny_base"
        else {"c_attn": "attention", "c_fc": "mlp"}
    )
    assert expected.items() <= kinds.items()


@BOTH
def test_an_adapter_equals_its_merged_model(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """PEFT makes, saves and merges the adapter; both routes say the same of the update."""
    base = request.getfixturevalue(fixture).name
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "down_proj"] if fixture == "tiny_base" else ["c_attn", "c_fc"]
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False,
        use_rslora=True, alpha_pattern={targets[0]: 9}, fan_in_fan_out=fixture == "tiny_gpt2",
    )  # fmt: skip
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().double().save_pretrained(tmp_path / "merged")
    names = [str(tmp_path / "adapter"), str(tmp_path / "merged")]
    table = model_spectra(base, names, tmp_path / "out", device="cpu")
    adapter, merged = (
        table[table["model"] == name].set_index("matrix").sort_index() for name in names
    )
    trained = adapter["module"].isin(targets)
    assert trained.sum() == 4
    assert adapter.loc[~trained, "rank90"].isna().all()
    assert (adapter.loc[trained, "above_noise"] == 4).all()
    for column in ("rank90", "tuned_rank90"):
        assert (adapter.loc[trained, column] == merged.loc[trained, column]).all()
    for column in ("frobenius", "spectral", "effective_rank", "spectrum_mad"):
        ours, theirs = (frame.loc[trained, column].to_numpy(float) for frame in (adapter, merged))
        assert ours == pytest.approx(theirs, rel=1e-4)
    alone = model_spectra(
        base, names[:1], tmp_path / "alone", options=Options(delta_only=True), device="cpu"
    ).set_index("matrix")
    assert alone["rank90"].equals(adapter.loc[alone.index, "rank90"])
    assert alone["frobenius_relative"].isna().all()


@BOTH
def test_a_dora_adapter_equals_its_merged_model(
    fixture: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its update is not of low rank: it is measured as the merged model's is."""
    base = request.getfixturevalue(fixture).name
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = ["q_proj", "down_proj"] if fixture == "tiny_base" else ["c_attn", "c_fc"]
    config = peft.LoraConfig(
        r=4, target_modules=targets, init_lora_weights=False, use_dora=True,
        fan_in_fan_out=fixture == "tiny_gpt2",
    )  # fmt: skip
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    names = [str(tmp_path / "adapter"), str(tmp_path / "merged")]
    for options in (Options(), Options(delta_only=True)):
        folder = tmp_path / f"out{options.delta_only}"
        table = model_spectra(base, names, folder, options=options, device="cpu")
        adapter, merged = (
            table[table["model"] == name].set_index("matrix").sort_index() for name in names
        )
        trained = adapter["module"].isin(targets)
        assert (adapter.loc[trained, "effective_rank"] > 4).all()  # more than its factors have
        for column in ("frobenius", "spectral", "effective_rank"):
            ours, theirs = (f.loc[trained, column].to_numpy(float) for f in (adapter, merged))
            assert ours == pytest.approx(theirs, rel=1e-4)


def test_names_with_a_prefix_are_matched(tiny_base: Base, tmp_path: Path) -> None:
    """A bare model, saved without its head, has no ``model.`` before its names."""
    model = tuned_copy(tiny_base.name, tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "bare")
    names = [str(tmp_path / "whole"), str(tmp_path / "bare")]
    table = model_spectra(tiny_base.name, names, tmp_path / "out", device="cpu")
    whole, bare = (
        table[table["model"] == name].drop(columns="model").reset_index(drop=True) for name in names
    )
    pd.testing.assert_frame_equal(whole, bare)


def test_an_interrupted_run_goes_on(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were measured are not measured again, and the table is that of one run."""
    tuned_copy(tiny_base.name, tmp_path / "tuned")
    arguments = (tiny_base.name, [str(tmp_path / "tuned")])
    whole = model_spectra(*arguments, tmp_path / "whole", device="cpu")
    measured: list[str] = []
    real = command.spectra

    def interrupted(*args: Any, **settings: Any) -> Iterator[Found]:
        for found in real(*args, **settings):
            if len(measured) == 5:
                raise KeyboardInterrupt
            measured.append(found.row["matrix"])
            yield found

    monkeypatch.setattr(command, "spectra", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model_spectra(*arguments, tmp_path / "out", device="cpu")
    first = list(measured)
    log = tmp_path / "out" / LOG
    log.write_bytes(log.read_bytes()[:-20])  # a crash may cut the last line off
    measured.clear()
    measured += ["", "", "", "", "", ""]  # not interrupted again
    again = model_spectra(*arguments, tmp_path / "out", device="cpu")
    assert len(first) == 5
    assert set(first[:4]).isdisjoint(measured)
    pd.testing.assert_frame_equal(again, whole)
    measured[6:] = []
    model_spectra(*arguments, tmp_path / "out", device="cpu")
    assert not measured[6:]
    values = Store(tmp_path / "out", "model").values()
    assert len(values) == 3 * len(whole)


def test_workers_do_not_change_the_result(tiny_base: Base, tmp_path: Path) -> None:
    from paretune.runner.tuned import base_of, tuned_of
    from paretune.spectrum.compute import spectra

    tuned_copy(tiny_base.name, tmp_path / "tuned")
    weights, found = base_of(tiny_base.name)
    models = [tuned_of(str(tmp_path / "tuned"), weights, found)]
    rows = [
        {
            one.row["matrix"]: one.row
            for one in spectra(
                weights, found, models, Options(vectors=True), [torch.device("cpu")], workers=n
            )
        }
        for n in (1, 3)
    ]
    assert rows[0] == rows[1]


ARMS = """
  - {method: full, learning_rate: 1e-3}
  - {method: lora, rank: 4, learning_rate: 5e-3}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spectra")
    run(small_study(folder, arms=ARMS, at="4ba, 8ba"), folder / "out", report=False)
    return folder / "out"


def test_every_checkpoint_of_a_study(study: Path) -> None:
    """Into the ledger, in the columns that the claims read; LoRA stays within its rank."""
    table = study_spectra(study, device="cpu")
    ledger = Ledger.open(study)
    assert set(table["arm"]) == set(ledger.arms())
    assert table.groupby(["arm", "tokens"]).size().tolist() == [28] * 4
    assert (study / "arms" / table["arm"][0] / "spectrum.parquet").exists()
    lora = table[table["arm"].str.startswith("lora")]
    assert lora["rank90"].max() <= 4
    assert (lora["rank90_relative"] < 0.1).all()
    assert "of noise" in summary(table)
    found = {verdict.claim: verdict for verdict in claims(study)}
    for name in ("update-rank-grows", "update-rank-larger-in-mlp"):
        assert found[name].effect is not None
        assert found[name].n == 4  # layers


def test_an_arm_of_a_study_as_tuned(study: Path, tmp_path: Path) -> None:
    arm = next(arm for arm in Ledger.open(study).arms() if arm.startswith("full"))
    table = model_spectra("pocket", [f"{study}:{arm}@256"], tmp_path / "out", device="cpu")
    inside = study_spectra(study, [f"{arm}"], device="cpu")
    first = inside[inside["tokens"] == inside["tokens"].min()].reset_index(drop=True)
    assert table["rank90"].tolist() == first["rank90"].tolist()


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ("./nowhere", "./nowhere: no such folder"),
        ("{study}:none", "no such arm 'none'"),
    ],
)
def test_wrong_names(tuned: str, message: str, study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        model_spectra("pocket", [tuned.format(study=study)], tmp_path, device="cpu")
    assert message in str(caught.value)
