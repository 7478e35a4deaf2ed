"""Two hosts, each a network namespace with a host name of its own, share a folder; one is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paretune.runner.ledger import Ledger

STUDY = """
name: two-hosts
base: pocket
regime: cpt
target:
  data: {from: json, path: rows.jsonl}
  items: 4
training: {block_length: 32, batch_size: 2}
arms:
  - {method: lora, rank: [2, 4], learning_rate: 5e-3}
budgets: {at: [60ba, 120ba]}
checkpoints: {every_seconds: 0.2}
"""
# Names that no other run of this test has; addresses mean something in the namespaces alone
HEAD = (f"near-{os.getpid()}", "10.77.91.1")
FAR = (f"far-{os.getpid()}", "10.77.91.2")
PORT = 6397


def can_make_namespaces() -> bool:
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("ip", "unshare"))


@contextmanager
def hosts() -> Iterator[None]:
    """Two namespaces joined by a cable; whatever runs in them is killed at the end."""

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=not check)

    clear()
    try:
        for name, _ in (HEAD, FAR):
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            "near0",
            "netns",
            HEAD[0],
            "type",
            "veth",
            "peer",
            "far0",
            "netns",
            FAR[0],
        )
        for (name, address), device in ((HEAD, "near0"), (FAR, "far0")):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", name, "link", "set", device, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        clear()


def clear() -> None:
    for name, _ in (HEAD, FAR):
        kill_all(name)
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def kill_all(name: str) -> int:
    """SIGKILL to every process of a host; how many there were."""
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for pid in pids.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    return len(pids.stdout.split())


def on(host: tuple[str, str], folder: Path, *command: str) -> subprocess.Popen[str]:
    """Start a command on a host."""
    # The namespaces reach nothing else, so that a token would protect nothing
    ray = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": f"{HEAD[1]}:{PORT}",
        "RAY_health_check_period_ms": "1000",
    }
    env = {**os.environ, **ray, "PARETUNE_STALE_SECONDS": "15", "OMP_NUM_THREADS": "1"}
    env |= {"RAY_health_check_failure_threshold": "3", "RAY_DISABLE_IMPORT_WARNING": "1"}
    env |= {"RAY_gcs_server_request_timeout_seconds": "300", "PYTHONUNBUFFERED": "1"}
    named = ["unshare", "--uts", "sh", "-c", f'hostname {host[0]}; exec "$@"', "sh", *command]
    return subprocess.Popen(
        ["ip", "netns", "exec", host[0], *named],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def until_it_runs(node: subprocess.Popen[str]) -> None:
    """Wait until a node of Ray says that it belongs to the cluster."""
    assert node.stdout is not None
    said = []
    for line in node.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            return
    raise AssertionError("".join(said))


@pytest.mark.slow
def test_a_node_is_lost_and_the_study_completes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    if not can_make_namespaces():
        pytest.skip("needs root, ip and unshare to make network namespaces")
    (tmp_path / "study.yaml").write_text(STUDY)
    lines = [f'{{"text": "def f{i}(x):\\n    return x + {i % 7}\\n"}}\n' for i in range(900)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus", "1", "--block"]
    run = [sys.executable, "-m", "paretune", "run", "study.yaml", "--out", "out", "--no-report"]
    # Its own place: the address of a killed cluster would stay in Ray's usual one
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as own, hosts():
        head = on(HEAD, tmp_path, *ray, "--head", "--node-ip-address", HEAD[1], "--port",
                  str(PORT), "--include-dashboard=false", "--temp-dir", own)  # fmt: skip
        until_it_runs(head)
        there = ["--address", f"{HEAD[1]}:{PORT}", "--node-ip-address", FAR[1]]
        until_it_runs(on(FAR, tmp_path, *ray, *there))
        driver = on(HEAD, tmp_path, *run, "--executor", "ray", "--workers", "2", "--device", "cpu")
        deadline = time.monotonic() + 600
        while not _trains_on(FAR[0], tmp_path / "out"):
            assert driver.poll() is None, driver.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert kill_all(FAR[0]) > 1
        said, _ = driver.communicate(timeout=900)
        assert driver.returncode == 0, said
    ledger = Ledger(tmp_path / "out")
    for arm_id in ledger.arms():
        assert ledger.status(arm_id)["state"] == "done"
        assert {row["tokens"] for row in ledger.scores(arm_id)} == {3840, 7680}
        assert [row["step"] for row in ledger.curve(arm_id)] == list(range(1, 121))
    took = [row for row in ledger.log() if row["event"] == "cohort"]
    assert {str(row["runner"]).rsplit("-", 2)[0] for row in took} == {HEAD[0], FAR[0]}
    lost = next(row["arms"] for row in took if str(row["runner"]).startswith(FAR[0]))
    again = [row for row in took if row["arms"] == lost]
    assert len(again) > 1, "what the lost host trained was taken over"


def _trains_on(host: str, out: Path) -> bool:
    """Whether a process of this host has saved a state."""
    if not (out / "ledger.json").exists():
        return False
    for row in Ledger(out).log():
        if row["event"] == "cohort" and str(row["runner"]).startswith(host):
            return any(list((out / "arms" / arm).glob("resume/*")) for arm in row["arms"])
    return False
