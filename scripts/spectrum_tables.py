"""The text of a study's page of spectra: every number in it comes from the ledger."""

from __future__ import annotations

import math

import pandas as pd

from paretune.analyse.claims.verdict import Verdict
from paretune.report.findings import Findings
from paretune.report.spectrum_data import StudySpectra
from paretune.report.spectrum_table import moved_rows
from paretune.report.style import number, tokens

CLAIMS = (
    "update-rank-10-100x",
    "update-rank-grows",
    "update-rank-larger-in-mlp",
    "update-rank-larger-in-mlp-than-null",
)
SHOWN = {
    "spectrum-layers": "Rank by layer and module over tokens: the paper's Figure 6, with the null",
    "spectrum-tokens": "Rank over tokens, relative to noise, all arms",
    "spectrum-values": "Spectra of W0, W and the update of one attention and one MLP matrix",
    "spectrum-map": "Rank relative to noise, layer by module",
    "spectrum-truncation": "Learning and forgetting of the truncated update",
    "spectrum-frontier": "Truncated updates beside trained arms",
}


def page_text(
    findings: Findings, spectra: StudySpectra, judged: list[Verdict], drawn: list[str]
) -> str:
    """The whole page as Markdown."""
    chosen = findings.names[str(spectra.chosen)]
    table = spectra.of_chosen()
    last = int(table["tokens"].max())
    end = table[table["tokens"] == last]
    parts = [
        f"# {findings.record.config.name}: what moved in the weights\n\n"
        f"{findings.record.config.about}\n\n"
        f"The spectra of {_count(spectra)} of this study, against its base; "
        "[how the measures are defined](../../spectrum.md). Every number and figure is made by "
        f"`python scripts/make_spectrum_page.py {findings.record.config.name}` from "
        "[ledger.tar.xz](ledger.tar.xz) and [spectra.tar.xz](spectra.tar.xz).\n\n"
        f"`{chosen}` is the full arm that learned most. Its update holds 90% of its variance in "
        f"a rank of {_median(end, 'attention', 'rank90'):.0f} in attention and "
        f"{_median(end, 'mlp', 'rank90'):.0f} in MLP matrices (medians at {tokens(last)} tokens). "
        f"A random matrix of the same shape has {_median(end, 'attention', 'null_rank90'):.0f} and "
        f"{_median(end, 'mlp', 'null_rank90'):.0f}: the update reaches "
        f"{_median(end, 'attention', 'rank90_relative'):.2f} and "
        f"{_median(end, 'mlp', 'rank90_relative'):.2f} of noise's rank. "
        f"{_truncation_sentence(findings, spectra)}\n",
        "## What of the paper's section 4.6 holds here\n\n" + _section(spectra, judged),
        f"## Rank against tokens, `{chosen}`\n\n" + _over_tokens(table),
    ]
    if not spectra.truncation.empty:
        parts.append("## Truncated updates\n\n" + _truncations(findings, spectra))
    parts.append("## All arms at their last budget\n\n" + _all_arms(findings, spectra))
    parts += [
        f"## {title}\n\n![{title}]({name}.svg)\n" for name, title in SHOWN.items() if name in drawn
    ]
    return "\n".join(parts)


def _count(spectra: StudySpectra) -> str:
    """How many checkpoints of how many arms."""
    points = spectra.table[["arm", "tokens"]].drop_duplicates()
    return f"{len(points)} checkpoints of {points['arm'].nunique()} arms"


def _section(spectra: StudySpectra, judged: list[Verdict]) -> str:
    found = {verdict.claim: verdict for verdict in judged}
    lines = ["| the paper says | here | why |", "|---|---|---|"]
    for name in CLAIMS:
        one = found[name]
        lines.append(f"| {one.sentence} ({one.source}) | {one.verdict} | {_cell(one.reason)} |")
    lines += [_ends(spectra), _alike(spectra), _shape(spectra)]
    return "\n".join(lines) + "\n"


def _ends(spectra: StudySpectra) -> str:
    """First and last layers have lower ranks than those between."""
    table = spectra.of_chosen()
    table = table[table["tokens"] == table["tokens"].max()]
    by_layer = table.groupby("layer")["rank90"].mean().astype(float)
    inner = by_layer.iloc[1:-1].mean()
    first, last = by_layer.iloc[0], by_layer.iloc[-1]
    holds = "yes" if max(first, last) < by_layer.iloc[1:-1].min() else "in part"
    if min(first, last) > inner:
        holds = "no"
    return (
        "| First and last layers have lower ranks (section 4.6) | "
        f"{holds} | first {first:.0f}, last {last:.0f}, mean of those between {inner:.0f}, from "
        f"{by_layer.iloc[1:-1].min():.0f} to {by_layer.iloc[1:-1].max():.0f} (means over the "
        "matrices of a layer) |"
    )


def _alike(spectra: StudySpectra) -> str:
    """The spectra of W0 and W hardly differ."""
    table = spectra.of_chosen()
    table = table[table["tokens"] == table["tokens"].max()]
    moved = table["spectrum_mad_relative"].astype(float).median()
    base, tuned = (table[f"{of}_rank90"].astype(float).median() for of in ("base", "tuned"))
    return (
        f"| Base and tuned matrices have similar spectra | {'yes' if moved < 0.05 else 'in part'} "
        f"| singular values moved by {moved:.1%} of their mean (median over matrices); rank for "
        f"90%: W0 {base:.0f}, W {tuned:.0f} |"
    )


