"""The report in headless Chromium: it draws, selects, sorts, and asks nothing of the network."""

from __future__ import annotations

from pathlib import Path

import pytest
from headless_chromium import Page, binary
from synthetic_study import PROVENANCE, many_arms, pocket_arms, study

from paretune.report.compare import Studied, compare_page
from paretune.report.findings import Findings
from paretune.report.write import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(binary() is None, reason="no chromium here: apt-get install chromium"),
]
FADED = (
    "[...document.querySelectorAll('.view svg')]"
    '.filter(s => s.querySelector(\'[fill-opacity="0.08"],[stroke-opacity="0.08"]\')).length'
)


@pytest.fixture
def report(pocket_report: Path) -> Path:
    return pocket_report / "report.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


def draw_all(tab: Page, report: Path, width: int, *, dark: bool = False) -> int:
    tab.problems.clear()
    tab.requests.clear()
    tab.open(report, width, 12_000, dark=dark)
    visible = "[...document.querySelectorAll('.view')].filter(v => v.clientWidth)"
    tab.until(f"{visible}.length > 0 && {visible}.every(v => v.dataset.drawn)")
    return int(tab.evaluate(f"{visible}.length"))


def check_layout(tab: Page, width: int) -> None:
    """Nothing is wider than the page, no text is cut, no two labels overlap."""
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # Marks in each chart, and no text beyond the edge of its drawing
    assert tab.evaluate(
        "[...document.querySelectorAll('.view svg')]"
        ".every(s => s.querySelectorAll('path').length > 8)"
    )
    cut = tab.evaluate(
        """[...document.querySelectorAll('.view svg')].flatMap(s => {
             const box = s.getBoundingClientRect();
             return [...s.querySelectorAll('text')].filter(t => {
               if (t.getAttribute('fill-opacity') === '0') return false;
               const r = t.getBoundingClientRect();
               return r.width && (r.left < box.left - 1 || r.right > box.right + 1
                 || r.top < box.top - 1 || r.bottom > box.bottom + 1);
             }).map(t => t.textContent);
           })"""
    )
    assert cut == []
    overlapping = tab.evaluate(
        """[...document.querySelectorAll('.view svg')].flatMap(s => {
             const found = [];
             s.querySelectorAll('.mark-text').forEach(axis => {
               const boxes = [...axis.querySelectorAll('text')]
                 .filter(t => t.getAttribute('opacity') !== '0')
                 .filter(t => t.getAttribute('fill-opacity') !== '0')
                 .map(t => [t.getBoundingClientRect(), t.textContent]).filter(([r]) => r.width);
               boxes.forEach(([a, x], i) => boxes.slice(i + 1).forEach(([b, y]) => {
                 if (a.left < b.right && b.left < a.right && a.top + 2 < b.bottom - 2
                   && b.top + 2 < a.bottom - 2) found.push(x + ' / ' + y);
               }));
             });
             return found;
           })"""
    )
    assert overlapping == []
    # Nothing on the page is wider than its box, but for what scrolls by itself
    assert (
        tab.evaluate(
            """[...document.querySelectorAll('body *')].filter(e =>
                 !e.closest('svg') && e.clientWidth && e.scrollWidth > e.clientWidth + 1
                 && !['auto', 'scroll'].includes(getComputedStyle(e).overflowX)
                 && !e.closest('select') && getComputedStyle(e).display !== 'inline'
               ).map(e => e.tagName + ' ' + e.className + ' ' + e.textContent.slice(0, 60))"""
        )
        == []
    )


@pytest.mark.parametrize(("width", "dark"), [(1920, False), (1280, True), (390, False)])
def test_every_chart_is_drawn_within_the_page(tab, report, width: int, dark: bool) -> None:
    assert draw_all(tab, report, width, dark=dark) == 9
    assert tab.problems == []
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    check_layout(tab, width)


def test_choosing_an_arm_changes_every_chart_and_table(tab, report) -> None:
    charts = draw_all(tab, report, 1280)
    assert tab.evaluate(FADED) == 0
    tab.evaluate(f"document.querySelector('.chip[data-series=\"{pocket_arms()[0].id}\"]').click()")
    tab.until(f"{FADED} === {charts}")
    assert tab.evaluate("document.querySelectorAll('.scores tr.is-chosen').length") == 3
    tab.evaluate("document.getElementById('clear').click()")
    tab.until(f"{FADED} === 0")


def test_choosing_a_point_in_a_chart_chooses_it_everywhere(tab, report) -> None:
    draw_all(tab, report, 1280)
    x, y = tab.evaluate(
        """(() => {
             const marks = [...document.querySelectorAll('.frontier .mark-symbol path')]
               .filter(p => p.getAttribute('fill') === '#d9600f');
             const r = marks.at(-1).getBoundingClientRect();
             return [r.left + r.width / 2, r.top + r.height / 2]; })()"""
    )
    tab.click(x, y)
    tab.until("document.querySelectorAll('.chip[aria-pressed=true]').length === 1")
    assert tab.evaluate(
        "document.querySelector('.chip[aria-pressed=true]').dataset.series"
    ).startswith("full")
    tab.until(f"{FADED} === 9")
    tab.click(x, y)  # once more: all arms again
    tab.until(f"{FADED} === 0")


