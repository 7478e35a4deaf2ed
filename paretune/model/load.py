"""Loading a base: any Hugging Face causal LM, from a folder, the hub, or the package itself."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from transformers.utils.logging import disable_progress_bar

from paretune.data.network import UNREACHED, answered_at_once
from paretune.errors import UserError, first_line, short_of_memory
from paretune.model import base_folder
from paretune.model.attention_dropout import check_attention_dropout
from paretune.study.config import Base


def location(base: Base) -> str:
    """Where a base is read from: a folder, or its name on the hub."""
    if base.name == "pocket":
        return str(resources.files("paretune.pocket") / "base")
    folder = Path(base.name).expanduser()
    return str(folder) if folder.exists() else base.name


def load_tokenizer(base: Base) -> Any:
    """The base's tokenizer.

    Raises:
        UserError: there is none, or it has no end-of-text token.
    """
    tokenizer = _load(AutoTokenizer, base)
    if tokenizer.eos_token_id is None:
        raise UserError(f"base: the tokenizer of {base.name} has no end-of-text token (eos_token)")
    if not tokenizer.is_fast:
        raise UserError(
            f"base: the tokenizer of {base.name} is a slow one; give a base with a fast one"
        )
    return tokenizer


def load_config(base: Base) -> Any:
    """The base's configuration, without its weights."""
    return _load(AutoConfig, base)


def end_of_text(base: Base) -> frozenset[int]:
    """Tokens with which the base ends what it writes, where its folder says so."""
    try:
        settings: Any = GenerationConfig.from_pretrained(location(base), revision=base.revision)
    except OSError:
        settings = load_config(base)
    ends = settings.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def generation_file(base: Base) -> Path | None:
    """The base's generation_config.json: how it ends and draws what it writes; None without one."""
    try:
        found = cached_file(location(base), GENERATION_CONFIG_NAME, revision=base.revision)
    except OSError:
        return None
    return None if found is None else Path(found)


def load_shape(base: Base) -> torch.nn.Module:
    """The base on the meta device: every layer's shape, no memory.

    Raises:
        UserError: its configuration makes no causal LM.
    """
    config = load_config(base)
    try:
        with torch.device("meta"):
            model: torch.nn.Module = AutoModelForCausalLM.from_config(
                config, trust_remote_code=base.trust_remote_code
            )
    except Exception as error:  # transformers, and all that it calls, raise what they like
        if _of_the_machine(error):
            raise
        reason = f"its configuration makes no model: {_said(error)}"
        if "Unrecognized configuration class" in reason:
            reason = f"its kind, {config.model_type}, is no causal LM"
        raise _unloadable(base, reason) from error
    return model


def load_model(
    base: Base,
    device: torch.device,
    *,
    attention_dropout: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.nn.Module:
    """The base on ``device``, in evaluation mode, without gradients.

    Raises:
        UserError: it cannot be loaded, or has no attention dropout to set.
    """
    settings: dict[str, Any] = {}
    if attention_dropout:
        check_attention_dropout(load_shape(base), base.name)
        settings["attention_dropout"] = attention_dropout
    model: torch.nn.Module = _load(
        AutoModelForCausalLM, base, dtype=dtype, use_safetensors=True, **settings
    )
    model.requires_grad_(False)
    return model.to(device).eval()


def _load(loader: Any, base: Base, **settings: Any) -> Any:
    disable_progress_bar()
    place, unreached = location(base), False
    try:
        with nullcontext(False) if Path(place).exists() else answered_at_once() as unreached:
            return loader.from_pretrained(
                place,
                revision=base.revision,
                trust_remote_code=base.trust_remote_code,
                **settings,
            )
    except Exception as error:  # transformers, and all that it calls, raise what they like
        if _of_the_machine(error):
            raise
        known = base_folder.reason(
            Path(place),
            tokenizer=loader is AutoTokenizer,
            trust_remote_code=base.trust_remote_code,
        )
        known = known or (UNREACHED if unreached else _said(error))
        raise _unloadable(base, known) from error


def check_weights(base: Base) -> None:
    """Look at a local base's weights without reading them.

    Raises:
        UserError: there are none, or a file is cut short.
    """
    folder = Path(location(base))
    if folder.is_dir() and (lacking := base_folder.without_weights(folder)):
        raise _unloadable(base, lacking)


def _of_the_machine(error: Exception) -> bool:
    """Whether it is memory or a disk that failed, not the base (``runner.faults`` says which)."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM)
    return short_of_memory(error) or (
        isinstance(error, RuntimeError) and "memory" in str(error).lower()
    )


def _said(error: Exception) -> str:
    """What is wrong, in one line; the checks of a configuration tell the field and then why."""
    if isinstance(error, StrictDataclassError):
        return " ".join(str(error).split())
    return first_line(error)


def _unloadable(base: Base, reason: str) -> UserError:
    return UserError(
        f"base: {base.name} cannot be loaded ({reason}); give a folder with a Hugging Face causal "
        "LM in safetensors format, a name on the hub, or pocket"
    )
