"""Write the page of a study with benchmark tasks, docs/studies/NAME/README.md, from its ledger.

Usage: python scripts/make_task_study_page.py NAME, after ``make_spectrum_page.py NAME STUDY_DIR``,
which packs the ledger. Every sentence and number is made here, so that none can differ from what
was measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

from make_spectrum_page import LEDGER, STUDIES, unpacked
from study_tables import at_equal_rate, change, groups, last, runs, table

from paretune import load
from paretune.analyse.results import to_csv
from paretune.files import write_bytes, write_text
from paretune.report.answer import answer
from paretune.report.figures import figures, specifications
from paretune.report.findings import Findings
from paretune.report.style import tokens
from paretune.report.write import render

FIGURES = {
    "frontier": "Learning against forgetting, an arm a line",
    "rate-learning": "Learning against learning rate",
    "rate-forgetting": "Forgetting against learning rate",
}


def page(folder: Path, findings: Findings, drawn: list[str]) -> str:
    """The whole page as Markdown."""
    record = findings.record
    name = record.config.name
    said = answer(findings)
    facts = "\n".join(f"- **{title}**: {fact}" for title, fact in said.facts)
    parts = [
        f"# {name}: the paper's own tasks at every budget\n\n{record.config.about}\n",
        f"**{said.headline}**\n\n{facts}\n",
        f"The study file is the recipe `{name}` (`paretune init {name}`). This page is made by "
        f"`python scripts/make_task_study_page.py {name}` from [{LEDGER}]({LEDGER}); all scores "
        "are in [results.csv](results.csv), and what moved in the weights is on [a page of its own]"
        "(spectrum.md).\n",
        f"## Time\n\n{share(findings)}\n\n{runs(folder)}\n",
        f"## The best arm of each method and rank\n\n{best(findings)}\n",
        f"## LoRA beside full finetuning at an equal rate\n\n{at_equal_rate(findings)}\n",
        f"## What it does not show\n\n{limits(findings)}\n",
    ]
    parts += [f"![{FIGURES[each]}]({each}.svg)\n" for each in drawn]
    return "\n".join(parts)


def share(findings: Findings) -> str:
    """Scoring's share of the time, in words."""
    spent = findings.record.provenance["seconds"]
    whole = sum(spent.values())
    config = findings.record.config
    tasks = [task.name for task in (*config.target.tasks, *config.source.tasks)]
    return (
        f"Scoring took {spent['score'] / whole:.0%} of {whole:.0f} s: {', '.join(tasks)} and bits "
        f"per byte, for {len(findings.record.arms)} arms at {len(findings.record.budgets)} budgets "
        f"and the base. Training took {spent['train'] / whole:.0%}."
    )


def best(findings: Findings) -> str:
    """Of each group the arm that learned most by the last budget: each metric and its change."""
    record = findings.record
    arms = []
    for group in groups(findings):
        own = [arm for arm in record.arms if findings.groups[arm] == group]
        scored = [arm for arm in own if findings.learning in last(findings, arm)]
        if scored:
            arms.append(
                max(scored, key=lambda arm: last(findings, arm)[findings.learning]["change"])
            )
    at = {arm: last(findings, arm) for arm in arms}

    def cell(arm: str, metric: str) -> str:
        row = at[arm].get(metric)
        return "" if row is None else f"{row['value']:.3f}, {change(row)}"

    rows = []
    for metric in record.config.metric_names():
        base = next((at[arm][metric]["base_value"] for arm in arms if metric in at[arm]), None)
        cells = [
            f"{at[arm][metric]['value']:.3f}, {change(at[arm][metric])}"
            if metric in at[arm]
            else ""
            for arm in arms
        ]
        rows.append([findings.words(metric), "" if base is None else f"{base:.3f}", *cells])
    head = ["metric", "base", *(record.arms[arm].label for arm in arms)]
    return (
        f"At {tokens(record.budgets[-1])} tokens: the value, and how much was learned or forgotten "
        f"with its 95% interval.\n\n{table(head, rows)}"
    )


def limits(findings: Findings) -> str:
    """What a reader should not conclude: metrics that hardly moved, and how much was run."""
    rows = findings.results
    rows = rows[(rows["tokens"] == findings.record.budgets[-1]) & (rows["method"] != "base")]
    still = []
    for metric in findings.record.config.metric_names():
        own = rows[rows["metric"] == metric]
        moved = (own["change_low"] > 0) | (own["change_high"] < 0)
        if not moved.any():
            still.append(findings.words(metric))
    seeds = rows["seed"].nunique()
    said = [
        f"- {seeds} seed{'s' if seeds > 1 else ''} of every arm, one base and one set of data: "
        "intervals are over items, not over runs."
    ]
    if still:
        said.append(
            f"- At the last budget no arm's interval leaves 0 out in these: {'; '.join(still)}. "
            "Their rows show what scoring costs; a change that small cannot be told from none."
        )
    return "\n".join(said)


def main() -> None:
    """Write the page, its figures and results.csv."""
    folder = STUDIES / sys.argv[1]
    with unpacked(folder) as study:
        findings = Findings.of(load(study))
        charts = figures(findings)
        shown = [name for name in FIGURES if name in charts]
        write_text(folder / "README.md", page(study, findings, shown))
        write_text(folder / "results.csv", to_csv(findings.results))
        for name, specification in specifications({n: charts[n] for n in shown}).items():
            write_bytes(folder / f"{name}.svg", render(specification)[0].encode())
    print(f"{folder} is written")


if __name__ == "__main__":
    main()
