"""Damaged and unfit models, each with its one message; docs/mistakes.md shows this table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from paretune.errors import UserError
from paretune.runner.spectrum import model_spectra

Q = "model.layers.1.self_attn.q_proj.weight"
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Damage:
    """One thing wrong with a tuned model, and what is said about it."""

    name: str
    do: Callable[[Path], None]
    message: str


def edit(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    """A change of the tensors of the shard that holds ``Q``."""

    def do(folder: Path) -> None:
        shard = json.loads((folder / INDEX).read_text())["weight_map"][Q]
        tensors = load_file(folder / shard)
        change(tensors)
        save_file(tensors, folder / shard, {"format": "pt"})

    return do


def set_value(value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q][3, 4] = value

    return edit(change)


def tear(folder: Path) -> None:
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][Q]
    shard.write_bytes(shard.read_bytes()[:-100])


def scribble(folder: Path) -> None:
    (folder / json.loads((folder / INDEX).read_text())["weight_map"][Q]).write_text("not found")


def lose(folder: Path) -> None:
    (folder / json.loads((folder / INDEX).read_text())["weight_map"][Q]).unlink()


def remove(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[Q]


def remove_from_index(folder: Path) -> None:
    edit(remove)(folder)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][Q]
    (folder / INDEX).write_text(json.dumps(index))


def quantise(folder: Path) -> None:
    edit(lambda tensors: tensors.update({Q: tensors[Q].to(torch.int8)}))(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (folder / "config.json").write_text(json.dumps(config))


def other_vocabulary(folder: Path) -> None:
    save(folder, vocab_size=104)


def other_width(folder: Path) -> None:
    save(folder, hidden_size=48)


def fewer_layers(folder: Path) -> None:
    save(folder, num_hidden_layers=1)


def no_safetensors(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")


DAMAGES = (
    Damage(
        "a tensor is missing, and the index does not know it",
        remove_from_index,
        f"the tensor {Q} is missing; is it a finetune of",
    ),
    Damage(
        "a shard lacks a tensor",
        edit(remove),
        f"the tensor {Q} is missing, though {INDEX} says that it is there",
    ),
    Damage("a shard is missing", lose, "this shard is missing, so"),
    Damage(
        "a shard holds something else", scribble, "this shard is torn or is no safetensors file"
    ),
    Damage("a shard's end is torn off", tear, "lies beyond its end; download or save it again"),
    Damage("NaN in a weight", set_value(float("nan")), f"{Q} holds values that are not finite"),
    Damage("an infinite weight", set_value(float("inf")), f"{Q} holds values that are not finite"),
    Damage(
        "a matrix of another shape",
        edit(lambda tensors: tensors.update({Q: tensors[Q][:, :16].contiguous()})),
        f"{Q} has the shape 32 x 16, in the base it is 32 x 32",
    ),
    Damage(
        "another width",
        other_width,
        "model.layers.0.mlp.down_proj.weight has the shape 48 x 48, in the base it is 32 x 48",
    ),
    Damage("fewer layers", fewer_layers, "the tensor model.layers.1."),
    Damage(
        "another vocabulary",
        other_vocabulary,
        "model.embed_tokens.weight has 104 rows, in the base it has 96: another vocabulary",
    ),
    Damage(
        "a quantised model",
        quantise,
        f"a quantised model (bitsandbytes); its tensors, for example {Q}",
    ),
    Damage(
        "one matrix stored as codes",
        edit(lambda tensors: tensors.update({Q: tensors[Q].to(torch.int8)})),
        f"{Q} is stored as I8, a quantised type",
    ),
    Damage("no safetensors", no_safetensors, "no weights here; give a folder with *.safetensors"),
)


def save(folder: Path, **settings: int) -> None:
    """A sharded tiny Llama in place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    config = {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**{**config, **settings})).save_pretrained(
        folder, max_shard_size="20KB"
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_named_in_one_message(damage: Damage, base: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(base, tuned)
    damage.do(tuned)
    with pytest.raises(UserError) as caught:
        model_spectra(str(base), [str(tuned)], tmp_path / "out", device="cpu")
    assert damage.message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert str(tuned) in str(caught.value)


def test_a_damaged_base_is_named_too(base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    set_value(float("nan"))(broken)
    with pytest.raises(UserError, match=r"q_proj\.weight holds values that are not finite"):
        model_spectra(str(broken), [str(base)], tmp_path / "out", device="cpu")


def test_added_tokens_can_be_allowed(base: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    other_vocabulary(tuned)
    table = model_spectra(
        str(base), [str(tuned)], tmp_path / "out", device="cpu", any_vocabulary=True
    )
    assert len(table) == 14
