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
from paretune.files import make_folder, write_bytes, write_json, write_with
from paretune.model.layers import weight_of
from paretune.model.load import (
    generation_file,
    load_config,
    load_model,
    load_shape,
    load_tokenizer,
)
from paretune.model.quantised import round_matrices
from paretune.study.arms import ArmConfig
from paretune.study.config import Base

ADAPTER = "adapter_model.safetensors"
MODEL = "model.safetensors"
_PREFIX = "base_model.model."  # of PEFT's names


def save_adapter(
    folder: Path,
    arm: ArmConfig,
    tensors: Mapping[str, torch.Tensor],
    base: Base,
    *,
    transposed: bool,
) -> None:
    """Write one arm as a PEFT LoRA adapter (float32) of the base as it was.

    A PiSSA arm trains against the base less its leading part, gamma A0 B0. Its change of the
    original base, gamma (A B - A0 B0), is an adapter of twice the rank: [A, A0] and [B; -B0],
    which is also how PEFT converts such arms.

    Args:
        tensors: ``<layer>.A`` [d_in, r] and ``<layer>.B`` [r, d_out]; ``<layer>.A0`` and ``.B0``
            of PiSSA, ``<layer>.magnitude`` [d_out] of DoRA, and ``<module>.bias``.
        transposed: the base stores its matrices as [d_in, d_out], as GPT-2 does.
    """
    layers = sorted({name.rpartition(".")[0] for name in tensors if name.endswith(".A")})
    state: dict[str, torch.Tensor] = {}
    for layer in layers:
        A, B = tensors[f"{layer}.A"], tensors[f"{layer}.B"]
        if f"{layer}.A0" in tensors:
            A = torch.cat([A, tensors[f"{layer}.A0"]], dim=1)
            B = torch.cat([B, -tensors[f"{layer}.B0"]], dim=0)
        state[f"{_PREFIX}{layer}.lora_A.weight"] = A.T
        state[f"{_PREFIX}{layer}.lora_B.weight"] = B.T
        if f"{layer}.magnitude" in tensors:
            state[f"{_PREFIX}{layer}.lora_magnitude_vector"] = tensors[f"{layer}.magnitude"]
    for name, value in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "bias":
            inner = "base_layer.bias" if module in layers else "bias"
            state[f"{_PREFIX}{module}.{inner}"] = value
    assert arm.rank is not None
    assert arm.alpha is not None
    rank, alpha, rslora = arm.rank, arm.alpha, arm.scaling == "rslora"
    if arm.init == "pissa":
        rank, alpha = 2 * rank, alpha * (2**0.5 if rslora else 2)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base.name == "pocket" else base.name,
        "revision": base.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": arm.lora_dropout,
        "use_rslora": rslora,
        "use_dora": bool(arm.dora),
        "bias": arm.bias or "none",
        "fan_in_fan_out": transposed,
        "target_modules": layers,
    }
    content = {name: value.detach().contiguous().cpu() for name, value in state.items()}
    make_folder(folder)
    write_with(folder / ADAPTER, lambda path: save_file(content, path, {"format": "pt"}))
    write_json(folder / "adapter_config.json", config)


def peft_differs(folder: Path, base: Base) -> str | None:
    """Why PEFT would not apply an adapter as it was trained, or None.

    PEFT refuses some layers of state-space models. For some models with experts it takes the names
    of ordinary layers (``gate_proj``, ...) for those of the experts, which other versions of
    transformers stored one by one, and rewrites an adapter's configuration.
    """
    import peft

    config: Any = peft.LoraConfig.from_pretrained(str(folder))
    asked = set(config.target_modules)
    with torch.device("meta"):
        try:
            model = peft.get_peft_model(load_shape(base), config)
        except ValueError as error:
            return str(error).splitlines()[0]
    found = {
        name.removeprefix(_PREFIX)
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    missed = sorted(asked - found)
    return f"it would not adapt {missed[0]} and {len(missed) - 1} more" if missed else None


def save_full(folder: Path, tensors: Mapping[str, torch.Tensor], base: Base) -> None:
    """Write one arm as a Hugging Face model folder (float32), without a tokenizer.

    Args:
        tensors: its parameters. What the base's folder holds beside these is added from there:
            other values, and how it ends and draws what it writes.
    """
    whole = {**_buffers(base), **tensors}
    state = {name: value.detach().cpu().contiguous() for name, value in whole.items()}
    make_folder(folder)
    config = load_config(base)
    config.dtype = torch.float32
    write_json(folder / "config.json", _without_paths(json.loads(config.to_json_string())))
    write_with(folder / MODEL, lambda path: save_file(state, path, {"format": "pt"}))
    generation = generation_file(base)
    if generation is not None:
        write_bytes(folder / generation.name, generation.read_bytes())


def _buffers(base: Base) -> dict[str, torch.Tensor]:
    """Values of a base that are no parameters and are stored all the same.

    Such as the corrections by which some routers choose among experts; most models have none.
    """
    shape = load_shape(base)
    parameters = dict(shape.named_parameters(remove_duplicate=False))
    names = shape.state_dict().keys() - parameters.keys()
    if not names:
        return {}
    stored = load_model(base, torch.device("cpu")).state_dict()
    return {name: stored[name] for name in sorted(names)}


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
    """Write an adapter checkpoint and its base as one Hugging Face model in float32."""
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    tensors = load_tensors(checkpoint)
    model: Any = load_model(base, torch.device("cpu"))
    if base.quantise is not None:
        round_matrices(model, base.quantise)
    with torch.no_grad():
        for name in config["target_modules"]:
            module = model.get_submodule(name)
            own = {
                part: tensors[f"{_PREFIX}{name}.{part}"]
                for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
                if f"{_PREFIX}{name}.{part}" in tensors
            }
            tuned_OD = tuned_weight(weight_of(module), own, config)
            module.weight.copy_(tuned_OD.T if config["fan_in_fan_out"] else tuned_OD)
        for key, value in tensors.items():
            name = key.removeprefix(_PREFIX).replace(".base_layer.bias", ".bias")
            if name.endswith(".bias"):
                model.get_parameter(name).copy_(value)
    save_full(to, dict(model.named_parameters()), base)
    save_tokenizer(to, base)


def tuned_weight(
    weight_OD: torch.Tensor, adapter: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> torch.Tensor:
    """W0 + gamma B A of one layer, [d_out, d_in]; under DoRA its rows are brought to length m.

    Args:
        weight_OD: W0.
        adapter: PEFT's tensors of the layer: ``lora_A.weight`` [r, d_in], ``lora_B.weight``
            [d_out, r], and with DoRA ``lora_magnitude_vector`` [d_out].
        config: PEFT's adapter_config.json.
    """
    rank = config["r"]
    gamma = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    tuned_OD: torch.Tensor = weight_OD + gamma * (
        adapter["lora_B.weight"] @ adapter["lora_A.weight"]
    )
    if not config.get("use_dora"):
        return tuned_OD
    scale_O = adapter["lora_magnitude_vector"] / torch.linalg.vector_norm(tuned_OD, dim=1)
    return torch.mul(tuned_OD, scale_O[:, None])


def save_tokenizer(to: Path, base: Base) -> None:
    """Put the base's tokenizer beside an exported model."""
    load_tokenizer(base).save_pretrained(to)


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "_name_or_path"}
