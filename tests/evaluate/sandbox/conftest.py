"""Sandboxes that the tests of one module share, and a host to attack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_programs import SECRET
from sandbox_hosts import Host, attacked

from paretune.errors import UserError
from paretune.evaluate.sandbox import Limits, Sandbox, open_sandbox


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Each confining sandbox, with short limits; skipped where this machine cannot have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKEN", SECRET)
        try:
            sandbox = open_sandbox(request.param, workers=1, limits=Limits(seconds=0.3))
        except UserError as error:
            if request.param == "namespaces":
                raise
            pytest.skip(str(error))
        yield sandbox
        sandbox.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that is attacked by the programs of one module."""
    folder: Path = tmp_path_factory.mktemp("host")
    with attacked(folder) as host:
        yield host
