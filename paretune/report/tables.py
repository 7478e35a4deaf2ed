"""The tables of results on the report page as plain rows of text, ready for the template."""

from __future__ import annotations

from typing import Any

import pandas as pd

from paretune.analyse.flips import flips
from paretune.analyse.record import BASE
from paretune.report.findings import Findings
from paretune.report.style import group_colour, interval, number, seconds, tokens
from paretune.report.words import sentence, unit_words


def scores(findings: Findings) -> dict[str, Any]:
    """One row per arm and budget (the base first), a value and a change per metric.

    The best of each column is marked among rows of arms: ``best`` is the best value.
    """
    results = findings.results
    metrics = findings.record.metrics()
    flipped = _flipped(findings)
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
                "words": sentence(findings.words(metric)),
                "unit": unit_words(str(rows["unit"].iloc[0])),
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
            "flips": flipped.get((str(row["arm"]), int(row["tokens"]), metric)),
            "best": row["arm"] != BASE and row["value"] == best.get(metric),
            "reason": None if pd.isna(row["reason"]) else str(row["reason"]),
        }
    place = {arm: index for index, arm in enumerate([BASE, *ordered(findings)])}
    series = {arm: one.id for one in findings.series for arm in one.arms}
    body = [
        {
            "arm": arm,
            "series": series.get(arm, BASE),
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


def _flipped(findings: Findings) -> dict[tuple[str, int, str], str]:
    """Items behind each change of an accuracy, by arm, budget and metric."""
    return {
        (row["arm"], int(row["tokens"]), row["metric"]): (
            f"{row['learned']} learned, {row['forgotten']} forgotten"
        )
        for row in flips(findings.record).to_dict("records")
    }


def ordered(findings: Findings) -> list[str]:
    """Arm ids as tables list them: by method, rank, learning rate, settings, seed."""
    return [arm for one in findings.series for arm in one.arms]


def chips(findings: Findings) -> list[dict[str, Any]]:
    """What the page's arms are chosen by: groups of methods, and in each its series."""
    rates = _rates(findings)
    groups: list[dict[str, Any]] = []
    for one in findings.series:
        if not groups or groups[-1]["name"] != one.group:
            colour = group_colour(one.group)
            groups.append({"name": one.group, "colour": colour, "series": []})
        states = [findings.record.state(arm) for arm in one.arms]
        other = {state: states.count(state) for state in dict.fromkeys(states) if state != "done"}
        note = ", ".join(
            state if count == len(states) else f"{count} {state}" for state, count in other.items()
        )
        groups[-1]["series"].append(
            {
                "id": one.id,
                "name": one.name,
                "short": one.short.removeprefix("lr "),
                "shape": rates.index(one.config.learning_rate),
                "colour": groups[-1]["colour"],
                "count": len(one.arms),
                "note": note,
            }
        )
    return groups


def _rates(findings: Findings) -> list[float]:
    return sorted({arm.learning_rate for arm in findings.record.arms.values()})


def arm_rows(findings: Findings) -> list[dict[str, Any]]:
    """Every arm with its settings, state, and where it stopped if it did."""
    rates = _rates(findings)
    series = {arm: one.id for one in findings.series for arm in one.arms}
    rows = []
    for arm in ordered(findings):
        config, status = findings.record.arms[arm], findings.record.status.get(arm, {})
        targets = config.targets
        rows.append(
            {
                "id": arm,
                "series": series[arm],
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
                "method": config.family,
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
