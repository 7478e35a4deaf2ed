"""Arms as others read them: a PEFT adapter, or a Hugging Face model with the update merged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from paretune.errors import UserError
from paretune.files import write_json, write_with
from paretune.model.load import load_config, load_model, load_tokenizer
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

ADAPTER = "adapter_model.safetensors"
MODEL = "model.safetensors"


def save_adapter(
    folder: Path,
    arm: ArmConfig,
    tensors: Mapping[str, torch.Tensor],
    base: Base,
    *,
    transposed: bool,
) -> None:
    """Write one arm as a PEFT LoRA adapter (float32).

    Args:
        tensors: ``<layer>.A`` [d_in, r] and ``<layer>.B`` [r, d_out].
        transposed: the base stores its matrices as [d_in, d_out], as GPT-2 does.
    """
    state: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        state[f"base_model.model.{layer}.lora_{part}.weight"] = value.detach().T.contiguous().cpu()
    names = sorted({name.rpartition(".")[0] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base.name == "pocket" else base.name,
        "revision": base.revision,
        "inference_mode": True,
        "r": arm.rank,
        "lora_alpha": arm.alpha,
        "lora_dropout": arm.lora_dropout,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": names,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_with(folder / ADAPTER, lambda path: save_file(state, path, {"format": "pt"}))
    write_json(folder / "adapter_config.json", config)


def save_full(folder: Path, tensors: Mapping[str, torch.Tensor], base: Base) -> None:
    """Write one arm as a Hugging Face model folder (float32), tokenizer included."""
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(base)
    config.dtype = torch.float32
    write_json(folder / "config.json", _without_paths(json.loads(config.to_json_string())))
    write_with(folder / MODEL, lambda path: save_file(state, path, {"format": "pt"}))


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, on the CPU: an adapter's or a full model's.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / ADAPTER
    if not path.exists():
        path = folder / MODEL
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable checkpoint ({error})") from error


def merge(checkpoint: Path, base: Base, to: Path) -> None:
    """Write W0 + gamma (A B)^T for an adapter checkpoint as a Hugging Face model in float32."""
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    gamma = config["lora_alpha"] / config["r"]
    tensors = load_tensors(checkpoint)
    model: Any = load_model(base, torch.device("cpu"))
    transposed = config["fan_in_fan_out"]
    with torch.no_grad():
        for name in config["target_modules"]:
            A_rD = tensors[f"base_model.model.{name}.lora_A.weight"]
            B_Or = tensors[f"base_model.model.{name}.lora_B.weight"]
            delta_OD = gamma * (B_Or @ A_rD)
            model.get_submodule(name).weight += delta_OD.T if transposed else delta_OD
    save_full(to, dict(model.named_parameters()), base)
    save_tokenizer(to, base)


def save_tokenizer(to: Path, base: Base) -> None:
    """Put the base's tokenizer beside an exported model."""
    load_tokenizer(base).save_pretrained(to)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "_name_or_path"}
