"""Tables of the pages in docs/studies, made from what a study's ledger holds."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from paretune.analyse.matched import Matched, equal_rate, matched, matched_difference
from paretune.analyse.record import StudyRecord, group_order
from paretune.report.findings import Findings
from paretune.runner.ledger import Ledger

CODE = "target/bits_per_byte"
KL = "self_probe/kl"
NOVELS = "english_novels/bits_per_byte"
FORGOT = {
    KL: "self-probe KL, nats/token",
    NOVELS: "novels, bits/byte",
    "wikitext2/bits_per_byte": "WikiText-2, bits/byte",
    "english_novels/cloze": "novels cloze, accuracy",
}
LEVELS = (2.2, 2.4, 2.6, 2.8)  # of learning, in bits per byte
BROKEN = 6.0  # nats per token at the end of training; no other arm ends above 4.3


def tables(folder: Path, findings: Findings) -> dict[str, str]:
    """Every table of the page in Markdown, by the name in its marks."""
    made = {"runs": runs(folder), "best": best(findings), "rates": rates(findings)}
    made |= {"broken": broken(findings), "equal-rate": at_equal_rate(findings)}
    made |= {"equal-rate-measures": by_measure(findings), "matched": matching(findings)}
    made |= {"matched-measures": matching_measures(findings), "levels": levels(findings)}
    return made | {"seeds": seeds(findings)}


def runs(folder: Path) -> str:
    """What each process spent, in seconds, and what is left of its wall time."""
    times = []
    for run in Ledger.open(folder).runs():
        start, end = (datetime.fromisoformat(run[name]) for name in ("started", "finished"))
        wall = (end - start).total_seconds()
        spent = [float(run["seconds"][phase]) for phase in ("train", "score", "other")]
        times.append([wall, *spent, wall - sum(spent)])
    times.append([sum(column) for column in zip(*times, strict=True)])
    names = [*(str(number) for number in range(1, len(times))), "all"]
    head = ["process", "wall time, s", "training", "scoring", "other", "not accounted for"]
    rows = [[name, *(f"{s:.0f}" for s in row)] for name, row in zip(names, times, strict=True)]
    return table(head, rows)


def best(findings: Findings) -> str:
    """The arm of each method and rank that learned most by the last budget, under seed 0."""
    rows = []
    for arm in best_arms(findings):
        at = last(findings, arm)
        cells = [change(at[name]) for name in (CODE, *FORGOT)]
        rows.append([findings.record.arms[arm].label, f"{at[CODE]['value']:.3f}", *cells])
    head = ["arm", "code, bits/byte", "learned", *(f"forgot: {title}" for title in FORGOT.values())]
    return table(head, rows)


def rates(findings: Findings) -> str:
    """Code bits per byte and self-probe KL of each arm of the sweep at the last budget."""
    arms = {arm: config for arm, config in findings.record.arms.items() if config.seed == 0}
    columns = sorted({config.learning_rate for config in arms.values()})
    rows = {group: dict.fromkeys(columns, "") for group in groups(findings)}
    for arm, config in arms.items():
        at = last(findings, arm)
        text = f"{at[CODE]['value']:.3f} / {at[KL]['value']:.2f}"
        text = f"*{text}*" if loss(findings, arm)[2] > BROKEN else text
        rows[findings.groups[arm]][config.learning_rate] = text
    head = ["method", *(f"{rate:g}" for rate in columns)]
    return table(head, [[group, *cells.values()] for group, cells in rows.items()])


def broken(findings: Findings) -> str:
    """Arms whose training loss ended high, with the lowest that it had been."""
    rows = []
    for arm, config in findings.record.arms.items():
        low, step, end = loss(findings, arm)
        if end > BROKEN:
            changes = [f"{last(findings, arm)[name]['change']:.2f}" for name in (CODE, KL)]
            cells = [config.label, f"{low:.2f}", str(step), f"{end:.2f}", *changes]
            rows.append([*cells, findings.record.state(arm)])
    head = ["arm", "lowest loss", "at step", "loss at the end", "learned", "forgot (KL)", "state"]
    return table(head, rows)


def at_equal_rate(findings: Findings) -> str:
    """LoRA minus full at the last budget under seed 0, for every rate that both were given."""
    frame = findings.equal_rate
    frame = frame[(frame["seed"] == 0) & (frame["tokens"] == findings.record.budgets[-1])]
    ordered = sorted(
        frame.to_dict("records"), key=lambda row: (row["learning_rate"], group_order(row["group"]))
    )
    rows = [
        [f"{row['learning_rate']:g}", str(row["group"])]
        + [bounded(row[n], row[f"{n}_low"], row[f"{n}_high"]) for n in ("learning", "forgetting")]
        for row in ordered
    ]
    return table(
        ["learning rate", "LoRA", "learned, LoRA − full", "forgot (KL), LoRA − full"], rows
    )


def by_measure(findings: Findings) -> str:
    """How many comparisons at equal rate, of all budgets and seeds, went which way."""
    frames = {name: equal_rate(forgetting_by(findings.record, name)) for name in FORGOT}
    counted = [("learned: code, bits/byte", frames[KL], "learning")]
    counted += [(f"forgot: {FORGOT[name]}", frame, "forgetting") for name, frame in frames.items()]
    rows = []
    for title, frame, name in counted:
        less, more = int((frame[f"{name}_high"] < 0).sum()), int((frame[f"{name}_low"] > 0).sum())
        rows.append([title, str(less), str(more), str(len(frame) - less - more)])
    return table(["measure", "LoRA less", "LoRA more", "interval holds 0"], rows)


def matching(findings: Findings) -> str:
    """Forgetting at the most learning that both reached: full against LoRA, and rank by rank."""
    ranks = groups(findings)[1:]
    pairs = [("full", "lora"), *(("full", rank) for rank in ranks)]
    pairs += list(pairwise(ranks))
    found = {(pair.a, pair.b): pair for pair in findings.compared}
    rows = [[*pair, f"{found[pair].level or 0:.2f}", *compared(found[pair])] for pair in pairs]
    # Was it the smallest rate, which only full finetuning was given?
    record = findings.record
    kept = [arm for arm, config in record.arms.items() if config.learning_rate > 1e-4]
    fewer = replace(record, scores=record.scores[record.scores["arm"].isin(["base", *kept])])
    pair = matched_difference(fewer, "full", "lora")
    rows.append(["full without 0.0001", "lora", f"{pair.level or 0:.2f}", *compared(pair)])
    return table(["a", "b", "learned by both", "a forgot", "b forgot", "a − b"], rows)


def matching_measures(findings: Findings) -> str:
    """Full against LoRA of all ranks at the most learning that both reached, by each measure."""
    rows = []
    for name, title in FORGOT.items():
        points = findings.points[name]
        pair = matched_difference(findings.record, "full", "lora", points=points)
        rows.append([title, *compared(pair)])
    return table(["measure", "full forgot", "LoRA forgot", "full − LoRA"], rows)


def levels(findings: Findings) -> str:
    """Forgetting of full and of LoRA at fixed levels of learning, by each measure."""
    rows = []
    for name, title in FORGOT.items():
        frame = matched(findings.record, LEVELS, points=findings.points[name])
        for group in ("full", "lora"):
            found = frame[frame["group"] == group][["forgetting", "low", "high"]]
            rows.append([title, group, *(bounded(*row) for row in found.to_numpy().tolist())])
    return table(["measure", "method", *(f"learned {level:g}" for level in LEVELS)], rows)


def seeds(findings: Findings) -> str:
    """The seeds of each method's best arm, beside the half-width of seed 0's item interval."""
    rows, names = [], {CODE: "learned", KL: "forgot: KL", NOVELS: "forgot: novels"}
    arms = findings.record.arms
    for arm in best_arms(findings):
        cells = [arms[arm].label]
        for name in names:
            alike = [one for one, config in arms.items() if config.label == cells[0]]
            values = [last(findings, one)[name]["change"] for one in alike]
            row = last(findings, arm)[name]
            cells.append(", ".join(f"{value:.3f}" for value in values))
            cells.append(f"{max(values) - min(values):.3f}")
            cells.append(f"± {(row['change_high'] - row['change_low']) / 2:.3f}")
        rows.append(cells)
    head = ["arm"]
    for title in names.values():
        head += [f"{title}, seeds 0, 1, 2", "range", "item interval"]
    return table(head, rows)


def best_arms(findings: Findings) -> list[str]:
    """Seed 0 of the arms that the study repeated under other seeds, full first."""
    arms = findings.record.arms
    repeated = {config.label for config in arms.values() if config.seed != 0}
    chosen = [a for a, config in arms.items() if config.seed == 0 and config.label in repeated]
    return sorted(chosen, key=lambda arm: group_order(findings.groups[arm]))


def groups(findings: Findings) -> list[str]:
    """Method groups, full first."""
    return sorted(set(findings.groups.values()), key=group_order)


def last(findings: Findings, arm: str) -> dict[str, dict[str, Any]]:
    """An arm's rows of the tidy results at the last budget, by metric."""
    rows = findings.results
    rows = rows[(rows["arm"] == arm) & (rows["tokens"] == findings.record.budgets[-1])]
    records = rows.to_dict("records")
    return {str(row["metric"]): {str(k): v for k, v in row.items()} for row in records}


