"""Hostile text in every field that is printed, opened in a real browser: no script of it runs.

Each field gets its own number, so that a script that did run would say which field let it in.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic_study
from headless_chromium import Page, binary
from synthetic_study import PROVENANCE, study

from paretune.analyse.record import StudyRecord
from paretune.report.card import model_card
from paretune.report.compare import Studied, compare_page
from paretune.report.findings import Findings
from paretune.report.write import write_report
from paretune.study.arms import ArmConfig

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(binary() is None, reason="no chromium here: apt-get install chromium"),
]
RAN = "window.ran ?? []"


class Numbered:
    """Hostile texts, each of which would tell its number."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.where: dict[int, str] = {}

    def __call__(self, where: str) -> str:
        number = next(self.numbers)
        self.where[number] = where
        run = f"(window.ran=window.ran||[]).push({number})"
        return (
            f"</script><script>{run}</script><img src=x onerror={run}>"
            f"\"'><svg onload={run}></title></style></textarea>-->]]>"
            f"<a href=javascript:{run}>x</a>[y](javascript:{run})"
            f"{{{{constructor.constructor('{run}')()}}}}`${{{run}}}`';{run}//\\u003cscript"
        )


def poisoned(value: Any, hostile: Numbered, where: str) -> Any:
    """A value of JSON with every text, and every name of a field of ``data``, made hostile."""
    if isinstance(value, str):
        return value + hostile(where)
    if isinstance(value, dict):
        return {k: poisoned(v, hostile, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, hostile, where) for v in value]
    return value


@pytest.fixture(scope="module")
def hostile() -> Numbered:
    return Numbered()


@pytest.fixture(scope="module")
def record(hostile: Numbered) -> Iterator[StudyRecord]:
    """A study in which the names of everything are hostile, past what study files allow."""
    prose, task = hostile("name of a text"), hostile("name of a task")
    own = {
        f"{prose}/bits_per_byte": ("source", "bits/byte" + hostile("a unit"), False),
        f"{task}/acc": ("source", "accuracy", True),
    }
    with pytest.MonkeyPatch.context() as patch:
        for metric, facts in own.items():
            patch.setitem(synthetic_study.METRICS, metric, facts)
        arms = [
            ArmConfig(method="full", learning_rate=1e-3),
            ArmConfig(method="lora", rank=4, learning_rate=1e-3, targets=(hostile("a target"),)),
            ArmConfig(method="lora", rank=4, learning_rate=4e-3, targets=(hostile("a target"),)),
            ArmConfig(method="lora", rank=16, learning_rate=4e-3),
        ]
        reason = hostile("a reason")
        record = study(
            arms=arms,
            budgets=(50_000, 100_000),
            metrics=("target/bits_per_byte", "self_probe/kl", *own),
            provenance=poisoned(PROVENANCE, hostile, "provenance"),
            status={arms[3].id: {"state": "diverged", "step": 3, "tokens": 9, "seconds": 1.0,
                                 "diverged_at": 3, "reason": reason}},
            about=hostile("about"),
            base=hostile("the base"),
        )  # fmt: skip
        config = record.config
        source = config.source.model_copy(
            update={"texts": (config.source.texts[0].model_copy(update={"name": prose}),)}
        )
        config = config.model_copy(update={"name": hostile("the study"), "source": source})
        data = record.provenance["data"]
        data["texts"] = {prose: data["texts"]["prose"]}
        yield dataclasses.replace(record, config=config)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


