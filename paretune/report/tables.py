"""The tables of the report page as plain rows of text, ready for the template."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from paretune.analyse.record import BASE, StudyRecord
from paretune.report.findings import Findings
from paretune.report.style import group_colour, interval, number, seconds, tokens

METRIC_NOTES = {
    "bits_per_byte": "Negative log-likelihood in bits of the held-out text (for pairs: of the "
    "responses), divided by its UTF-8 bytes. Lower is better; independent of the tokenizer.",
    "cloze": "Share of questions in which the true continuation of a text is the likeliest of "
    "four of equal length. Higher is better; chance is 0.25.",
    "exact_match": "Share of prompts whose greedily generated answer equals the reference. Higher "
    "is better.",
    "self_probe/bits_per_byte": "Bits per byte of the self-probe, text sampled from the base. "
    "Lower is better; it rises as an arm finds the base's own text less likely.",
    "kl": "Kullback-Leibler divergence of the arm from the base, in nats per token, on text "
    "sampled once from the base itself (the self-probe). 0 for the base; the more an arm departs "
    "from what the base would say, the higher.",
}


def scores(findings: Findings) -> dict[str, Any]:
    """One row per arm and budget (the base first), a value and a change per metric.

    The best of each column is marked among rows of arms: ``best`` is the best value.
    """
    results = findings.results
    metrics = findings.record.metrics()
    heads = []
    best: dict[str, float] = {}
    for metric in metrics:
        rows = results[results["metric"] == metric]
        higher = bool(rows["higher_is_better"].iloc[0])
        values = rows.loc[rows["arm"] != BASE, "value"].dropna()
        if len(values) > 1:
            best[metric] = float(values.max() if higher else values.min())
        heads.append(
            {
                "metric": metric,
                "unit": str(rows["unit"].iloc[0]),
                "better": "higher" if higher else "lower",
                "change": "learned" if rows["side"].iloc[0] == "target" else "forgot",
            }
        )
    cells: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in results.to_dict("records"):
        metric = str(row["metric"])
        cells.setdefault((str(row["arm"]), int(row["tokens"])), {})[metric] = {
            "value": number(row["value"]),
            "sort": None if pd.isna(row["value"]) else float(row["value"]),
            "change": number(row["change"], 3),
            "interval": interval(row["change_low"], row["change_high"], 3),
            "n": int(row["n"]),
            "best": row["arm"] != BASE and row["value"] == best.get(metric),
            "reason": None if pd.isna(row["reason"]) else str(row["reason"]),
        }
    place = {arm: index for index, arm in enumerate([BASE, *ordered(findings)])}
    body = [
        {
            "arm": arm,
            "name": findings.names.get(arm, "base, untrained"),
            "colour": group_colour(findings.groups[arm]) if arm in findings.groups else None,
            "order": place.get(arm, len(place)),
            "tokens": count,
            "budget": tokens(count),
            "cells": [cells[arm, count].get(metric) for metric in metrics],
        }
        for arm, count in sorted(cells, key=lambda key: (place.get(key[0], len(place)), key[1]))
    ]
    budgets = sorted({count for arm, count in cells if arm != BASE})
    return {
        "heads": heads,
        "rows": body,
        "budgets": [(count, tokens(count)) for count in budgets],
    }


def ordered(findings: Findings) -> list[str]:
    """Arm ids as legends and tables list them: by method, rank, learning rate, name."""
    from paretune.analyse.record import group_order

    arms = findings.record.arms
    return sorted(
        arms,
        key=lambda arm: (
            group_order(findings.groups[arm]),
            arms[arm].learning_rate,
            findings.names[arm],
        ),
    )


def arm_rows(findings: Findings) -> list[dict[str, Any]]:
    """Every arm with its settings, state, and where it stopped if it did."""
    rates = sorted({arm.learning_rate for arm in findings.record.arms.values()})
    rows = []
    for arm in ordered(findings):
        config, status = findings.record.arms[arm], findings.record.status.get(arm, {})
        targets = config.targets
        rows.append(
            {
                "id": arm,
                "name": findings.names[arm],
                "group": findings.groups[arm],
                "colour": group_colour(findings.groups[arm]),
                "shape": rates.index(config.learning_rate),
                "state": findings.record.state(arm),
                "step": status.get("step"),
                "tokens": tokens(int(status.get("tokens") or 0)),
                "reason": status.get("reason"),
                "seconds": seconds(float(status.get("seconds") or 0)),
                "duration": float(status.get("seconds") or 0),
                "method": config.method,
                "rank": config.rank,
                "alpha": None if config.alpha is None else f"{config.alpha:g}",
                "targets": "+".join(targets) if isinstance(targets, tuple) else targets,
                "rate": f"{config.learning_rate:g}",
                "optimizer": config.optimizer,
                "decay": f"{config.decay:g}",
                "dropout": config.lora_dropout or config.attention_dropout,
                "clip": config.clip,
                "schedule": config.schedule.shape,
                "warmup": config.schedule.warmup,
                "seed": config.seed,
            }
        )
    return rows


def matched_rows(findings: Findings) -> list[dict[str, str]]:
    """Pairs of methods at the largest learning both reached, with the verdict in words."""
    rows = []
    for pair in findings.compared:
        difference = pair.difference
        verdict = "open: the interval holds 0"
        if difference.value is None or difference.low is None or difference.high is None:
            verdict = difference.reason or "cannot be compared"
        elif difference.low > 0 or difference.high < 0:
            verdict = f"{pair.a if difference.value < 0 else pair.b} forgot less"
        rows.append(
            {
                "a": pair.a,
                "b": pair.b,
                "level": number(pair.level, 3),
                "forgetting_a": number(pair.forgetting_a, 3),
                "forgetting_b": number(pair.forgetting_b, 3),
                "difference": number(difference.value, 3),
                "interval": interval(difference.low, difference.high, 3),
                "verdict": verdict,
            }
        )
    return rows


def level_rows(findings: Findings) -> dict[str, Any]:
    """Forgetting of each method at several levels of learning."""
    frame = findings.levels
    levels = list(dict.fromkeys(frame["learning"])) if len(frame) else []
    rows = []
    for group in dict.fromkeys(frame["group"]) if len(frame) else []:
        cells = []
        for row in frame[frame["group"] == group].to_dict("records"):
            undefined = pd.isna(row["forgetting"])
            cells.append(
                {
                    "value": number(row["forgetting"], 3),
                    "interval": interval(row["low"], row["high"], 3),
                    "reason": str(row["reason"]) if undefined else None,
                }
            )
        rows.append({"group": group, "cells": cells})
    return {"levels": [number(level, 3) for level in levels], "rows": rows}


def equal_rate_rows(findings: Findings) -> list[dict[str, str]]:
    """LoRA minus full at one learning rate and budget."""
    rows = []
    for row in findings.equal_rate.to_dict("records"):
        cells = {"rate": f"{row['learning_rate']:g}", "budget": tokens(int(row["tokens"]))}
        cells |= {"lora": findings.names[row["lora"]], "full": findings.names[row["full"]]}
        for name in ("learning", "forgetting"):
            reason = row[f"{name}_reason"]
            cells[name] = (
                f"{number(row[name], 3)} ({interval(row[f'{name}_low'], row[f'{name}_high'], 3)})"
                if not pd.isna(row[name])
                else str(reason)
            )
        rows.append(cells)
    return rows


def data_rows(record: StudyRecord) -> list[dict[str, str]]:
    """What was read, from the data manifest: counts, bad rows by reason, content hash."""
    manifest = record.provenance.get("data") or {}
    parts = [("training data", manifest.get("target")), ("held out", manifest.get("heldout"))]
    parts += [(f"source text {name}", text) for name, text in _dict(manifest.get("texts")).items()]
    rows = []
    for name, part in parts:
        part = _dict(part)
        if not part:
            continue
        bad = _dict(part.get("bad_rows"))
        rows.append(
            {
                "name": name,
                "source": _source(part.get("source")),
                "rows": _count(part, "rows_read", "kept", "rows"),
                "tokens": _count(part, "tokens"),
                "bytes": _count(part, "bytes_read", "kept_bytes"),
                "bad": ", ".join(f"{count} {why}" for why, count in bad.items()) or "none",
                "sha256": str(part.get("sha256") or "")[:16],
            }
        )
    return rows


def facts(record: StudyRecord) -> dict[str, list[tuple[str, str]]]:
    """Settings, hardware and time as pairs of a name and a value."""
    config, provenance = record.config, record.provenance
    training = config.training
    base = config.base.name + (f" at {config.base.revision}" if config.base.revision else "")
    setting = [
        ("base", base),
        (
            "regime",
            {"cpt": "continued pretraining", "ift": "instruction finetuning"}[config.regime],
        ),
        ("block length", f"{training.block_length} tokens"),
        ("batch size", f"{training.batch_size} rows"),
        ("budgets", ", ".join(str(b) for b in config.budgets.at) + f" ({config.budgets.mode})"),
        ("held-out items", str(config.target.items)),
    ]
    setting += [(f"base: {name}", text) for name, text in _pairs(provenance.get("base"))]
    machine = [("device", str(provenance["device"]))] if provenance.get("device") else []
    machine += _pairs(provenance.get("versions"))
    spent = _dict(provenance.get("seconds"))
    time = [(name, seconds(float(value))) for name, value in spent.items()]
    if spent:
        time.append(("in all", seconds(sum(float(value) for value in spent.values()))))
    known = ("started", "finished", "runs")
    time += [(name, str(provenance[name])) for name in known if provenance.get(name) is not None]
    shown = {"base", "device", "versions", "seconds", "command", "data", *known}
    other = [
        pair
        for name in provenance
        if name not in shown
        for pair in _pairs({name: provenance[name]})
    ]
    return {"setting": setting, "machine": machine + other, "time": time}


def metric_notes(findings: Findings) -> list[tuple[str, str]]:
    """How each scored metric is defined."""
    return [
        (metric, METRIC_NOTES[kind])
        for metric in findings.record.metrics()
        if (kind := metric if metric in METRIC_NOTES else metric.rsplit("/", 1)[-1]) in METRIC_NOTES
    ]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _pairs(value: Any) -> list[tuple[str, str]]:
    return [
        (name, part if isinstance(part, str) else json.dumps(part, ensure_ascii=False))
        for name, part in _dict(value).items()
    ]


def _source(value: Any) -> str:
    if isinstance(value, dict):
        parts = {k: v for k, v in value.items() if v is not None and k != "from"}
        shown = ", ".join(f"{k} {v}" for k, v in parts.items())
        return f"{value.get('from', '')}{': ' if shown else ''}{shown}"
    return str(value or "")


def _count(part: dict[str, Any], *names: str) -> str:
    for name in names:
        if isinstance(part.get(name), int):
            return f"{part[name]:,}"
    return "–"
