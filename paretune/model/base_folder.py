"""A base's folder before it is loaded: what it lacks, and what would run code."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
UNREADABLE = "reading that folder is not allowed"
TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


def without_weights(folder: Path) -> str | None:
    """Why a folder's weights cannot be loaded, as far as their headers say; None if they can."""
    if not os.access(folder, os.R_OK | os.X_OK):
        return UNREADABLE
    if pickle := _pickle(folder):
        return pickle
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return "no weights are in it: a file such as model.safetensors"
    for path in files:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{path.name} is cut short or damaged ({error})"
    return None


def reason(folder: Path, *, tokenizer: bool, trust_remote_code: bool) -> str | None:
    """Why a base that transformers refused is not loaded, where its folder shows that.

    Args:
        tokenizer: it was the tokenizer that was refused.
    """
    if folder.is_file():
        return "it is a file"
    if not folder.is_dir():
        return None
    if not os.access(folder, os.R_OK | os.X_OK):
        return UNREADABLE
    if tokenizer and not any(any(folder.glob(kind)) for kind in TOKENIZERS):
        return "no tokenizer is in it: a file such as tokenizer.json"
    if pickle := _pickle(folder):
        return pickle
    config = folder / "config.json"
    if not trust_remote_code and config.is_file() and '"auto_map"' in config.read_text():
        return (
            "it brings Python code of its own, which is not run unless the study says so; "
            "read that code, then set base: {name: .., trust_remote_code: true}"
        )
    return None


def _pickle(folder: Path) -> str | None:
    pickles = [path.name for kind in PICKLES for path in sorted(folder.glob(kind))]
    if not pickles or any(folder.glob("*.safetensors")):
        return None
    return (
        f"{pickles[0]} is a pickle, which can run any code when it is read, and is not read; "
        "where you trust it, load it elsewhere and save it with save_pretrained"
    )
