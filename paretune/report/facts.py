"""What was run, on what, at what cost, and what was claimed: rows of text for the template."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from paretune.analyse.cost import costs
from paretune.analyse.record import StudyRecord
from paretune.errors import UserError
from paretune.report.findings import Findings
from paretune.report.style import group_colour, interval, number, seconds, tokens
from paretune.report.words import metric_note, sentence
from paretune.study.units import size

VERDICTS = ("supported", "contradicted", "unresolved")
# Costs in bytes that a status may hold beside its seconds
COSTS = {"peak_memory": "peak memory of its cohort", "checkpoint_bytes": "checkpoint"}


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
    time += [
        (name, _moment(provenance[name])) for name in known if provenance.get(name) is not None
    ]
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
    notes = [(metric, metric_note(metric)) for metric in findings.record.metrics()]
    return [
        (f"{sentence(findings.words(metric))} ({metric})", note) for metric, note in notes if note
    ]


def cost_rows(findings: Findings) -> dict[str, Any]:
    """What each series cost: seconds of device time, and bytes where the ledger knows them.

    ``frontier`` names the budgets at which the series is on the frontier when cost counts too.
    """
    record = findings.record
    table = costs(record, points=findings.points[findings.main])
    worth: dict[str, list[int]] = {}
    for arm, count in table.loc[table["on_cost_frontier"], ["arm", "tokens"]].itertuples(
        index=False
    ):
        worth.setdefault(arm, []).append(int(count))
    rows = []
    for one in findings.series:
        spent = [record.status.get(arm, {}) for arm in one.arms]
        each = sum(float(status.get("seconds") or 0) for status in spent) / len(spent)
        trained = sum(int(status.get("tokens") or 0) for status in spent) / len(spent)
        if not each:
            continue
        row = {
            "series": one.id,
            "name": one.name,
            "colour": group_colour(one.group),
            "arms": len(one.arms),
            "seconds": seconds(each),
            "duration": each,
            "rate": number(each / trained * 1e6, 3) if trained else "–",
            "frontier": ", ".join(
                tokens(count)
                for count in sorted({b for arm in one.arms for b in worth.get(arm, [])})
            ),
        }
        for key in COSTS:
            known = [float(status[key]) for status in spent if status.get(key) is not None]
            row[key] = size(max(known)) if known else None
        rows.append(row)
    return {
        "rows": rows,
        "extra": [(key, text) for key, text in COSTS.items() if any(row[key] for row in rows)],
    }


def claims_of(content: Any) -> dict[str, Any]:
    """The score card of claims as a ledger's claims.json states it; no rows where it has none.

    Raises:
        UserError: it is not what Paretune writes.
    """
    try:
        return _claims(_dict(content))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _not_ours("claims") from error


def _claims(content: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for claim in content.get("claims", []):
        low, high = claim["interval"] or (None, None)
        effect = claim["effect"]
        rows.append(
            {
                "sentence": claim["sentence"],
                "source": claim["source"],
                "verdict": claim["verdict"],
                "effect": number(effect, 3),
                "unit": "" if effect is None else claim["unit"],
                "sort": "" if effect is None else effect,
                "interval": _interval(low, high),
                "reason": claim["reason"],
                "resolve": claim["what_would_resolve_it"],
            }
        )
    counts = {name: sum(row["verdict"] == name for row in rows) for name in VERDICTS}
    return {"rows": rows, "counts": counts, "notes": content.get("notes", [])}


def _interval(low: float | None, high: float | None) -> str:
    """An interval that may be open on one side."""
    if low is None and high is not None:
        return f"at most {number(high, 3)}"
    if low is not None and high is None:
        return f"at least {number(low, 3)}"
    return interval(low, high, 3)


def advice_of(content: Any) -> dict[str, Any] | None:
    """Headline, reasons, next experiments and notes of a ledger's advice.json; None without one."""
    content = _dict(content)
    if not content.get("headline"):
        return None
    lists = {name: content.get(name) or [] for name in ("why", "next", "notes")}
    if not all(isinstance(lines, list) for lines in lists.values()):
        raise _not_ours("advice")
    return {"headline": content["headline"], **lists}


def _not_ours(name: str) -> UserError:
    return UserError(
        f"{name}.json: not what Paretune writes; remove it, or have it written anew by "
        f"`paretune {'advise' if name == 'advice' else name}`"
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _pairs(value: Any) -> list[tuple[str, str]]:
    return [
        (name, part if isinstance(part, str) else json.dumps(part, ensure_ascii=False))
        for name, part in _dict(value).items()
    ]


def _moment(value: Any) -> str:
    """A time as people write it; anything else as it is."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    if moment.utcoffset() is None:
        return str(value)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _source(value: Any) -> str:
    if isinstance(value, dict):
        # A column of the name that it has by default says nothing
        parts = {k: v for k, v in value.items() if v is not None and k not in ("from", v)}
        shown = ", ".join(f"{k} {v}" for k, v in parts.items())
        return f"{value.get('from', '')}{': ' if shown else ''}{shown}"
    return str(value or "")


def _count(part: dict[str, Any], *names: str) -> str:
    for name in names:
        if isinstance(part.get(name), int):
            return f"{part[name]:,}"
    return "–"
