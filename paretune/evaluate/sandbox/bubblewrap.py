"""A second set of walls around the first: bubblewrap, where it is installed.

The warden and all it starts run inside a container that bubblewrap (https://github.com/containers/
bubblewrap, the sandbox of Flatpak) makes, and build the walls of ``namespaces`` within it. An error
in either is covered by the other.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import paretune
from paretune.errors import UserError


def command(settings: dict[str, Any]) -> list[str]:
    """What to put before a warden's own command.

    Raises:
        UserError: it is not installed, or Paretune was started by root.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise UserError("bwrap is not installed")
    if os.geteuid() == 0:
        # To bubblewrap, root inside is root outside; `namespaces` becomes another user first
        raise UserError("started by root; it is for ordinary users")
    package = str(Path(paretune.__file__).parent)
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--tmpfs", "/tmp"]
    for path in [*settings["visible"], package, os.path.realpath(sys.executable)]:
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind", path, path]
    return [found, *options, "--proc", "/proc", "--dev", "/dev", "--chdir", "/", "--"]
