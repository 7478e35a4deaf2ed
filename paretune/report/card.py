"""A model card for one arm at one budget: what it is, what it learned, and what it forgot."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from paretune.analyse.record import BASE, StudyRecord
from paretune.analyse.results import tidy
from paretune.data.template import PLAIN_PROMPT
from paretune.report.facts import data_rows
from paretune.report.series import Series, all_series
from paretune.report.style import interval, number, seconds
from paretune.report.words import metric_note, metric_words, sentence, unit_words

if TYPE_CHECKING:
    import pandas as pd

REGIMES = {"cpt": "continued pretraining on plain text", "ift": "instruction finetuning"}


def model_card(
    record: StudyRecord, arm: str, tokens: int, *, licence: str | None = None, merged: bool = False
) -> str:
    """Markdown with the metadata block that model hubs read.

    Args:
        arm: its id.
        tokens: the budget, in training tokens, at which it was scored.
        licence: the base's, where it is known.
        merged: the adapter is merged into the base's weights.
    """
    config = record.arms[arm]
    base = _base(record)
    adapter = config.method == "lora" and not merged
    series = next(one for one in all_series(record) if arm in one.arms)
    scored = record.scores
    mine = scored[((scored["arm"] == arm) & (scored["tokens"] == tokens)) | (scored["arm"] == BASE)]
    rows = tidy(replace(record, scores=mine))
    rows = rows[rows["arm"] == arm]
    kind = "LoRA adapter" if adapter else "model"
    about = f"\n{_plain(record.config.about)}\n" if record.config.about else ""
    return "\n".join(
        [
            *_metadata(record, base, licence, adapter=adapter),
            f"# {_plain(record.config.name)}: {_plain(series.name)}",
            "",
            f"A {kind} made from {_plain(base)} by {REGIMES[record.config.regime]}, and measured: "
            "what it learned of its target, and what it forgot of what the base could do.",
            about,
            "## What it learned and forgot",
            "",
            *_results(record, rows),
            "",
            *_seeds(record, series, tokens),
            "## How it was made",
            "",
            *_settings(record, arm, tokens, licence),
            "",
            "## Data",
            "",
            *_data(record),
            "",
            "## How to load it",
            "",
            *_loading(record, base, adapter=adapter),
            *_written(record),
            "",
            "## Limits",
            "",
            *_limits(record, rows, series),
            "",
            "## How to make it again",
            "",
            *_command(record, arm, tokens),
            "",
        ]
    )


def _metadata(record: StudyRecord, base: str, licence: str | None, *, adapter: bool) -> list[str]:
    fields: dict[str, Any] = {}
    if "/" in base and PurePath(base).parts[0] not in ("..", "."):
        fields["base_model"] = base
    fields["library_name"] = "peft" if adapter else "transformers"
    fields["pipeline_tag"] = "text-generation"
    if licence:
        fields["license"] = licence
    # JSON strings are YAML strings, whatever is in them
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    tags = ["paretune", record.config.regime, *(["lora"] if adapter else [])]
    return ["---", *lines, f"tags: {json.dumps(tags)}", "---", ""]


def _results(record: StudyRecord, rows: pd.DataFrame) -> list[str]:
    if rows.empty:
        return ["It has no scores at this budget."]
    lines = [
        "| metric | base | this | change | 95% interval | items |",
        "|---|--:|--:|--:|---|--:|",
    ]
    by_metric = {str(row["metric"]): row for row in rows.to_dict("records")}
    shown = [metric for metric in record.metrics() if metric in by_metric]
    for metric in shown:
        row = by_metric[metric]
        verb = "learned" if row["side"] == "target" else "forgot"
        change = f"{verb} {number(row['change'], 3)}"
        ends = interval(row["change_low"], row["change_high"], 3)
        cells = [
            f"{sentence(_words(record, metric))} ({unit_words(str(row['unit']))})",
            number(row["base_value"]),
            number(row["value"]),
            change if row["change"] == row["change"] else str(row["reason"]),
            ends,
            str(row["n"]),
        ]
        lines.append("| " + " | ".join(_plain(cell) for cell in cells) + " |")
    lines += [
        "",
        "Changes are against the base on the same items, signed so that more is learned (target) "
        "or forgotten (all other metrics). A change whose interval holds 0 is not established.",
    ]
    notes: dict[str, list[str]] = {}
    for metric in shown:
        notes.setdefault(metric_note(metric) or "", []).append(_words(record, metric))
    kept = [(note, names) for note, names in notes.items() if note]
    return [
        *lines,
        "",
        *(f"- {_plain(sentence('; '.join(names)))}: {note}" for note, names in kept),
    ]


def _seeds(record: StudyRecord, series: Series, tokens: int) -> list[str]:
    """How far the same settings under other seeds came."""
    scored = record.scores
    metrics = (record.learning_metric(), record.config.forgetting_metric())
    lines = []
    for metric in metrics:
        rows = scored[
            scored["arm"].isin(series.arms)
            & (scored["tokens"] == tokens)
            & (scored["metric"] == metric)
        ]
        values = [float(value) for value in rows["value"].dropna()]
        if len(values) > 1:
            lines.append(
                f"- {_plain(sentence(_words(record, metric)))}: {number(min(values))} to "
                f"{number(max(values))} over {len(values)} seeds"
            )
    return ["The same settings under several seeds:", "", *lines, ""] if lines else []


def _settings(record: StudyRecord, arm: str, tokens: int, licence: str | None) -> list[str]:
    config, training = record.arms[arm], record.config.training
    status = record.status.get(arm, {})
    targets = config.targets
    decay = f"{config.decay:g} (torch's convention: times the learning rate)"
    schedule = f"{config.schedule.shape}, warm-up {config.schedule.warmup}"
    batch = f"{training.batch_size} rows of {training.block_length} tokens"
    facts: list[tuple[str, Any]] = [
        ("base", _base(record) + _revision(record)),
        ("licence of the base", licence or "not known: see the base"),
        ("method", config.family),
        ("rank", config.rank),
        ("alpha", None if config.alpha is None else f"{config.alpha:g}"),
        ("adapted layers", "+".join(targets) if isinstance(targets, tuple) else targets),
        ("LoRA dropout", config.lora_dropout),
        ("LoRA+ ratio of learning rates, B to A", config.loraplus_lr_ratio),
        ("trained biases", config.bias),
        ("attention dropout", config.attention_dropout),
        ("learning rate", f"{config.learning_rate:g}"),
        ("schedule", schedule),
        ("optimizer", f"{config.optimizer}, betas {config.betas}"),
        ("weight decay", decay if config.decay else "none"),
        ("gradient clipping", config.clip),
        ("batch", batch),
        ("trained on", f"{tokens:,} tokens"),
        ("seed", config.seed),
        ("state", status.get("state")),
        ("device", record.provenance.get("device") or None),
        (
            "device time of the arm in all",
            seconds(float(status["seconds"])) if status.get("seconds") else None,
        ),
    ]
    reason = status.get("reason")
    if reason:
        facts.append(("stopped because", reason))
    rows = [f"| {name} | {_plain(value)} |" for name, value in facts if value is not None]
    return ["| setting | value |", "|---|---|", *rows]


def _data(record: StudyRecord) -> list[str]:
    rows = data_rows(record)
    if not rows:
        data = record.config.target.data.model_dump(mode="json", by_alias=True, exclude_none=True)
        text = _plain(json.dumps(data, ensure_ascii=False))
        return [f"Target: {text}. What was read is not recorded."]
    lines = ["| | source | rows | bad rows | SHA-256 begins |", "|---|---|--:|---|---|"]
    for row in rows:
        # A card travels: of a file it tells the name, not the place on this machine
        source = re.sub(r"(?<= )[~/]\S*/", "", row["source"])
        cells = [row["name"], source, row["rows"], row["bad"], row["sha256"]]
        lines.append("| " + " | ".join(_plain(cell) for cell in cells) + " |")
    return [*lines, "", "The licence of the data is not known to Paretune: check it before use."]


def _written(record: StudyRecord) -> list[str]:
    """How a prompt has to be written for the arm to answer it as it did when it was scored."""
    if record.config.regime != "ift":
        return []
    settings = record.provenance.get("data", {}).get("settings", {})
    template = settings.get("training.template", record.config.training.template)
    if template != "plain":
        return ["", "It was trained on the tokenizer's chat template: write prompts with it."]
    text = json.dumps(PLAIN_PROMPT.format(prompt="..."))
    return ["", f"A prompt was written as `{text}`, and the answer follows it: write yours alike."]


def _loading(record: StudyRecord, base: str, *, adapter: bool) -> list[str]:
    if not adapter:
        code = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
        ]
        return ["```python", *code, "```"]
    # As it was scored: transformers would take the type in which the base was saved
    on_cpu = "CPU" in str(record.provenance.get("device") or "CPU")
    dtype = "float32" if on_cpu else "bfloat16"
    code = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"name = {json.dumps(base)}",
        f'base = AutoModelForCausalLM.from_pretrained(name, dtype="{dtype}")',
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        "tokenizer = AutoTokenizer.from_pretrained(name)",
    ]
    if base == "pocket":  # inside the package
        code[0:0] = ["from importlib.resources import files", ""]
        code[5] = 'name = str(files("paretune.pocket") / "base")'
    return ["```python", *code, "```"]


def _limits(record: StudyRecord, rows: pd.DataFrame, series: Series) -> list[str]:
    most = int(rows["n"].max()) if len(rows) else 0
    lines = [
        "- Forgetting was measured on the metrics above and on nothing else; other abilities of "
        "the base, and its safety, were not looked at.",
        f"- Scores are over at most {most} items each; the intervals cover the choice of items"
        + (
            ", not that of the seed: the arm was trained once."
            if len(series.arms) == 1
            else ", not that of the seed: see the spread over seeds above."
        ),
        "- Learning is the fit to held-out data of the target's own kind, not usefulness.",
    ]
    if not record.provenance.get("data"):
        lines.append("- Nothing is recorded about the data that were read.")
    return lines


def _command(record: StudyRecord, arm: str, tokens: int) -> list[str]:
    folder = shlex.quote(record.config.name)
    # On one line, and so never the line that would end the block
    command = " ".join(str(record.provenance.get("command") or "").split())
    lines = [command] if command.strip("`~") else []
    lines.append(f"paretune export {folder} {arm}@{tokens} --to exported")
    versions = record.provenance.get("versions") or {}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return ["```sh", *lines, "```", *(["", f"Versions: {_plain(shown)}."] if shown else [])]


def _base(record: StudyRecord) -> str:
    """The base's name; of a folder elsewhere on the machine only its own name."""
    name = record.config.base.name
    return PurePath(name).name if PurePath(name).is_absolute() or name[:1] == "~" else name


def _revision(record: StudyRecord) -> str:
    revision = record.config.base.revision
    return f" at {revision}" if revision else ""


def _words(record: StudyRecord, metric: str) -> str:
    return metric_words(metric, record.config.regime)


def _plain(value: Any) -> str:
    """Text that is nothing but text in Markdown: no columns, lines, links or HTML of its own."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return text.replace("](", "]\\(").replace("`", "\\`")
