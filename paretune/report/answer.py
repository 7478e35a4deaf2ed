"""The answer in words: what the study shows, and no more than it shows."""

from __future__ import annotations

from paretune.analyse.matched import Matched
from paretune.report.findings import Findings
from paretune.report.style import interval, number, tokens

SHOWN = 6  # arms named in a sentence before "and N more"
SURE = 0.95


def answer(findings: Findings) -> tuple[str, str]:
    """The headline sentence and one that supports it, as plain text."""
    record = findings.record
    if not record.arms:
        return "This study has no arms.", ""
    if findings.frontiers[findings.main].empty:
        return _nothing(findings), _states(findings)
    pairs = findings.compared
    if not pairs:
        group = findings.groups[findings.points[findings.main].points[0][0]]
        headline = f"Only {_method(group)} has scores, so no methods are compared."
    else:
        headline = _headline(findings, pairs[0])
    return headline, _frontier(findings)


def _headline(findings: Findings, pair: Matched) -> str:
    unit_x, unit_y = findings.unit(findings.learning), findings.unit(findings.main)
    a, b = _method(pair.a), _method(pair.b)
    difference = pair.difference
    if difference.value is None or pair.level is None:
        reason = (difference.reason or "").removeprefix("cannot be compared: ")
        return f"{_cap(a)} and {b} cannot be compared at equal learning: {reason}."
    assert pair.forgetting_a is not None
    assert pair.forgetting_b is not None
    level = f"{number(pair.level, 3)} {unit_x}, the most that both reached"
    amounts = (pair.forgetting_a, pair.forgetting_b)
    if difference.low is None or difference.high is None:
        return (
            f"At equal learning ({level}), {a} forgot {number(amounts[0], 3)} and {b} "
            f"{number(amounts[1], 3)} {unit_y}; {difference.reason}."
        )
    if difference.low <= 0 <= difference.high:
        return (
            f"At equal learning ({level}), it is open whether {a} or {b} forgets less: "
            f"{number(amounts[0], 3)} against {number(amounts[1], 3)} {unit_y}, a difference of "
            f"{number(difference.value, 2)} (95% interval "
            f"{interval(difference.low, difference.high, 2)})."
        )
    less, more = (a, b) if difference.value < 0 else (b, a)
    near, far = sorted((abs(difference.low), abs(difference.high)))
    amounts = amounts if difference.value < 0 else (amounts[1], amounts[0])
    return (
        f"At equal learning ({level}), {less} forgot less than {more}: {number(amounts[0], 3)} "
        f"against {number(amounts[1], 3)} {unit_y}, a difference of "
        f"{number(abs(difference.value), 2)} (95% interval {interval(near, far, 2)})."
    )


def _frontier(findings: Findings) -> str:
    frame = findings.frontiers[findings.main]
    kept = frame[frame["on_frontier"]]
    if kept.empty:
        return "No arm learned anything at any budget: the base itself is the best choice."
    sure = ""
    if frame["probability"].notna().all():
        count = int((kept["probability"] >= SURE).sum())
        sure = f", {count} of them in at least {SURE:.0%} of resamples"
    arms = list(dict.fromkeys(kept.sort_values("learning", ascending=False)["arm"]))
    names = [findings.names[arm] for arm in arms]
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    most = frame.sort_values("learning", kind="stable").iloc[-1]
    return (
        f"{len(kept)} of {len(frame)} points (an arm at a budget) are on the frontier{sure}; "
        f"from most learning to least: {shown}. "
        f"{findings.names[most['arm']]} at {tokens(int(most['tokens']))} tokens learned most, "
        f"{number(most['learning'], 3)} {findings.unit(findings.learning)}, and forgot "
        f"{number(most['forgetting'], 3)} {findings.unit(findings.main)}."
    )


def _nothing(findings: Findings) -> str:
    record = findings.record
    states = [record.state(arm) for arm in record.arms]
    if states and all(state == "diverged" for state in states):
        return "Every arm diverged before its first score, so there is nothing to compare."
    points = findings.points[findings.main]
    if points.left_out:
        reasons = "; ".join(sorted(set(points.left_out.values())))
        return f"Learning and forgetting cannot be compared: {reasons}."
    scored = set(record.scores["arm"]) - {"base"}
    if not scored:
        return "No arm has been scored yet, so there is nothing to compare."
    return f"Learning and forgetting cannot be compared: {points.reason}."


def _states(findings: Findings) -> str:
    record = findings.record
    counts: dict[str, int] = {}
    for arm in record.arms:
        state = record.state(arm)
        counts[state] = counts.get(state, 0) + 1
    shown = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"Arms: {shown}."


def _method(group: str) -> str:
    name, _, rank = group.partition(" r")
    if name == "full":
        return "full finetuning"
    return f"LoRA of rank {rank}" if rank else "LoRA"


def _cap(text: str) -> str:
    return text[:1].upper() + text[1:]
