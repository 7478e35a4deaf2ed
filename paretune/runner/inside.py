"""A study's folder holds everything of a study, and nothing in it leads out of it.

Ledgers are handed around. A symbolic link in one could make ``paretune run`` write, or
``paretune report`` read, somewhere else; so a folder with such a link is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

from paretune.errors import UserError


def refuse_links_out(folder: Path) -> None:
    """Look at every entry below ``folder``, which may be a link itself.

    Raises:
        UserError: one is a symbolic link to somewhere outside; the message names it.
    """
    top = folder.resolve()
    waiting = [top]
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone meanwhile: other processes work in the folder too
        for entry in entries:
            if entry.is_symlink():
                _refuse(Path(entry.path), top)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))


def _refuse(link: Path, top: Path) -> None:
    try:
        target = link.resolve()
        inside = target.is_relative_to(top)
    except (OSError, RuntimeError):  # a loop
        target, inside = Path(os.readlink(link)), False
    if not inside:
        raise UserError(
            f"{link}: a symbolic link that leads out of the study's folder (to {target}); put the "
            "files themselves in its place"
        )
