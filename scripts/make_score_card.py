"""Write docs/paper-score-card.md: the published claims, judged on the paper's own tables."""

from __future__ import annotations

import textwrap
from pathlib import Path

from paretune.analyse.claims.card import CLAIMS, verdicts
from paretune.analyse.claims.paper import NOTES, SETTINGS, paper_evidence, published
from paretune.analyse.claims.verdict import Verdict

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper-score-card.md"
Cards = dict[str, dict[str, Verdict]]  # setting -> claim -> verdict

HEAD = """\
# The score card of the paper's own tables

*LoRA Learns Less and Forgets Less* (Biderman et al., TMLR 2024, arXiv 2405.09673v2) prints {count}
points of learning and forgetting in its Tables S1-S13: full finetuning and LoRA of rank 16, 64 and
256, at several budgets, in five settings. `paretune claims` judges claims on a study; here the same
code judges them on those points. `make docs` writes this page.

A claim is **supported** when each of its comparisons goes its way, **contradicted** when at least
one goes the other way, and **unresolved** otherwise: at 5%, with Holm's correction over the
comparisons of a claim. The effect shown is that of the comparison that decided, the one that speaks
most against the claim, with its 95% interval. A positive effect speaks for the claim.

## What the errors are

{notes}

So each claim is judged twice. The verdict takes the errors of all points as independent; "shared"
takes an arm's error to be the same at all its budgets, so that a mean over budgets is no surer than
one of them. "Shared" bounds the error of a mean over budgets from above. "Independent" is right
only as far as what is lost by not comparing on the same problems makes up for what budgets share.
Where the two differ, the tables alone do not settle the claim; outcomes item by item would.

"LoRA forgets less at matched learning" is tested by interpolation: between the points of each
method, along the lower convex hull of forgetting against learning, never beyond what was learned.
The effect is the mean over the learning that full and one rank both cover. Here the shared reading
is not always the more careful one, as it moves a whole curve at once.

## All of it at a glance

"supported*" and the like: with errors shared over an arm's budgets the verdict is another.

"""
DISAGREE = """
## Where text and table disagree

1. **Code IFT, rank 64, 16 epochs.** Section 4.2 prints a forgetting score of .509; the table prints
   .510, which is used here. {slip}
2. **pass@k.** The main text says that full finetuning solves more problems for k below 64 and as
   many as rank 256 from there; appendix F says that it is better at every k. The tables hold
   neither, since the figure has no table, so no claim here rests on it.

"""
UNTESTED = """\
## What the tables cannot say

These claims need more than the tables hold, or rest on a figure without a table. They are
unresolved here; `paretune claims` judges them on a study that has what they need.

"""


def judge(shared: bool) -> Cards:
    """Every claim on every setting."""
    return {
        name: {v.claim: v for v in verdicts(paper_evidence(name, shared_noise=shared))}
        for name in SETTINGS
    }


def page() -> str:
    """The whole page."""
    cards, cautious = judge(False), judge(True)
    tested = [c for c in CLAIMS if any(card[c.id].effect is not None for card in cards.values())]
    parts = [
        HEAD.format(
            count=len(published()), notes="\n".join(_wrap(f"- {note}", "  ") for note in NOTES)
        ),
        _table(
            ["claim", *(about.title for about in SETTINGS.values())],
            [
                [
                    f"[{claim.sentence}](#{claim.id})",
                    *(_short(cards[name][claim.id], cautious[name][claim.id]) for name in SETTINGS),
                ]
                for claim in tested
            ],
        ),
    ]
    for claim in tested:
        parts.append(f'\n<a id="{claim.id}"></a>\n\n## {claim.sentence}\n\n')
        parts.append(
            _table(
                ["setting", "verdict", "shared", "effect [95% interval]", "n", "why"],
                [
                    _row(SETTINGS[name].title, cards[name][claim.id], cautious[name][claim.id])
                    for name in SETTINGS
                ],
            )
        )
    parts.append(DISAGREE.format(slip=_slip(cards["code_ift"])))
    parts.append(UNTESTED)
    parts.append(
        _table(
            ["claim", "source", "what would resolve it"],
            [[c.sentence, c.source, c.needs] for c in CLAIMS if c not in tested],
        )
    )
    return "".join(parts)


def _short(one: Verdict, shared: Verdict) -> str:
    if one.effect is None and not one.parts:
        return "does not apply"
    return one.verdict + ("*" if shared.verdict != one.verdict else "")


def _row(title: str, one: Verdict, shared: Verdict) -> list[str]:
    if one.effect is None:
        return [title, one.verdict, shared.verdict, "", "", one.reason]
    interval = "no interval" if one.low is None else f"[{one.low:.3f}, {one.high:.3f}]"
    reason = one.reason + (f". Would resolve it: {one.resolve}" if one.resolve else "")
    return [
        title,
        f"**{one.verdict}**",
        shared.verdict,
        f"{one.effect:.3f} {interval}",
        f"{one.n:,}",
        reason,
    ]


def _slip(code_ift: dict[str, Verdict]) -> str:
    """Whether the number in the text would change a verdict."""
    table = published()
    where = (table["setting"] == "code_ift") & (table["arm"] == "r64") & (table["budget"] == 16)
    assert table.loc[where, "source_score"].tolist() == [0.51]
    table.loc[where, "source_score"] = 0.509
    changed = [
        replaced.claim
        for replaced in verdicts(paper_evidence("code_ift", table=table))
        if replaced.verdict != code_ift[replaced.claim].verdict
    ]
    if changed:
        return f"With the text's number the verdict changes on: {', '.join(changed)}."
    return "With the text's\n   number every verdict on this page stays as it is."


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _wrap(text: str, indent: str) -> str:
    return textwrap.fill(text, 100, subsequent_indent=indent)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written")
