"""The paper's own tables through the claims: the figures against plain arithmetic on the points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from paretune.analyse.claims.card import verdicts
from paretune.analyse.claims.paper import SETTINGS, paper_evidence, published
from paretune.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ITEMS = {"HumanEval": 164, "GSM8K": 1319}


def card(setting: str, **options):
    return {one.claim: one for one in verdicts(paper_evidence(setting, **options))}


def arm_rows(setting: str, arm: str):
    table = published()
    return table[(table["setting"] == setting) & (table["arm"] == arm)].sort_values("budget")


def test_all_116_points_are_there():
    table = published()
    assert len(table) == 116
    counts = table.groupby("setting").size().to_dict()
    assert sorted(counts.values()) == [12, 20, 20, 32, 32]
    assert sum(len(paper_evidence(name).points.points) for name in SETTINGS) == 116


@pytest.mark.shared
def test_they_are_the_published_ones():
    source = (ROOT / "../shared/paper/results.csv").read_bytes()
    assert (ROOT / "paretune/analyse/claims/paper.csv").read_bytes() == source


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("rank", [16, 64, 256])
def test_learning_at_equal_tokens_by_plain_arithmetic(setting, rank):
    part = next(
        p for p in card(setting)["learns-less"].parts if p.name == f"full minus LoRA r{rank}"
    )
    full, lora = arm_rows(setting, "full"), arm_rows(setting, f"r{rank}")
    n = ITEMS[full["target_metric"].iloc[0]]
    p, q = full["target_score"].to_numpy(), lora["target_score"].to_numpy()
    stderr = np.sqrt((p * (1 - p) / n + q * (1 - q) / n).sum()) / len(p)
    value = (p - q).mean()
    assert part.estimate.value == pytest.approx(value, abs=1e-12)
    assert part.estimate.stderr == pytest.approx(stderr, rel=0.005)
    assert part.p == pytest.approx(2 * stats.t.sf(abs(value) / stderr, n - 1), rel=0.1, abs=1e-4)


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_forgetting_at_equal_tokens_by_plain_arithmetic(setting):
    """Errors independent over budgets, and the same for all budgets of an arm."""
    full, lora = arm_rows(setting, "full"), arm_rows(setting, "r256")
    value = (lora["source_score"].to_numpy() - full["source_score"].to_numpy()).mean()
    for shared, budgets in ((False, len(full)), (True, 1)):
        part = card(setting, shared_noise=shared)["forgets-less"].parts[-1]
        assert part.estimate.value == pytest.approx(value, abs=1e-12)
        assert part.estimate.stderr == pytest.approx(0.0065 * np.sqrt(2 / budgets), rel=0.005)


def test_the_verdicts_are_those_of_the_arithmetic():
    """Worked by hand from the tables: means over budgets, Holm over three ranks."""
    supported = {
        "learns-less": {"code_cpt", "math_cpt", "math_ift"},
        "forgets-less": {"code_cpt", "code_ift", "math_ift"},
        "high-rank-closes-the-gap": {"math_ift", "tulu_ift"},
    }
    for claim, expected in supported.items():
        found = {name: card(name)[claim].verdict for name in SETTINGS}
        assert {name for name, one in found.items() if one == "supported"} == expected
        assert "contradicted" not in found.values()


def test_the_first_and_last_figure_by_hand():
    # full .152 .153 .172 .181 .218 .258 .255 .263; r16 .143 .144 .141 .141 .154 .159 .162 .162
    part = card("code_cpt")["learns-less"].parts[0]
    assert part.estimate.value == pytest.approx((1.652 - 1.206) / 8)
    # full .604 .641 .642 .619 .599; r256 .557 .607 .625 .634 .594
    gap = card("math_ift")["high-rank-closes-the-gap"]
    assert gap.effect == pytest.approx((3.105 - 3.017) / 5)


def test_what_the_tables_do_not_hold_is_unresolved():
    for name in SETTINGS:
        found = card(name)
        for claim in ("regularises-more", "keeps-diversity", "update-rank-grows", "targets"):
            assert found[claim].verdict == "unresolved"
            assert found[claim].effect is None
            assert found[claim].resolve
        assert "accuracy" in found["forgetting-linear-in-loss"].reason


def test_an_unknown_setting_names_those_that_there_are():
    with pytest.raises(UserError, match="there is code_cpt"):
        paper_evidence("poetry")


def test_the_page_is_up_to_date():
    code = "import sys; sys.path.insert(0, 'scripts'); import make_score_card as made"
    made = subprocess.run(
        [sys.executable, "-c", f"{code}; print(made.page(), end='')"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    page = (ROOT / "docs" / "paper-score-card.md").read_text(encoding="utf-8")
    assert made.stdout == page, "run: make docs"
    for named in (".509", ".510", "pass@k", "by interpolation", "not independent"):
        assert named in page
