"""Secrets are neither kept nor shown: not in a study file, not in a ledger, not in a report.

A study's folder is handed around, and so is its page. What looks like a credential is refused in
a study file, where the reader can be told what to do instead, and blotted out everywhere else: in
commands, in reasons for failures, in whatever a library put into an error message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from paretune.study.mistakes import Mistake, Path

BLOT = "***"
_WHERE = r"token|access[_-]token|auth|api[_-]?key|key|password|passwd|secret|sig|signature"
# Each with the part that stays in its first group
_SHAPES = [
    re.compile(r"()\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"()\bsk-[A-Za-z0-9_-]{20,}"),
    re.compile(r"()\bgh[pousr]_[A-Za-z0-9]{20,}"),
    re.compile(r"()\bgithub_pat_[A-Za-z0-9_]{20,}"),
    re.compile(r"()\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"()\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    re.compile(r"()\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"),
    re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://)[^/\s@'\"]+(?=@)"),
    re.compile(rf"([?&](?:X-Amz-)?(?:{_WHERE}|security-token|credential)=)[^&\s'\"#]+", re.I),
    re.compile(r"(\bauthorization:\s*(?:bearer|basic)\s+)\S+", re.I),
    re.compile(rf"(--(?:{_WHERE})[= ])\S+", re.I),
]
_NAMED = re.compile(r"token|secret|passw|api_?key|access_?key|private_?key|credential", re.I)
_SHORTEST = 8  # of a value in the environment: shorter ones would blot out ordinary words


def redacted(text: str) -> str:
    """``text`` with what looks like a credential, or is one of this process's, as ``***``."""
    for value in _of_environment():
        text = text.replace(value, BLOT)
    for shape in _SHAPES:
        text = shape.sub(rf"\g<1>{BLOT}", text)
    return text


def all_redacted(value: Any) -> Any:
    """The same for every text in a value of JSON."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: all_redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [all_redacted(inner) for inner in value]
    return value


def secrets_in(value: Any, path: Path = ()) -> Iterator[Mistake]:
    """Every text of a study file that holds a secret."""
    if isinstance(value, str) and redacted(value) != value:
        reason = (
            "holds what looks like a password or token; a study file is kept with the results and "
            "shown in the report. Remove it, and log in with `hf auth login` or set HF_TOKEN"
        )
        yield Mistake(path, reason)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from secrets_in(inner, (*path, str(key)))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from secrets_in(inner, (*path, index))


def _of_environment() -> list[str]:
    """Values of this process's environment that are secrets by their names, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _NAMED.search(name) and len(value) >= _SHORTEST and not os.path.exists(value)
    }
    return sorted(found, key=len, reverse=True)
