"""A whole study: budgets laid out three ways, repeats, refusals, resumption."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from runner_helpers import small_study

import paretune
from paretune import UserError
from paretune.analyse.results import tidy
from paretune.errors import Fault
from paretune.evaluate.items import ArmModel, Items
from paretune.evaluate.suite import Suite
from paretune.runner import cohort
from paretune.runner.ledger import BASE, Ledger
from paretune.runner.run import run
from paretune.train.legs import Leg
from paretune.train.state import intact
from paretune.train.trainer import Trainer


def results(folder: Path) -> pd.DataFrame:
    return tidy(paretune.load(folder))


def scores(folder: Path) -> pd.Series:
    frame = results(folder)
    return frame[frame.arm != "base"].set_index(["label", "tokens", "metric"]).value


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hot")
    run(small_study(folder), folder / "out")
    return folder


def test_everything_asked_for_is_in_the_ledger(hot: Path) -> None:
    out = hot / "out"
    frame = pd.read_csv(out / "results.csv")
    assert set(frame.label[frame.arm != "base"]) == {
        "full lr 0.001",
        "lora r2 lr 0.005",
        "lora r4 lr 0.005",
    }
    assert sorted(frame.tokens.unique()) == [0, 640, 1280]
    metrics = {"target/bits_per_byte", "self_probe/kl", "self_probe/bits_per_byte"}
    assert set(frame.metric) == metrics
    assert len(frame) == 3 * (1 + 3 * 2)
    base_kl = frame[(frame.arm == "base") & (frame.metric == "self_probe/kl")].value
    assert list(base_kl) == [0.0]
    learned = frame[(frame.metric == "target/bits_per_byte") & (frame.arm != "base")]
    assert (learned.change > 0.3).all(), "code like this is learned within a few steps"
    assert (out / "report.html").stat().st_size > 100_000
    for status in paretune.status(out):
        assert (status.state, status.tokens, status.scored) == ("done", 1280, (640, 1280))
    curve = paretune.load(out).curve(paretune.status(out)[0].arm)
    assert list(curve.step) == list(range(1, 21))
    assert not list(out.glob("arms/*/resume"))
    assert not list(out.rglob("*.tmp"))


def test_running_again_changes_nothing(hot: Path) -> None:
    before = (hot / "out" / "results.csv").read_bytes()
    run(small_study(hot), hot / "out")
    assert (hot / "out" / "results.csv").read_bytes() == before


def test_tables_are_rebuilt_from_the_raw_ledger(hot: Path) -> None:
    before = (hot / "out" / "results.csv").read_bytes()
    (hot / "out" / "results.csv").unlink()
    paretune.write_report(hot / "out")
    assert (hot / "out" / "results.csv").read_bytes() == before


def test_a_cooldown_branch_equals_a_run_of_its_own(tmp_path: Path) -> None:
    """The trunk and a branch give, to the bit, what a separate trapezoid of that length gives."""
    found = {}
    for mode in ("separate", "cooldown"):
        study = small_study(tmp_path, mode=mode, shape="trapezoid", at="10ba, 20ba")
        run(study, tmp_path / mode, report=False)
        found[mode] = scores(tmp_path / mode)
    assert len(found["separate"]) == 18
    pd.testing.assert_series_equal(found["separate"], found["cooldown"], check_exact=True)
    hot_run = small_study(tmp_path, mode="hot", shape="trapezoid", at="10ba, 20ba")
    run(hot_run, tmp_path / "hot", report=False)
    first = scores(tmp_path / "hot").xs(640, level="tokens")
    assert not first.equals(found["separate"].xs(640, level="tokens"))


def test_best_of_each_group_is_trained_again_under_other_seeds(tmp_path: Path) -> None:
    arms = """
  - {method: full, learning_rate: [1e-5, 1e-3]}
  - {method: lora, rank: 2, learning_rate: [1e-5, 5e-3]}
