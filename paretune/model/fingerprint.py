"""What a base is, so that a study notices when it is another one than it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paretune.files import sha256
from paretune.model.load import load_config, location
from paretune.study.config import Base

# Of a folder: what decides logits and tokens
_PATTERNS = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")


def fingerprint(base: Base, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """A folder's files with size and SHA-256, or the commit of a base on the hub.

    Args:
        known: an earlier fingerprint; files of the same size and time of change are not read again.
    """
    folder = Path(location(base))
    if not folder.is_dir():
        return {"commit": getattr(load_config(base), "_commit_hash", None)}
    return {"files": file_facts(_files(folder), known=(known or {}).get("files"))}


def changes_of(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How two fingerprints differ, one sentence a file."""
    if before.get("commit") != now.get("commit"):
        return [f"commit {before.get('commit')} is {now.get('commit')} now"]
    return differences(before.get("files", {}), now.get("files", {}))


def file_facts(
    files: dict[str, Path], *, known: dict[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Size, time of change (nanoseconds) and SHA-256 of files by name.

    Args:
        known: earlier facts; a file of the same size and time is not read again.
    """
    facts = {}
    for name, path in files.items():
        stat = path.stat()
        fact = {"bytes": stat.st_size, "changed": stat.st_mtime_ns}
        before = (known or {}).get(name) or {}
        if all(before.get(key) == value for key, value in fact.items()):
            facts[name] = before
        else:
            facts[name] = {**fact, "sha256": sha256(path)}
    return facts


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How two sets of :func:`file_facts` differ in content, one sentence a file."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            found.append(f"{name} is {'new' if old is None else 'gone'}")
        elif old["sha256"] != new["sha256"]:
            found.append(
                f"{name} had {old['bytes']:,} bytes (sha256 {old['sha256'][:12]}) "
                f"and has {new['bytes']:,} now (sha256 {new['sha256'][:12]})"
            )
    return found


def _files(folder: Path) -> dict[str, Path]:
    found = {path.name: path for pattern in _PATTERNS for path in folder.glob(pattern)}
    return {name: found[name] for name in sorted(found)}
