"""Leases on a shared folder: one holder, the dead recognised, a sleeper told that it has lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from paretune.runner import leases as module
from paretune.runner.leases import FOLDER, Leases, Lost


def record(folder: Path, leases: Leases, **changes: object) -> None:
    """Make a runner look like one of another time or place."""
    path = folder / FOLDER / f"{leases.name}.runner"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_all_names_or_none(tmp_path: Path) -> None:
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.take(["b"])
        assert not second.take(["a", "b", "c"])
        assert first.take(["a", "c"]), "what the second had taken before b is free again"
        first.release(["b"])
        assert second.take(["b"])
        with pytest.raises(KeyError):
            first._held["b"]


def test_the_end_of_a_runner_frees_what_it_held(tmp_path: Path) -> None:
    with Leases(tmp_path) as first:
        assert first.take(["arm"])
        holder = first.holder("arm")
        assert holder is not None
        assert holder["pid"] == first.process.pid
    with Leases(tmp_path) as second:
        assert second.take(["arm"])


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from paretune.runner.leases import Leases;"
        "leases = Leases(Path(sys.argv[1])); leases.__enter__(); assert leases.take(['arm']);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = list((tmp_path / FOLDER).glob("*.runner"))
    assert len(left) == 1
    with Leases(tmp_path) as leases:
        assert leases.take(["arm"])
    assert not left[0].exists()


@pytest.mark.parametrize("change", [{"started": "1"}, {"pid": 2**22 + 1}])
def test_a_recycled_process_number_is_not_the_same_process(
    tmp_path: Path, change: dict[str, object]
) -> None:
    with Leases(tmp_path) as old, Leases(tmp_path) as new:
        assert old.take(["arm"])
        record(tmp_path, old, **change)
        assert new.take(["arm"])
        with pytest.raises(Lost, match="another one took over"):
            old.check()


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot": "b"}, {"namespace": "pid:[1]"}])
def test_another_machine_is_judged_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    now = [1000.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Leases(tmp_path) as far, Leases(tmp_path) as near:
        far._over.set()  # it beats as written here, and not by its own clock
        assert far.take(["arm"])
        record(tmp_path, far, **change, pid=2**22 + 1)
        beat = tmp_path / FOLDER / f"{far.name}.beat"
        for count in range(3):
            beat.write_text(f"{count}")
            assert not near.take(["arm"])
            now[0] += 0.9 * module.STALE_SECONDS
        assert not near.take(["arm"])
        now[0] += 1.1 * module.STALE_SECONDS
        assert near.take(["arm"])


def test_of_many_that_want_to_follow_a_dead_one_a_single_one_does(tmp_path: Path) -> None:
    with Leases(tmp_path) as dead:
        assert dead.take(["arm"])
        record(tmp_path, dead, started="1")
        runners = [Leases(tmp_path) for _ in range(8)]
        for runner in runners:
            runner.__enter__()
        won: list[str] = []
        gate = threading.Barrier(len(runners))

        def want(runner: Leases) -> None:
            gate.wait()
            if runner.take(["arm"]):
                won.append(runner.name)

        threads = [threading.Thread(target=want, args=(runner,)) for runner in runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        for runner in runners:
            runner.__exit__()


def test_a_lease_that_cannot_be_read_belongs_to_nobody(tmp_path: Path) -> None:
    with Leases(tmp_path) as first, Leases(tmp_path) as second:
        assert first.take(["arm"])
        (tmp_path / FOLDER / "arm.1.lease").write_bytes(b"\0\0")
        assert second.take(["arm"])
        with pytest.raises(Lost):
            first.check()
