"""The answer in words: what the study shows, and no more than it shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from paretune.analyse.matched import Matched
from paretune.report.findings import Findings
from paretune.report.style import interval, number, seconds, tokens
from paretune.report.words import IN_SHORT, method_words, sentence, unit_words

SHOWN = 6  # arms named in a sentence before "and N more"
SURE = 0.95


@dataclass(frozen=True)
class Answer:
    """A headline, and facts that support it as pairs of a name and a sentence. Plain text."""

    headline: str
    facts: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Headline and facts as one paragraph."""
        return " ".join([self.headline, *(f"{name}: {fact}" for name, fact in self.facts)])


def answer(findings: Findings) -> Answer:
    """What the study answers, for a study in any state."""
    record = findings.record
    if not record.arms:
        return Answer("This study has no arms.")
    study = [("Study", _study(findings))]
    if findings.frontiers[findings.main].empty:
        return Answer(_nothing(findings), study)
    pairs = findings.compared
    if not pairs:
        group = findings.groups[findings.points[findings.main].points[0][0]]
        headline = f"Only {method_words(group)} has scores, so no methods are compared."
        return Answer(headline, [*_frontier(findings), *study])
    headline, sure = _headline(findings, pairs[0])
    facts = [*sure, *_axis(findings), *_frontier(findings), *_in_short(findings), *study]
    return Answer(headline, facts)


def measure(findings: Findings, metric: str) -> str:
    """Unit and metric behind a number: "nats per token of KL from the base on its own text"."""
    unit, words = unit_words(findings.unit(metric)), findings.words(metric)
    if words.startswith(unit):
        return words
    return f"of {words}" if unit in words else f"{unit} of {words}"


def _headline(findings: Findings, pair: Matched) -> tuple[str, list[tuple[str, str]]]:
    a, b = method_words(pair.a), method_words(pair.b)
    difference = pair.difference
    if difference.value is None or pair.level is None:
        reason = (difference.reason or "").removeprefix("cannot be compared: ")
        return f"{sentence(a)} and {b} cannot be compared at equal learning: {reason}.", []
    if pair.level <= 0:
        learned = findings.frontiers[findings.main]["learning"].max()
        who = "no arm" if learned <= 0 else "at least one of them never"
        reason = f"{who} learned anything by {findings.words(findings.learning)}"
        return f"{sentence(a)} and {b} cannot be compared at equal learning: {reason}.", []
    assert pair.forgetting_a is not None
    assert pair.forgetting_b is not None
    forgot = measure(findings, findings.main)
    amounts = [number(pair.forgetting_a, 3), number(pair.forgetting_b, 3)]
    level = (
        f"Better than the base by {number(pair.level, 3)} {measure(findings, findings.learning)}, "
        "the most that both reached."
    )
    equal = ("Equal learning", level)
    unit = unit_words(findings.unit(findings.main))
    if difference.low is None or difference.high is None:
        headline = f"At equal learning, {a} forgot {amounts[0]} and {b} {amounts[1]} {forgot}."
        return headline, [equal, ("How sure", f"{sentence(difference.reason or 'unknown')}.")]
    if difference.low <= 0 <= difference.high:
        headline = (
            f"At equal learning, it is open whether {a} or {b} forgets less: {amounts[0]} against "
            f"{amounts[1]} {forgot}."
        )
        sure = (
            f"The difference is {number(difference.value, 3)} {unit}, and its 95% interval, "
            f"{interval(difference.low, difference.high, 3)}, holds 0."
        )
        return headline, [equal, ("How sure", sure)]
    less, more = (a, b) if difference.value < 0 else (b, a)
    near, far = sorted((abs(difference.low), abs(difference.high)))
    if difference.value > 0:
        amounts.reverse()
    headline = (
        f"At equal learning, {less} forgot less than {more}: {amounts[0]} against {amounts[1]} "
        f"{forgot}."
    )
    sure = (
        f"The difference is {number(abs(difference.value), 3)} {unit} (95% interval "
        f"{interval(near, far, 3)}, over resampled items)."
    )
    return headline, [equal, ("How sure", sure)]


def _axis(findings: Findings) -> list[tuple[str, str]]:
    """Why learning is not shown by the metric that a reader expects; nothing where it is."""
    usual = findings.record.config.learning_metric()
    if findings.learning == usual or usual not in set(findings.results["metric"]):
        return []
    why = (
        f"Shown by {findings.words(findings.learning)}: by {findings.words(usual)} at least one "
        "method never learned anything."
    )
    return [("Learning", why)]


def _in_short(findings: Findings) -> list[tuple[str, str]]:
    """What the units of both axes mean; nothing where they speak for themselves."""
    units = dict.fromkeys(findings.unit(metric) for metric in (findings.main, findings.learning))
    known = [IN_SHORT[unit] for unit in units if unit in IN_SHORT]
    return [("In words", sentence("; ".join(known)) + ".")] if known else []


def _frontier(findings: Findings) -> list[tuple[str, str]]:
    frame = findings.frontiers[findings.main]
    kept = frame[frame["on_frontier"]]
    if kept.empty:
        nothing = "No arm learned anything at any budget: the base itself is the best choice."
        return [("Frontier", nothing)]
    sure = ""
    if frame["probability"].notna().all():
        count = int((kept["probability"] >= SURE).sum())
        share = "all" if count == len(kept) else "none" if not count else str(count)
        sure = f", {share} of them in at least {SURE:.0%} of resamples"
    series = {arm: one.name for one in findings.series for arm in one.arms}
    ordered = kept.sort_values("learning", ascending=False, kind="stable")
    names = list(dict.fromkeys(series[arm] for arm in ordered["arm"]))
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    most = frame.sort_values("learning", kind="stable").iloc[-1]
    return [
        (
            "Frontier",
            f"{len(kept)} of {len(frame)} points (an arm at a budget) "
            f"{'is' if len(kept) == 1 else 'are'} on the frontier{sure}. "
            f"From most learning to least: {shown}.",
        ),
        (
            "Learned most",
            f"{findings.names[most['arm']]} at {tokens(int(most['tokens']))} tokens: "
            f"learned {number(most['learning'], 3)} {unit_words(findings.unit(findings.learning))}"
            f", forgot {number(most['forgetting'], 3)} "
            f"{unit_words(findings.unit(findings.main))}.",
        ),
    ]


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


def _study(findings: Findings) -> str:
    """How much was run, on what, and how it ended."""
    record = findings.record
    counts: dict[str, int] = {}
    for arm in record.arms:
        state = record.state(arm)
        counts[state] = counts.get(state, 0) + 1
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    total = len(record.arms)
    repeats = total - len(findings.series)
    parts = [f"{total} arm{'s' * (total != 1)} ({states})"]
    if repeats:
        parts.append(f"{repeats} of them repeats under other seeds")
    if record.budgets:
        count = len(record.budgets)
        most = tokens(record.budgets[-1])
        parts.append(f"{count} budget{'s' * (count != 1)} up to {most} tokens")
    spent = record.provenance.get("seconds")
    if isinstance(spent, dict) and spent:
        parts.append(seconds(sum(float(value) for value in spent.values())))
    if record.provenance.get("device"):
        parts.append(f"on {record.provenance['device']}")
    return ", ".join(parts) + "."
