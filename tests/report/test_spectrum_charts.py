"""Figures and table of spectra: drawn from what the ledger holds, absent where it holds none."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from headless_chromium import Page, binary
from synthetic_study import PROVENANCE, pocket_arms, study

from paretune.analyse.record import StudyRecord
from paretune.report.findings import Findings
from paretune.report.spectrum_charts import spectrum_figures
from paretune.report.spectrum_data import StudySpectra
from paretune.report.spectrum_table import moved_rows
from paretune.report.write import write_report
from paretune.spectrum.matrices import Matrix
from paretune.spectrum.measures import row
from paretune.spectrum.measuring import Found
from paretune.spectrum.singular import Spectrum, singular_values
from paretune.spectrum.store import Store

MODULES = (("self_attn.q_proj", "attention", 24, 24), ("mlp.up_proj", "mlp", 40, 24))
RANKS = (0, 1, 4, None)


def write_spectra(record: StudyRecord, folder: Path) -> str:
    """Real spectra of made-up matrices for every arm; returns the arm that was truncated."""
    generator = torch.Generator().manual_seed(0)
    for arm, config in record.arms.items():
        store = Store(folder / "arms" / arm, "tokens")
        for tokens in record.budgets:
            for layer in range(2):
                for name, kind, d_out, d_in in MODULES:
                    path = f"model.layers.{layer}.{name}.weight"
                    module = name.split(".")[1]
                    matrix = Matrix(path, path, layer, module, kind, d_out, d_in)
                    W0 = torch.randn(d_out, d_in, generator=generator)
                    rank = min(config.rank or 24, 24)
                    D = torch.randn(d_out, rank, generator=generator) @ torch.randn(
                        rank, d_in, generator=generator
                    )
                    delta = singular_values(0.01 * D)
                    if config.rank:
                        delta = Spectrum(delta.values[:rank], "factors")
                    base, tuned = singular_values(W0), singular_values(W0 + 0.01 * D)
                    values = {"base": base.values, "tuned": tuned.values, "delta": delta.values}
                    measures = row(matrix, delta, base, tuned)
                    store.add([(tokens, Found(tokens, measures, values))])
        store.finish()
    arm = next(arm for arm, config in record.arms.items() if config.method == "full")
    rows = [
        {
            "tokens": record.budgets[-1], "rank": rank, "scale": 1.0, "rest": "tuned",
            "energy": energy, "metric": metric, "side": side, "unit": unit, "value": 1.0,
            "stderr": 0.1, "n": 10, "change": change * (energy + 0.1),
            "change_low": change * energy, "change_high": change * (energy + 0.2),
        }
        for rank, energy in zip(RANKS, (0.0, 0.3, 0.6, 1.0), strict=True)
        for metric, side, unit, change in (
            ("target/bits_per_byte", "target", "bits/byte", 1.5),
            ("self_probe/kl", "source", "nats/token", 0.8),
        )
    ]  # fmt: skip
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "arms" / arm / "truncation.jsonl").write_text(text)
    return arm


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Findings, Path]:
    folder = tmp_path_factory.mktemp("spectra-report")
    record = study(provenance=PROVENANCE, arms=pocket_arms()[:4])
    write_spectra(record, folder)
    write_report(record, folder)
    return Findings.of(record), folder


def test_all_figures_are_drawn(written: tuple[Findings, Path]) -> None:
    findings, folder = written
    spectra = StudySpectra.of(findings, folder)
    assert spectra is not None
    names = {
        "spectrum-tokens", "spectrum-tokens-raw", "spectrum-layers", "spectrum-map",
        "spectrum-values", "spectrum-truncation", "spectrum-frontier",
    }  # fmt: skip
    assert set(spectrum_figures(findings, spectra)) == names
    assert names <= {path.stem for path in (folder / "figures").glob("*.svg")}
    assert (folder / "report.html").stat().st_size < 8_000_000


def test_the_chosen_arm_is_the_full_one_that_learned_most(written: tuple[Findings, Path]) -> None:
    findings, folder = written
    spectra = StudySpectra.of(findings, folder)
    assert spectra is not None
    results = findings.results
    last = results[
        (results["tokens"] == results["tokens"].max())
        & (results["metric"] == findings.learning)
        & (results["method"] == "full")
    ]
    assert spectra.chosen == last.sort_values("change")["arm"].iloc[-1]


def test_figures_hold_the_ledgers_numbers(written: tuple[Findings, Path]) -> None:
    """The lines over tokens are means of the tables; truncation ends at 100%."""
    findings, folder = written
    spectra = StudySpectra.of(findings, folder)
    assert spectra is not None
    charts = spectrum_figures(findings, spectra)
    drawn = charts["spectrum-tokens-raw"].to_dict(validate=False)
    data = next(iter(drawn["datasets"].values()))
    series = findings.series[0]
    tables = [pd.read_parquet(folder / "arms" / arm / "spectrum.parquet") for arm in series.arms]
    table = pd.concat(tables)
    for kind in ("attention", "mlp"):
        for tokens in findings.record.budgets:
            own = table[(table["kind"] == kind) & (table["tokens"] == tokens)]
            shown = [
                one["rank"]
                for one in data
                if (one["series"], one["kind"], one["tokens"]) == (series.id, kind, tokens)
            ]
            assert shown == [pytest.approx(own["rank90"].astype(float).mean())]
    curve = charts["spectrum-truncation"].to_dict(validate=False)
    rows = next(iter(curve["datasets"].values()))
    assert {one["share"] for one in rows if one["cut"] == "all"} == {1.0}
    assert len(rows) == 2 * len(RANKS)


def test_the_table_has_a_row_for_each_setting_and_kind(written: tuple[Findings, Path]) -> None:
    findings, folder = written
    spectra = StudySpectra.of(findings, folder)
    assert spectra is not None
    rows = moved_rows(findings, spectra)
    assert len(rows) == 2 * len(findings.series)
    assert {row["intruders"] for row in rows} == {"–"}  # they were not asked for
    page = (folder / "report.html").read_text()
    assert "What moved in the weights" in page


def test_a_study_without_spectra_says_nothing_of_them(pocket_report: Path) -> None:
    assert "What moved in the weights" not in (pocket_report / "report.html").read_text()
    assert not list((pocket_report / "figures").glob("spectrum-*"))


@pytest.mark.browser
@pytest.mark.skipif(binary() is None, reason="no chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws_them(written: tuple[Findings, Path], width: int, tmp_path: Path) -> None:
    _, folder = written
    tab = Page(tmp_path / "profile")
    try:
        tab.open(folder / "report.html", width, 16_000)
        visible = "[...document.querySelectorAll('.view')].filter(v => v.clientWidth)"
        tab.until(f"{visible}.length > 0 && {visible}.every(v => v.dataset.drawn)")
        shown = tab.evaluate(
            "[...document.querySelectorAll('.view[data-figure^=spectrum] svg')].length"
        )
        assert shown == 7
        assert tab.problems == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        tab.close()