def used(tab: Page, page: Path) -> list[int]:
    """Open a page, draw it all, point at marks, press what can be pressed; the scripts that ran."""
    tab.problems.clear()
    tab.open(page, 1280, 12_000)
    visible = "[...document.querySelectorAll('.view')].filter(v => v.clientWidth)"
    tab.until(f"{visible}.every(v => v.dataset.drawn)")
    tab.evaluate(
        """document.querySelectorAll('.view svg path, .view svg g').forEach(mark => {
             for (const kind of ['pointerover', 'pointermove', 'mouseover', 'mousemove'])
               mark.dispatchEvent(new MouseEvent(kind, {bubbles: true, clientX: 9, clientY: 9}));
           })"""
    )
    tab.evaluate(
        """document.querySelectorAll('button:not(.save button), th, summary, .chip, select')
             .forEach(e => { e.click(); e.dispatchEvent(new Event('change', {bubbles: true})); })"""
    )
    tab.evaluate("new Promise(done => setTimeout(done, 300))")
    ran = tab.evaluate(RAN)
    assert isinstance(ran, list)
    return [int(number) for number in ran]


def test_the_texts_would_run_if_they_were_not_escaped(
    tab: Page, tmp_path: Path, hostile: Numbered
) -> None:
    """The test of the test: plain HTML, in an element, an attribute and a script."""
    page = tmp_path / "page.html"
    for before, after in (("<p>", "</p>"), ('<p title="', '">'), ("<script>x='", "'</script>")):
        text = hostile("the test of the test")
        page.write_text(f"<!DOCTYPE html><title>x</title>{before}{text}{after}")
        tab.open(page, 800)
        tab.until(f"({RAN}).length > 0")


def test_report(tab: Page, tmp_path: Path, record: StudyRecord, hostile: Numbered) -> None:
    said = {
        "claims": {
            "study": "s", "learning": "l", "forgetting": "f", "notes": ["note"],
            "claims": [{
                "claim": "learns-less", "sentence": "it learns less", "verdict": "supported",
                "effect": 1.0, "interval": [0.5, 1.5], "unit": "bits", "reason": "why",
                "what_would_resolve_it": "more", "source": "the paper",
            }],
        },
        "advice": {
            "headline": "take it", "why": ["since"], "next": ["then"], "notes": ["note"],
            "choice": None, "table": [], "limit": None, "learning_metric": "l",
            "forgetting_metric": "f",
        },
    }  # fmt: skip
    for name, value in said.items():
        text = poisoned(value, hostile, name)
        if name == "claims":
            text["claims"][0]["verdict"] = "supported"
        (tmp_path / f"{name}.json").write_text(json.dumps(text))
    page = write_report(record, tmp_path)
    assert [hostile.where[number] for number in used(tab, page)] == []
    assert tab.problems == []
    shown = tab.evaluate("document.body.textContent")
    missing = [
        where for number, where in hostile.where.items()
        if f"push({number})" not in shown and where in ("about", "the study", "a reason")
    ]  # fmt: skip
    assert missing == [], "shown as text, not left out"
    assert tab.evaluate("document.querySelectorAll('img, a[href^=javascript]').length") == 0
    pictures = sorted((tmp_path / "figures").glob("*.svg"))
    assert pictures
    for picture in pictures:
        tab.open(picture, 1280)
        assert tab.evaluate(RAN) == [], picture.name


def test_comparison(tab: Page, tmp_path: Path, record: StudyRecord, hostile: Numbered) -> None:
    studies = [Studied(hostile("a study's name"), Findings.of(record)) for _ in range(2)]
    page = tmp_path / "comparison.html"
    page.write_text(compare_page(studies))
    assert [hostile.where[number] for number in used(tab, page)] == []
    assert tab.problems == []


def test_model_card(tab: Page, tmp_path: Path, record: StudyRecord, hostile: Numbered) -> None:
    """As a hub would show it, by a renderer that lets HTML through."""
    from markdown_it import MarkdownIt

    for arm in record.arms:
        text = model_card(record, arm, 100_000, licence=hostile("the licence"))
        _, _, body = text.split("---\n", 2)
        page = tmp_path / "card.html"
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
        page.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>x</title>{html}")
        tab.open(page, 1280)
        tab.evaluate("document.querySelectorAll('a').forEach(a => a.click())")
        ran = tab.evaluate(RAN)
        assert [hostile.where[number] for number in ran] == []
        assert tab.evaluate("document.querySelectorAll('script, img, svg, a').length") == 0