def loss(findings: Findings, arm: str) -> tuple[float, int, float]:
    """Training loss: the lowest mean of ten steps, the last of those, the mean of the last 50."""
    curve = findings.record.curve(arm)["loss"].astype(float)
    means = curve.rolling(10).mean()
    return float(means.min()), int(means.argmin()) + 1, float(curve.tail(50).mean())


def forgetting_by(record: StudyRecord, metric: str) -> StudyRecord:
    """The same study with another forgetting metric as its own."""
    frontier = record.config.frontier.model_copy(update={"forgetting": metric})
    return replace(record, config=record.config.model_copy(update={"frontier": frontier}))


def compared(pair: Matched) -> list[str]:
    """Both sides' forgetting and their difference, as cells."""
    at = pair.difference
    sides = [bounded(side, None, None) for side in (pair.forgetting_a, pair.forgetting_b)]
    return [*sides, bounded(at.value, at.low, at.high)]


def change(row: dict[str, Any]) -> str:
    """The change of one row of the results, with its interval."""
    return bounded(row["change"], row["change_low"], row["change_high"])


def bounded(value: float | None, low: float | None, high: float | None) -> str:
    """``value (low to high)`` with two decimals and a true minus sign."""
    if value is None or math.isnan(value):
        return "out of reach"
    bounds = "" if low is None or math.isnan(low) else f" ({low:.2f} to {high:.2f})"
    return f"{value:.2f}{bounds}".replace("-", "−")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