repeat_best: {seeds: [1, 2]}
"""
    run(small_study(tmp_path, arms=arms, at="8ba"), tmp_path / "out", report=False)
    frame = results(tmp_path / "out")
    repeated = frame[frame.seed > 0]
    assert set(zip(repeated.method, repeated.learning_rate, repeated.seed, strict=True)) == {
        ("full", 1e-3, 1),
        ("full", 1e-3, 2),
        ("lora", 5e-3, 1),
        ("lora", 5e-3, 2),
    }
    learned = repeated[repeated.metric == "target/bits_per_byte"]
    assert learned.value.nunique() == 4, "another seed is another data order"


def test_a_diverged_arm_is_recorded_and_the_rest_is_untouched(tmp_path: Path) -> None:
    healthy = "\n  - {method: lora, rank: [2, 4, 8], learning_rate: 5e-3}\n"
    wild = healthy + "  - {method: lora, rank: 4, learning_rate: 1e3}\n"
    run(small_study(tmp_path, arms=healthy, at="8ba, 24ba"), tmp_path / "healthy", report=False)
    run(small_study(tmp_path, arms=wild, at="8ba, 24ba"), tmp_path / "wild", report=False)
    states = {s.label: s for s in paretune.status(tmp_path / "wild")}
    lost = states.pop("lora r4 lr 1000")
    assert lost.state == "diverged"
    assert lost.reason is not None
    assert lost.reason.startswith("step 1")
    assert {s.state for s in states.values()} == {"done"}
    without, beside = scores(tmp_path / "healthy"), scores(tmp_path / "wild")
    pd.testing.assert_series_equal(without, beside.loc[without.index], check_exact=True)
    frame = results(tmp_path / "wild")
    assert 1536 not in set(frame.tokens[frame.label == "lora r4 lr 1000"])


def test_another_study_in_the_same_folder_is_refused(hot: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other settings.*was.*now.*--out"):
        run(small_study(hot, at="10ba, 30ba"), hot / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not empty and not a study"):
        run(small_study(tmp_path), tmp_path / "mine")
    for place in ("thesis.txt", "thesis.txt/below"):
        with pytest.raises(UserError, match=r"thesis\.txt: a file.*--out"):
            run(small_study(tmp_path), tmp_path / "mine" / place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_damaged_state_is_not_used(hot: Path, tmp_path: Path) -> None:
    """A half-run study whose newest state was altered goes on from the one before, or the start."""
    often = small_study(tmp_path, every=0.001)

    class Stop(Exception):
        pass

    class Interrupting:
        def __init__(self) -> None:
            self.steps = 0

        def begin(self, name: str, total: int) -> None: ...

        def line(self, text: str) -> None: ...

        def advance(self, amount: int = 1) -> None:
            self.steps += amount
            if self.steps == 16:
                raise Stop

    with pytest.raises(Stop):
        run(often, tmp_path / "cut", progress=Interrupting(), report=False)
    states = sorted((tmp_path / "cut" / "arms").glob("*/resume/*.safetensors"))
    assert states
    content = bytearray(states[-1].read_bytes())
    content[-5] ^= 0xFF
    states[-1].write_bytes(content)
    run(often, tmp_path / "cut", report=False)
    pd.testing.assert_frame_equal(results(hot / "out"), results(tmp_path / "cut"), check_exact=True)


def test_a_cut_off_line_in_a_ledger_file_is_forgotten(hot: Path, tmp_path: Path) -> None:
    shutil.copytree(hot / "out", tmp_path / "out")
    path = next((tmp_path / "out" / "arms").glob("*/scores.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    last = json.loads(whole.splitlines()[-1])
    status = path.with_name("status.json")
    status.write_text(status.read_text().replace('"done"', '"running"'))
    run(small_study(hot), tmp_path / "out", report=False)
    assert json.loads(path.read_bytes().splitlines()[-1])["value"] == last["value"]
    pd.testing.assert_frame_equal(results(hot / "out"), results(tmp_path / "out"), check_exact=True)


@pytest.mark.parametrize(("seconds", "saves"), [(0.0, 20), (2.0, 2)])
def test_saves_that_take_long_come_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saves: int
) -> None:
    """Quick saves come as often as asked; a slow one is followed by nine times as long without."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(cohort, "time", SimpleNamespace(monotonic=lambda: clock.now))
    step, save = Trainer.step, cohort.CohortRun._save
    saved = []

    def trained(self: Trainer, *args: object) -> None:
        clock.now += 1.0
        step(self, *args)  # type: ignore[arg-type]

    def slow(self: cohort.CohortRun, leg: Leg, at: int) -> None:
        save(self, leg, at)
        saved.append(at)
        clock.now += seconds

    monkeypatch.setattr(Trainer, "step", trained)
    monkeypatch.setattr(cohort.CohortRun, "_save", slow)
    arms = "  - {method: lora, rank: 2, learning_rate: 5e-3}"
    run(small_study(tmp_path, arms=arms, at="20ba", every=0.5), tmp_path / "out", report=False)
    # At step 1, then not before 18 more steps have passed, which is at the end
    assert len(saved) == saves
    assert saved[-1] == 20


def test_states_are_written_while_arms_are_scored_and_whole_before_any_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow a disk is; and a state that cannot be written stops the study before a score."""
    save, write_scores, score = cohort.save_state, Ledger.write_scores, Suite.score
    begun, scored = threading.Event(), threading.Event()
    checked = []
    full = False

    def slow(place: Path, leg: str, step: int, *rest: Any, **named: Any) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        begun.set()
        assert scored.wait(60), "scoring waits for the states"
        save(place, leg, step, *rest, **named)

    def scoring(self: Suite, arms: ArmModel) -> list[list[Items]]:
        found = score(self, arms)
        if begun.is_set():
            scored.set()
        return found

    def written(self: Ledger, arm_id: str, tokens: int, items: list[Items]) -> None:
        if arm_id != BASE:
            step = tokens // 64
            states = [folder / "resume" for folder in (tmp_path / "out" / "arms").glob("lora*")]
            assert all(intact(place, "main", step) for place in states), "every arm's"
            self.check_checkpoint(arm_id, tokens)
            checked.append((arm_id, tokens))
        write_scores(self, arm_id, tokens, items)

    monkeypatch.setattr(cohort, "save_state", slow)
    monkeypatch.setattr(Suite, "score", scoring)
    monkeypatch.setattr(Ledger, "write_scores", written)
    arms = "  - {method: lora, rank: [2, 4], learning_rate: 5e-3}"
    run(small_study(tmp_path, arms=arms), tmp_path / "out", report=False)
    assert len(checked) == 4
    full = True
    with pytest.raises(Fault, match=r"(?i)space"):
        run(small_study(tmp_path, arms=arms), tmp_path / "again", report=False)
    assert len(checked) == 4