def _shape(spectra: StudySpectra) -> str:
    """The update's spectrum beside W0's and beside noise."""
    table = spectra.of_chosen()
    table = table[table["tokens"] == table["tokens"].max()]
    rank, base, noise = (
        table[name].astype(float).median() for name in ("rank90", "base_rank90", "null_rank90")
    )
    near = "yes" if abs(rank / base - 1) < 0.25 else "no"
    return (
        f"| The update's spectrum resembles the weights' own | {near} | rank for 90%: update "
        f"{rank:.0f}, W0 {base:.0f}, noise {noise:.0f} (medians over matrices) |"
    )


def _over_tokens(table: pd.DataFrame) -> str:
    names = "rank for 90% | of noise's | effective rank | stable rank | size, of W0's"
    lines = [f"| tokens | matrices | {names} |", "|---|---|---|---|---|---|---|"]
    columns = ("rank90", "rank90_relative", "effective_rank", "stable_rank", "frobenius_relative")
    for (count, kind), part in table.groupby(["tokens", "kind"], sort=True):
        cells = [number(float(part[name].astype(float).median()), 3) for name in columns]
        lines.append(f"| {tokens(int(count))} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Medians over matrices."]) + "\n"


def _all_arms(findings: Findings, spectra: StudySpectra) -> str:
    columns = {
        "rank90": "rank for 90%", "rank90_relative": "of noise's",
        "effective_rank": "effective rank", "stable_rank": "stable rank",
        "frobenius_relative": "size, of W0's", "intruders": "intruders",
        "control_intruders": "control's",
    }  # fmt: skip
    rows = moved_rows(findings, spectra)
    have = [name for name in columns if any(row[name] != "–" for row in rows)]
    lines = [
        "| arm | tokens | matrices | " + " | ".join(columns[name] for name in have) + " |",
        "|---" * (3 + len(have)) + "|",
    ]
    for row in rows:
        cells = " | ".join(str(row[name]) for name in have)
        lines.append(f"| {row['name']} | {row['budget']} | {row['kind']} | {cells} |")
    return "\n".join(lines) + "\n"


def _truncations(findings: Findings, spectra: StudySpectra) -> str:
    cuts = spectra.truncation
    parts = [
        "W0 plus the best rank-r part of each matrix's update, scored as the arms are; nothing was "
        "trained. Where the rest is `tuned`, embeddings and norms are the tuned model's at every "
        "rank; where it is `base`, they are the base's. Changes are from the base, with 95% "
        "intervals.\n"
    ]
    for (arm, count, rest), rows in cuts.groupby(["arm", "tokens", "rest"], sort=False):
        metrics = list(dict.fromkeys(rows["metric"]))
        parts.append(f"`{findings.names[arm]}` at {tokens(int(count))} tokens, the rest {rest}:\n")
        parts.append("| rank | of the update | " + " | ".join(map(findings.words, metrics)) + " |")
        parts.append("|---" * (2 + len(metrics)) + "|")
        order = rows["rank"].astype("float64").fillna(math.inf)
        for (at, scale), cut in rows.assign(order=order).groupby(["order", "scale"], sort=True):
            label = "all" if math.isinf(at) else f"{at:.0f}"
            label += "" if scale == 1 else f", times {scale:g}"
            cells = [_change(cut[cut["metric"] == metric]) for metric in metrics]
            energy = f"{cut['energy'].iloc[0]:.1%}"
            parts.append(f"| {label} | {energy} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _truncation_sentence(findings: Findings, spectra: StudySpectra) -> str:
    """How much of learning and of forgetting a small rank keeps."""
    cuts = spectra.truncation
    if cuts.empty:
        return ""
    cuts = cuts[(cuts["arm"] == spectra.chosen) & (cuts["rest"] == "tuned") & (cuts["scale"] == 1)]
    shares: dict[str, pd.Series[float]] = {}
    for metric in (findings.learning, findings.main):
        rows = cuts[cuts["metric"] == metric].set_index("rank")["change"].astype(float)
        if not rows.index.isna().any():
            return ""
        shares[metric] = rows[rows.index.notna()] / float(rows[rows.index.isna()].iloc[0])
    enough = shares[findings.learning][lambda share: share >= 0.9]
    if enough.empty:
        return ""
    rank = float(enough.index.min())
    forgot = float(shares[findings.main][rank])
    return (
        f"Cut to rank {rank:.0f}, it keeps {float(enough[rank]):.0%} of what it learned "
        f"({findings.words(findings.learning)}) and {forgot:.0%} of what it forgot "
        f"({findings.words(findings.main)})."
    )


def _change(rows: pd.DataFrame) -> str:
    if not len(rows) or rows["change"].isna().all():
        return "–"
    one = rows.iloc[0]
    return f"{one['change']:.3f} [{one['change_low']:.3f}, {one['change_high']:.3f}]"


def _median(table: pd.DataFrame, kind: str, column: str) -> float:
    return float(table.loc[table["kind"] == kind, column].astype(float).median())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