def test_the_forgetting_metric_of_the_frontier_can_be_chosen(tab, report) -> None:
    draw_all(tab, report, 1280)
    tab.evaluate(
        "(s => { s.value = 'frontier-prose-cloze'; s.dispatchEvent(new Event('change')); })"
        "(document.getElementById('metric'))"
    )
    tab.until("!!document.querySelector('[data-figure=frontier-prose-cloze]').dataset.drawn")
    assert tab.evaluate(
        "document.querySelector('[data-figure=frontier-prose-cloze] svg').textContent"
    ).count("accuracy")


def test_tables_sort_by_numbers(tab, report) -> None:
    draw_all(tab, report, 1280)
    rows = "[...document.querySelectorAll('.scores tbody tr')]"
    column = f"{rows}.map(r => Number(r.cells[2].dataset.sort))"
    head = "document.querySelectorAll('.scores th')[2]"
    tab.evaluate(f"{head}.click()")
    values = tab.evaluate(column)
    assert values == sorted(values)
    tab.evaluate(f"{head}.click()")
    assert tab.evaluate(column) == sorted(values, reverse=True)
    assert tab.evaluate(f"{head}.getAttribute('aria-sort')") == "descending"


def test_the_budget_filter_hides_the_other_budgets(tab, report) -> None:
    draw_all(tab, report, 1280)
    tab.evaluate(
        "(s => { s.value = '50000'; s.dispatchEvent(new Event('change')); })"
        "(document.getElementById('budget'))"
    )
    assert tab.evaluate("document.querySelectorAll('.scores tbody tr:not([hidden])').length") == 9


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """Ten series under three seeds; one LoRA series forgot a hundred times what it should."""
    arms = [arm for arm in many_arms() if arm.learning_rate in (1e-3, 3e-3)]
    metrics = ("target/bits_per_byte", "self_probe/kl")
    record = study(arms=arms, metrics=metrics, provenance=PROVENANCE)
    whole = record.items
    (exploded,) = [a.id for a in arms if (a.rank, a.learning_rate, a.seed) == (64, 1e-3, 0)]

    def items(arm: str, tokens: int, metric: str):
        frame = whole(arm, tokens, metric)
        far = arm == exploded and metric == "self_probe/kl"
        return frame.assign(value=frame["value"] * 100) if far else frame

    record.items = items
    return write_report(record, tmp_path_factory.mktemp("many"))


@pytest.mark.parametrize("width", [1920, 1280, 390])
def test_many_arms_with_one_exploded_stay_legible(tab, many: Path, width: int) -> None:
    draw_all(tab, many, width)
    check_layout(tab, width)
    assert tab.problems == []
    assert "axis cut" in tab.evaluate(
        "document.querySelector('[data-figure=forgetting]').parentElement.textContent"
    )
    tops = "Math.max(...[...document.querySelectorAll('[data-figure=forgetting] "
    tops += ".role-axis-label text')].map(t => Number(t.textContent)).filter(Number.isFinite))"
    assert tab.evaluate(tops) < 2
    tab.evaluate("document.querySelector('[data-save=forgetting] [data-kind=whole]').click()")
    tab.until(f"{tops} > 5")


def test_a_chip_stands_for_all_seeds_and_a_group_for_all_rates(tab, many: Path) -> None:
    charts = draw_all(tab, many, 1280)
    assert tab.evaluate("document.querySelectorAll('.chip').length") == 10
    chip = "document.querySelector('.chip')"
    assert "×3" in tab.evaluate(f"{chip}.textContent")
    tab.evaluate(f"{chip}.click()")
    tab.until(f"{FADED} === {charts}")
    assert tab.evaluate("document.querySelectorAll('.scores tr.is-chosen').length") == 9
    tab.evaluate(f"{chip}.click()")
    tab.until(f"{FADED} === 0")
    whole = "document.querySelector('.group .whole')"
    tab.evaluate(f"{whole}.click()")
    pressed = "document.querySelectorAll('.chip[aria-pressed=true]').length"
    assert tab.evaluate(pressed) == 2
    assert tab.evaluate(f"{whole}.getAttribute('aria-pressed')") == "true"
    assert "2 chosen" in tab.evaluate("document.getElementById('clear').textContent")
    tab.evaluate(f"{whole}.click()")
    assert tab.evaluate(pressed) == 0
    tab.until(f"{FADED} === 0")


@pytest.mark.parametrize("width", [1920, 1280, 390])
def test_studies_side_by_side(tab, tmp_path: Path, width: int) -> None:
    two = ("target/bits_per_byte", "self_probe/kl")
    studies = [
        Studied(name, Findings.of(study(arms=pocket_arms()[::2], metrics=two, seed=seed, n=32)))
        for name, seed in (("one", 1), ("<b>two</b>", 2))
    ]
    page = tmp_path / "comparison.html"
    page.write_text(compare_page(studies))
    assert draw_all(tab, page, width) == 1
    check_layout(tab, width)
    assert tab.problems == []
    assert tab.evaluate("document.querySelectorAll('b').length") == 0
    tab.evaluate("document.querySelector('.chip').click()")
    tab.until(f"{FADED} === 1")


def test_names_of_the_base_do_not_become_elements(tab, tmp_path: Path) -> None:
    hostile = "</script><img src=x onerror=console.error('hit')>"
    two = ("target/bits_per_byte", "self_probe/kl")
    record = study(arms=pocket_arms()[:2], metrics=two, about=hostile, base=hostile)
    draw_all(tab, write_report(record, tmp_path), 1280)
    assert tab.problems == []
    assert tab.evaluate("document.images.length") == 0
