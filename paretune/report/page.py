"""The report page: one self-contained HTML file that opens offline and loads nothing."""

from __future__ import annotations

import json
import shlex
from functools import cache
from importlib import resources
from typing import Any

from paretune.report import facts, method_tables, tables
from paretune.report.answer import answer
from paretune.report.figures import MAIN
from paretune.report.findings import Findings
from paretune.report.spectrum_data import StudySpectra
from paretune.report.spectrum_table import moved_rows
from paretune.report.style import SHAPES
from paretune.report.words import unit_words


def page(
    findings: Findings,
    specifications: dict[str, dict[str, Any]],
    *,
    claims: Any = None,
    advice: Any = None,
    spectra: StudySpectra | None = None,
) -> str:
    """The page of a study, from its findings and its figures' Vega-Lite specifications.

    ``claims`` and ``advice`` are what the ledger's claims.json and advice.json hold. Names from
    the study are escaped wherever they appear. A content security policy forbids every network
    request.
    """
    record = findings.record
    arms = tables.arm_rows(findings)
    frontiers = {
        metric: name for metric, name in _frontier_names(findings).items() if name in specifications
    }
    return render_page(
        "page.html",
        specifications,
        name=record.config.name,
        about=record.config.about,
        answer=answer(findings),
        words={metric: findings.words(metric) for metric in [findings.learning, *findings.points]},
        learning=findings.learning,
        forgetting=findings.main,
        unit_x=unit_words(findings.unit(findings.learning)),
        unit_y=unit_words(findings.unit(findings.main)),
        arms=arms,
        chips_of=tables.chips(findings),
        troubled=[arm for arm in arms if arm["reason"] or arm["state"] in ("diverged", "failed")],
        left_out=_left_out(findings),
        frontiers=frontiers,
        pair=[name for name in MAIN if name in specifications],
        ablations=[name for name in specifications if name.startswith("ablation-")],
        others=[name for name in specifications if name.startswith("change-")],
        moved=[name for name in specifications if name.startswith("spectrum-")],
        spectra=moved_rows(findings, spectra) if spectra is not None else [],
        scores=tables.scores(findings),
        matched=tables.matched_rows(findings),
        levels=tables.level_rows(findings),
        rates=method_tables.rate_rows(findings),
        areas=method_tables.area_rows(findings),
        equal_rate=tables.equal_rate_rows(findings),
        claims=facts.claims_of(claims),
        advice=facts.advice_of(advice),
        costs=facts.cost_rows(findings),
        data=facts.data_rows(record),
        facts=facts.facts(record),
        notes=facts.metric_notes(findings),
        command=str(record.provenance.get("command") or ""),
        commands=_commands(findings),
        study_yaml=_study_yaml(findings),
        manifest=json.dumps(record.provenance.get("data") or {}, indent=1, ensure_ascii=False),
    )


def render_page(template: str, specifications: dict[str, dict[str, Any]], **values: Any) -> str:
    """A template of this folder with the figures, the styles and the scripts put in."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        glyphs=[Markup(_glyph(shape)) for shape in SHAPES],
        titles={name: spec["title"] for name, spec in specifications.items()},
        cut=[name for name, spec in specifications.items() if is_cut(spec)],
        style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
        vega=Markup(vega_bundle()),
        payload=Markup(embedded_json(specifications)),
        **values,
    )


def is_cut(specification: dict[str, Any]) -> bool:
    """Whether an axis of a figure leaves out far points until the reader asks for them."""
    layers = specification.get("layer", [])
    return any(
        "domainMin" in (channel.get("scale") or {})
        for layer in layers
        for channel in layer.get("encoding", {}).values()
        if isinstance(channel, dict)
    )


def embedded_json(value: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can close the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, from the installed vl-convert."""
    import vl_convert

    script = str(
        vl_convert.javascript_bundle(
            "window.vegaEmbed=vegaEmbed; window.vega=vega; window.vegaLite=vegaLite;"
        )
    )
    # In a function of its own, so that its hundreds of short names do not become globals
    return "(()=>{" + script.replace("</script", "<\\/script") + "\n})();"


def _frontier_names(findings: Findings) -> dict[str, str]:
    from paretune.report.figures import frontier_name

    return {metric: frontier_name(findings, metric) for metric in findings.points}


def _left_out(findings: Findings) -> list[dict[str, str]]:
    points = findings.points[findings.main]
    return [
        {"name": findings.names.get(arm, arm), "tokens": str(count), "reason": reason}
        for (arm, count), reason in sorted(points.left_out.items())
    ]


def _commands(findings: Findings) -> list[str]:
    """What to type to run the study again and to take an arm away."""
    name = findings.record.config.name
    folder = shlex.quote(name)
    lines = [f"paretune run study.yaml --out {folder}", f"paretune report {folder}"]
    frame = findings.frontiers[findings.main]
    if len(frame):
        best = frame.sort_values("learning", kind="stable").iloc[-1]
        point = f"{best['arm']}@{int(best['tokens'])}"
        lines.append(f"paretune export {folder} {point} --to exported")
    return lines


def _study_yaml(findings: Findings) -> str:
    import yaml

    content = findings.record.config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _glyph(shape: str) -> str:
    """The mark of a learning rate as an SVG path, drawn as Vega draws it."""
    paths = {
        "circle": "M5 0A5 5 0 1 1 -5 0A5 5 0 1 1 5 0Z",
        "square": "M-4.5 -4.5H4.5V4.5H-4.5Z",
        "triangle-up": "M0 -4.7L5.2 4.3H-5.2Z",
        "diamond": "M0 -6L6 0L0 6L-6 0Z",
        "cross": "M-5.5 -2H-2V-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5Z",
        "triangle-down": "M0 4.7L5.2 -4.3H-5.2Z",
        "triangle-right": "M4.7 0L-4.3 5.2V-5.2Z",
    }
    return paths[shape]


def _asset(name: str) -> str:
    return resources.files("paretune.report").joinpath(name).read_text(encoding="utf-8")
