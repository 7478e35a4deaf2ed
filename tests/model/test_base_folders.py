"""Folders that are no base, or lack a part of one: what is missing is named before any training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from paretune.errors import UserError
from paretune.model.load import check_weights, load_tokenizer, location
from paretune.study.config import Base

REMEDY = (
    "; give a folder with a Hugging Face causal LM in safetensors format, a name on the hub, or"
)


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_tokenizer, "no tokenizer is in it: a file such as tokenizer.json"),
        (no_weights, "no weights are in it: a file such as model.safetensors"),
        (cut_short, "model.safetensors is cut short or damaged"),
    ],
)
def test_what_a_folder_lacks_is_named(
    damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(location(Base(name="pocket")), tmp_path / "base"))
    base = Base(name=str(folder))
    _look_at(base)
    damage(folder)
    with pytest.raises(UserError) as caught:
        _look_at(base)
    assert str(caught.value).startswith(f"base: {folder} cannot be loaded ({reason}")
    assert REMEDY in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"cannot be loaded \(reading that folder is not allowed\)"):
        _look_at(Base(name=str(tmp_path)))
    with pytest.raises(UserError, match=r"cannot be loaded \(reading that folder is not allowed\)"):
        check_weights(Base(name=str(tmp_path)))


def _look_at(base: Base) -> None:
    load_tokenizer(base)
    check_weights(base)


def test_a_file_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"model.gguf cannot be loaded \(it is a file\)"):
        load_tokenizer(Base(name=str(tmp_path / "model.gguf")))


def test_without_a_network_the_cache_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the hub's own libraries are as they were afterwards."""
    import socket
    import time

    from huggingface_hub import constants

    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the hub cannot be reached from here, and the cache"):
        load_tokenizer(Base(name="paretune-tests/no-such-model"))
    assert time.monotonic() - started < 10
    assert constants.HF_HUB_OFFLINE is False


def test_behind_a_proxy_names_need_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from huggingface_hub import constants

    from paretune.data.network import answered_at_once

    def asked(*_: object) -> None:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    with answered_at_once() as unreached:
        assert not unreached
        assert constants.HF_HUB_OFFLINE is False
