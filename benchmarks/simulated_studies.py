"""The statistics' claims, measured on simulated studies whose truth is known, and a back-test.

Usage: python benchmarks/simulated_studies.py [--studies N] [--ledger DIR ...]; writes
benchmarks/results/statistics.json. A few minutes on one core. --ledger adds the back-test of
extrapolation on finished studies; the english-30m study is unpacked from docs/studies by default.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from measurements import row, write

from paretune.analyse.ahead import curves_of
from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.curves import back_test
from paretune.analyse.frontier import not_dominated
from paretune.analyse.hypervolume import hypervolume
from paretune.analyse.matched import forgetting_gap
from paretune.analyse.pairs import Runs, run_variance, seeded_difference
from paretune.analyse.statistics import (
    Aligned,
    bootstrap_scores,
    centred,
    contrast,
    holm,
    p_value,
    percentile_interval,
    t_quantile,
)

LEDGER = Path("docs/studies/english-30m-to-python/ledger.tar.xz")
DRAWS = 1000
COVERS = "93% to 97%"


def groups(generator: np.random.Generator, count: int, items: int, spread: float) -> np.ndarray:
    """Cluster of each item; cluster sizes are log-normal."""
    share = generator.lognormal(0, spread, count)
    sizes = np.maximum(1, np.round(items * share / share.sum())).astype(int)
    return np.repeat(np.arange(count), sizes)


def bits(
    generator: np.random.Generator,
    change: np.ndarray,
    clusters: np.ndarray,
    noise: float = 0.3,
    alike: float = 0.2,
    own: float = 0.3,
) -> Aligned:
    """A base and arms that changed by ``change`` bits per byte, on items of unequal length.

    Errors are skew (exponential), partly shared within clusters (``alike``), partly shared by all
    arms in proportion to their change, and partly (``own``) an arm's alone.
    """
    count, arms = int(clusters.max()) + 1, len(change)
    n = len(clusters)

    def errors(rows: int) -> np.ndarray:
        between = generator.standard_normal((rows, count))[:, clusters]
        within = generator.standard_exponential((rows, n)) - 1
        return np.sqrt(alike) * between + np.sqrt(1 - alike) * within

    length = generator.integers(500, 2300, n).astype(float)
    level = 2 + 0.4 * generator.standard_normal(count)[clusters]
    level = level + 0.3 * generator.standard_normal(n)
    common = 1 + 0.5 * noise * errors(1)
    arm = level + change[:, None] * common + own * noise * errors(arms)
    value = np.vstack([level[None, :], arm]) * length
    return Aligned(value, np.tile(length, (arms + 1, 1)), clusters)


def right_or_wrong(
    generator: np.random.Generator, n: int, learned: float, forgotten: float
) -> tuple[Aligned, float]:
    """n items, 70% right before; shares of the wrong learned and of the right forgotten."""
    before = generator.random(n) < 0.7
    chance = generator.random(n)
    after = np.where(before, chance >= forgotten, chance < learned)
    outcomes = np.array([before, after], dtype=np.float64)
    truth = 0.3 * learned - 0.7 * forgotten
    return Aligned(outcomes, np.ones((2, n)), np.arange(n)), truth


def change_covers(
    studies: int, make: Callable[[np.random.Generator], np.ndarray]
) -> tuple[float, float]:
    """Share of intervals of a paired change of 0.3 that hold it: ours, and the textbook's.

    The textbook's is linearised, over groups, with Student's t of groups - 1 degrees of freedom.
    """
    hits = plain = 0
    for study in range(studies):
        generator = np.random.default_rng([1, study])
        made = bits(generator, np.array([0.3]), make(generator))
        found = contrast(made, np.array([-1.0, 1.0]))
        hits += found.low <= 0.3 <= found.high  # type: ignore[operator]
        value, weight = made.by_cluster
        change = value[1] - value[0] - found.value * weight[0]
        count = made.count
        error = np.sqrt(count / (count - 1) * np.sum(change**2)) / weight[0].sum()
        plain += abs(found.value - 0.3) <= t_quantile(count - 1) * error  # type: ignore[operator]
    return hits / studies, plain / studies


def accuracy_covers(studies: int, n: int, learned: float, forgotten: float) -> float:
    """The same for a change of accuracy."""
    hits = 0
    for study in range(studies):
        generator = np.random.default_rng([2, study])
        outcomes, truth = right_or_wrong(generator, n, learned, forgotten)
        found = contrast(outcomes, np.array([-1.0, 1.0]))
        hits += found.low <= truth <= found.high  # type: ignore[operator]
    return hits / studies


def seeds_cover(studies: int, seeds: int, run: float | None, others: int = 0) -> float:
    """Coverage of a difference of two settings under several seeds each.

    ``run`` is the spread between runs over that between items; None draws it for each study.
    ``others`` is how many more settings with as many seeds the study has, of the same spread.
    """
    hits = 0
    for study in range(studies):
        generator = np.random.default_rng([3, study])
        ratio = run if run is not None else float(10 ** generator.uniform(-1, 0.7))
        n, noise = 128, 0.3
        clusters = groups(generator, 24, n, 0.5)
        setting = 0.2 * noise * generator.standard_normal((2 + others, len(clusters)))
        spread = ratio * 0.2 * noise * np.sqrt(2 / n)
        runs = spread * np.sqrt(seeds / 2) * generator.standard_normal((2 + others) * seeds)
        change = np.repeat([0.3, 0.25, *[0.2] * others], seeds) + runs
        made = bits(generator, change, clusters, noise, own=0.1)
        value = made.value.copy()
        value[1:] += np.repeat(setting, seeds, axis=0) * made.weight[1:]
        made = Aligned(value, made.weight, clusters)
        places = [{s: 1 + k * seeds + s for s in range(seeds)} for k in range(2 + others)]
        known = run_variance(made, places) if others else Runs()
        found = seeded_difference(made, places[0], places[1], runs=known).estimate
        hits += found.low <= 0.05 <= found.high  # type: ignore[operator]
    return hits / studies


def false_claims(studies: int, settings: int, seeds: int, pooled: bool = True) -> float:
    """Share of studies without any true difference in which at least one pair is claimed."""
    wrong = 0
    for study in range(studies):
        generator = np.random.default_rng([4, study])
        clusters = groups(generator, 24, 128, 0.8)
        places = [{s: 1 + k * seeds + s for s in range(seeds)} for k in range(settings)]
        runs = 0.01 * generator.standard_normal(settings * seeds)
        made = bits(generator, 0.3 + (runs if seeds > 1 else 0 * runs), clusters)
        known = run_variance(made, places)
        p = []
        for a, b in combinations(places, 2):
            if seeds > 1:
                p.append(seeded_difference(made, a, b, runs=known if pooled else Runs()).p)
            else:
                weights = np.zeros(1 + settings)
                weights[[a[0], b[0]]] = 1, -1
                p.append(p_value(contrast(made, weights)))
        wrong += min(holm([one for one in p if one is not None])) <= 0.05
    return wrong / studies


def curve(kind: str) -> np.ndarray:
    """[9, 2] learning and forgetting of a method at three rates and three budgets."""
    points = []
    for rate in (0.5, 1.0, 1.6):
        for budget in (0.3, 0.6, 1.0):
            reach, price, power = (1.0, 0.35, 1.5) if kind == "full" else (0.85, 0.42, 1.4)
            learned = reach * 2.2 * rate * budget / (rate * budget + 0.5)
            points.append((learned, price * learned**power * (1 + 0.3 * abs(np.log(rate)))))
    return np.array(points)


def drawn(
    generator: np.random.Generator, truth: np.ndarray, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """[1 + R, P] learning and forgetting of points: the estimate, then the draws."""
    axes = []
    for column, clusters in ((0, groups(generator, 24, 256, 0.6)), (1, np.arange(128))):
        made = bits(generator, truth[:, column], clusters, noise)
        seed = int(generator.integers(2**31))
        scores = np.vstack([made.scores, bootstrap_scores(made, DRAWS, seed)])
        axes.append(scores[:, 1:] - scores[:, :1])
    return axes[0], axes[1]


def matched_covers(studies: int, noise: float) -> tuple[float, float]:
    """Coverage at matched learning, and of the hypervolume of the same points."""
    both = np.concatenate([curve("full"), curve("lora")])
    reference = float(both[:, 1].max())
    a, b = both[None, :9], both[None, 9:]
    truth = float(forgetting_gap(a[..., 0], a[..., 1], b[..., 0], b[..., 1])[0])
    area = float(hypervolume(both[None, :, 0], both[None, :, 1], reference)[0])
    hits = areas = 0
    for study in range(studies):
        x, y = drawn(np.random.default_rng([5, study]), both, noise)
        gaps = forgetting_gap(x[:, :9], y[:, :9], x[:, 9:], y[:, 9:])
        low, high = percentile_interval(centred(float(gaps[0]), gaps[1:][~np.isnan(gaps[1:])]))
        hits += low <= truth <= high
        areas_R = hypervolume(x, y, reference)
        low, high = percentile_interval(centred(float(areas_R[0]), areas_R[1:]))
        areas += low <= area <= high
    return hits / studies, areas / studies


def calibration(studies: int) -> list[tuple[float, float, int]]:
    """Bins of the frontier probability: mean stated, share that was on it in truth, and count."""
    stated, true = [], []
    for study in range(studies):
        generator = np.random.default_rng([6, study])
        learned = generator.uniform(0.2, 1.0, 12)
        forgot = 0.4 * learned**1.5 + generator.normal(0, 0.04, 12)
        truth = np.stack([learned, forgot], axis=1)
        x, y = drawn(generator, truth, 0.6)
        stated.append(not_dominated(x[1:], y[1:]).mean(axis=0))
        true.append(not_dominated(truth[None, :, 0], truth[None, :, 1])[0])
    p, hit = np.concatenate(stated), np.concatenate(true)
    bins = np.clip((p * 10).astype(int), 0, 9)
    return [
        (float(p[bins == k].mean()), float(hit[bins == k].mean()), int((bins == k).sum()))
        for k in range(10)
        if (bins == k).any()
    ]


def back_tests(name: str, folder: Path) -> list[dict[str, Any]]:
    """Error and coverage of the last budget predicted from those before it."""
    import paretune

    tests = back_test(curves_of(Evidence.of(paretune.load(folder))))
    rows = []
    for axis in ("learning", "forgetting"):
        for way in ("pilot", "others ran on"):
            these = [test for test in tests if test.axis == axis and test.way == way]
            error = float(np.median([abs(t.forecast.value - t.measured) for t in these]))
            line = float(np.median([abs(t.line - t.measured) for t in these]))
            covered = sum(test.covered for test in these)
            half = float(np.median([t.forecast.high - t.forecast.value for t in these]))
            what = f"{axis} at the last budget, {way}"
            work = f"{name}, {len(these)} settings"
            rows.append(
                row(
                    f"predicted {what}: error",
                    f"{work}; median half-width {half:.2g}",
                    "median absolute error",
                    our_value=error,
                    peer="straight line in log tokens",
                    peer_value=line,
                    ratio=line / error,
                    goal="less than the straight line's",
                )
            )
            rows.append(
                row(
                    f"predicted {what}: coverage",
                    f"{work}; missed: "
                    + (", ".join(t.name for t in these if not t.covered) or "none"),
                    "share of 95% intervals that held the measured value",
                    our_value=covered / len(these),
                    goal="about 0.95",
                )
            )
    return rows


def simulated(studies: int) -> list[dict[str, Any]]:
    """Every row that comes from simulated studies."""
    rows = []

    def add(
        name: str,
        work: str,
        value: float,
        goal: str = COVERS,
        unit: str = "covered",
        peer: tuple[str, float] | tuple[None, None] = (None, None),
    ) -> None:
        work = f"{work}, {studies:,} studies"
        rows.append(
            row(name, work, unit, our_value=value, goal=goal, peer=peer[0], peer_value=peer[1])
        )
        print(f"{name}, {work}: {value:.4g} ({goal})", flush=True)

    layouts: list[tuple[str, Callable[[np.random.Generator], np.ndarray]]] = [
        ("64 items", lambda _: np.arange(64)),
        ("256 items in 24 groups of unequal size", lambda g: groups(g, 24, 256, 0.8)),
        ("256 items in 10 groups of unequal size", lambda g: groups(g, 10, 256, 0.8)),
        ("200 items in 8 groups of unequal size", lambda g: groups(g, 8, 200, 0.5)),
    ]
    for name, make in layouts:
        ours, plain = change_covers(studies, make)
        peer = ("linearised, t of groups - 1", plain)
        add("interval of a paired change, bits per byte", name, ours, peer=peer)
    for n, learned, forgotten in ((256, 0.1, 0.2), (64, 0.2, 0.2), (64, 0.02, 0.03)):
        flipped = n * (0.3 * learned + 0.7 * forgotten)
        work = f"{n} items, {flipped:.0f} of them flipped on average"
        add("interval of a paired change, accuracy", work,
            accuracy_covers(studies, n, learned, forgotten))  # fmt: skip
    for seeds in (2, 3, 5):
        work = f"{seeds} seeds, spread of runs 0.1 to 5 times that of items"
        add("interval of a difference over items and seeds", work,
            seeds_cover(studies, seeds, None))  # fmt: skip
    work = "3 seeds of 5 settings, pooled, spread of runs 0.1 to 5 times that of items"
    add("interval of a difference over items and seeds", work, seeds_cover(studies, 3, None, 3))
    for ratio in (0.3, 1.0, 5.0):
        work = f"3 seeds, spread of runs {ratio:g} times that of items"
        add("interval of a difference over items and seeds", work,
            seeds_cover(studies, 3, ratio))  # fmt: skip
    for noise in (0.3, 1.0):
        gap, area = matched_covers(studies, noise)
        work = f"2 methods x 3 rates x 3 budgets, errors of {noise:g} bits an item"
        add("interval of forgetting at matched learning", work, gap)
        add("interval of the hypervolume", work, area)
    for settings, seeds, how in (
        (8, 1, "one run each"),
        (5, 3, "spread of runs pooled"),
        (2, 3, "spread of runs from the pair"),
    ):
        pairs = settings * (settings - 1) // 2
        work = f"{settings} settings x {seeds} seeds, no true difference, {pairs} pairs, {how}"
        value = false_claims(studies, settings, seeds, "pooled" in how)
        add("false claims after Holm's correction", work, value, "at most 0.05",
            "of studies with a false claim")  # fmt: skip
    bins = calibration(studies)
    for stated, hit, count in bins:
        add("frontier probability", f"stated {stated:.3f}, {count:,} points", hit,
            "what was stated", "were on the frontier in truth")  # fmt: skip
    total = sum(count for _, _, count in bins)
    gap = sum(abs(stated - hit) * count for stated, hit, count in bins) / total
    add("frontier probability: calibration error", f"{total:,} points", gap,
        "at most 0.05", "mean gap between stated and true")  # fmt: skip
    return rows


def main() -> None:
    """Measure everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=3000)
    parser.add_argument("--ledger", type=Path, action="append", default=[])
    given = parser.parse_args()
    rows = simulated(given.studies)
    with tempfile.TemporaryDirectory() as folder:
        if not given.ledger:
            with tarfile.open(LEDGER) as archive:
                archive.extractall(folder, filter="data")
        found = given.ledger or [path.parent for path in Path(folder).glob("*/study.yaml")]
        for ledger in found:
            name = (ledger / "study.yaml").read_text().partition("\nname: ")[2].split("\n")[0]
            rows += back_tests(name, ledger)
        write("statistics", rows)


if __name__ == "__main__":
    main()
