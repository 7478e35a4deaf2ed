"""The report of studies in every state: files, tables, words, escaping."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_study import METRICS, config, items_frame, pocket_arms, record_of, study

from paretune.report.answer import answer
from paretune.report.card import model_card
from paretune.report.compare import Studied, compare_page, differences, shared_metrics
from paretune.report.facts import data_rows, facts
from paretune.report.figures import figures, specifications
from paretune.report.findings import Findings
from paretune.report.method_tables import area_rows, rate_rows
from paretune.report.page import embedded_json, page
from paretune.report.style import group_colour, interval, number, seconds, tokens
from paretune.report.words import metric_words
from paretune.report.write import write_report
from paretune.study.arms import ArmConfig


class Reader(HTMLParser):
    """Text of the page outside scripts, and every address it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._skip = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._skip = tag in ("script", "style")
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        self._skip = False

    def handle_data(self, data):
        if not self._skip:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def words_of(record) -> str:
    findings = Findings.of(record)
    return Reader(page(findings, specifications(figures(findings)))).text


def test_every_file_is_there_and_is_what_its_name_says(pocket_report: Path) -> None:
    table = pd.read_parquet(pocket_report / "results.parquet")
    again = pd.read_csv(pocket_report / "results.csv", float_precision="round_trip")
    assert len(table) == len(again) == 125
    assert np.array_equal(table["change"].to_numpy(), again["change"].to_numpy(), equal_nan=True)
    names = {path.stem for path in (pocket_report / "figures").glob("*.svg")}
    assert {"frontier", "learning", "forgetting", "rate-learning", "loss"} <= names
    assert names == {path.stem for path in (pocket_report / "figures").glob("*.png")}
    for name in names:
        assert (pocket_report / "figures" / f"{name}.svg").read_text().startswith("<svg")
        png = (pocket_report / "figures" / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert width > 1000
        assert height > 600
    assert not list(pocket_report.rglob("*.tmp"))
    headline = (pocket_report / "answer.txt").read_text().splitlines()[0]
    assert headline == answer(Findings.of(study())).headline
    assert (pocket_report / "report.html").stat().st_size < 8_000_000


def test_results_are_the_same_to_the_byte_each_time(pocket_report: Path, tmp_path: Path) -> None:
    findings = Findings.of(study(provenance={"started": "another time"}))
    from paretune.analyse.results import to_csv

    assert to_csv(findings.results) == (pocket_report / "results.csv").read_text()


def test_the_page_loads_nothing(pocket_report: Path) -> None:
    text = (pocket_report / "report.html").read_text()
    reader = Reader(text)
    assert reader.addresses == ["data:,"]
    assert not {"link rel=stylesheet", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(\s*['\"]?(?!data:)", re.sub(r"(?s)<script.*", "", text))


def test_the_page_says_what_was_found_and_what_was_run(pocket_report: Path) -> None:
    text = Reader((pocket_report / "report.html").read_text()).text
    assert re.search(
        r"full finetuning forgot less than LoRA: 0\.\d+ against 0\.\d+ nats per token of KL from "
        "the base on its own text",
        text,
    )
    assert "95% interval" in text
    assert "paretune run made-up.yaml" in text
    assert "paretune run study.yaml --out made-up" in text
    assert "two CPU cores" in text
    assert "2 min 0 s" in text
    assert "2 not UTF-8" in text
    assert "1,234" in text
    for arm in pocket_arms():
        assert arm.label in text
    for metric in METRICS:
        assert metric_words(metric) in text.replace("Bits", "bits").replace("Cloze", "cloze")


def test_methods_are_told_apart_by_rate_area_and_cost(pocket_report: Path) -> None:
    findings = Findings.of(study())
    rates = {row["group"]: row for row in rate_rows(findings)}
    assert list(rates) == ["full", "lora r4", "lora r16", "lora r64"]
    assert rates["full"]["best"] == "0.001"
    assert rates["full"]["open"] == "at the end of those tried"
    assert rates["lora r4"]["ratio"] == "4"
    areas = [row["group"] for row in area_rows(findings)]
    assert areas == ["all arms", "full", "lora", "lora r4", "lora r16", "lora r64"]
    one_rate = study(arms=[arm for arm in pocket_arms() if arm.learning_rate == 1e-3])
    assert rate_rows(Findings.of(one_rate)) == []
    text = Reader((pocket_report / "report.html").read_text()).text
    for words in ("Methods as a whole", "worth its cost at", "In words", "learned, "):
        assert words in text


def test_items_that_flipped_stand_under_an_accuracy() -> None:
    record = study(arms=pocket_arms()[:1], budgets=(50_000,))
    arm = pocket_arms()[0].id
    before, after = (
        record.items(*of, "prose/cloze")["value"] for of in (("base", 0), (arm, 50_000))
    )
    learned, forgotten = int((before < after).sum()), int((before > after).sum())
    assert forgotten > 0
    assert f"{learned} learned, {forgotten} forgotten" in words_of(record)


def test_values_are_shown_as_people_write_them() -> None:
    data = {"source": {"from": "json", "path": "a.jsonl", "text": "text", "group": "title"}}
    told = {"data": {"target": data}, "started": "2026-11-24T03:27:08+02:00", "finished": "never"}
    record = study(arms=pocket_arms()[:1], budgets=(50_000,), provenance=told)
    assert data_rows(record)[0]["source"] == "json: path a.jsonl, group title"
    shown = dict(facts(record)["time"])
    assert shown["started"] == "2026-11-24 01:27 UTC"
    assert shown["finished"] == "never"


def test_the_frontier_chart_holds_all_arms(pocket_report: Path) -> None:
    text = (pocket_report / "report.html").read_text()
    payload = re.search(r'id="figures">(.*?)</script>', text, re.DOTALL).group(1)
    shown = json.loads(payload)["frontier"]
    rows = [row for values in shown["datasets"].values() for row in values]
    assert {row["arm"] for row in rows if "arm" in row} == {arm.id for arm in pocket_arms()}


def test_the_study_file_on_the_page_gives_the_study_again(pocket_report: Path) -> None:
    import yaml

    from paretune.report.page import _study_yaml
    from paretune.study.config import StudyConfig

    findings = Findings.of(study(arms=pocket_arms()[:1], budgets=(50_000,)))
    again = StudyConfig.model_validate(yaml.safe_load(_study_yaml(findings)))
    assert again == config()


TWO = ("target/bits_per_byte", "self_probe/kl")  # enough metrics for a frontier

HOSTILE = "</script><script>alert('x')</script><b>&amp;"


def test_hostile_names_are_text(tmp_path: Path) -> None:
    arms = [ArmConfig(method="lora", rank=4, learning_rate=1e-3, targets=(HOSTILE,))]
    arms.append(ArmConfig(method="lora", rank=4, learning_rate=1e-3, targets=("b",)))
    record = study(
        arms=arms,
        budgets=(50_000,),
        metrics=TWO,
        about=HOSTILE,
        base=HOSTILE,
        provenance={"device": HOSTILE, "data": {"target": {"source": HOSTILE, "rows": 1}}},
        status={arms[0].id: {"state": "diverged", "step": 3, "reason": HOSTILE}},
    )
    text = write_report(record, tmp_path).read_text()
    reader = Reader(text)
    assert reader.tags.count("script") == 3
    assert "b" not in reader.tags
    assert reader.text.count("alert('x')") >= 4


def test_embedded_json_cannot_end_its_element() -> None:
    value = {"a": "</script><!--", "b": "\u2028 & <b>"}
    text = embedded_json(value)
    assert "<" not in text
    assert json.loads(text) == value


def _without_scores(states: dict) -> object:
    arms = pocket_arms()[:2]
    base = {("base", 0, m): items_frame([1.0, 2.0, 3.0]) for m in METRICS}
    return record_of(arms, base, [], status={arm.id: states for arm in arms})


def test_all_diverged(tmp_path: Path) -> None:
    reason = "the loss is not a number"
    record = _without_scores({"state": "diverged", "step": 7, "reason": reason})
    text = Reader(write_report(record, tmp_path).read_text()).text
    assert "Every arm diverged before its first score" in text
    assert "diverged at step 7 : the loss is not a number" in text.replace("7:", "7 :")
    assert "base, untrained" in text


def test_no_finished_arm(tmp_path: Path) -> None:
    record = _without_scores({"state": "running", "step": 7})
    text = Reader(write_report(record, tmp_path).read_text()).text
    assert "No arm has been scored yet" in text
    assert "2 running" in text


def test_nothing_at_all(tmp_path: Path) -> None:
    record = _without_scores({"state": "planned"})
    record.scores = record.scores.iloc[:0]
    text = Reader(write_report(record, tmp_path).read_text()).text
    assert "There are no scores yet" in text
    assert (tmp_path / "results.csv").read_text().count("\n") == 1


def test_one_arm() -> None:
    text = words_of(study(arms=pocket_arms()[:1], metrics=TWO))
    assert "Only full finetuning has scores, so no methods are compared." in text


def test_one_arm_at_one_budget() -> None:
    assert "1 of 1 points" in words_of(
        study(arms=pocket_arms()[:1], budgets=(50_000,), metrics=TWO)
    )


def test_one_item() -> None:
    record = study(n=1, metrics=TWO)
    text = words_of(record)
    assert "too few items to resample" in text
    assert not re.search(r"\(−?\d[\d.]* to ", text)  # no interval anywhere
    assert "nan" not in text.lower().replace("nano", "")


def test_a_missing_metric() -> None:
    record = study(metrics=("target/bits_per_byte", "prose/bits_per_byte"))
    text = words_of(record)
    assert "cannot be compared: self_probe/kl has no scores" in text
    assert "Bits per byte on prose" in text


def test_an_arm_without_one_metric() -> None:
    record = study(metrics=TWO)
    arm = pocket_arms()[0].id
    gone = (record.scores["arm"] == arm) & (record.scores["metric"] == "self_probe/kl")
    record.scores = record.scores[~gone]
    text = words_of(record)
    assert "of 21 points" in text


def test_scores_that_are_not_numbers() -> None:
    record = study(metrics=TWO)
    whole = record.items
    arm = pocket_arms()[0].id

    def items(name: str, count: int, metric: str) -> pd.DataFrame:
        frame = whole(name, count, metric)
        return frame.assign(value=np.nan) if name == arm else frame

    record.items = items
    record.scores["value"] = record.scores["value"].where(record.scores["arm"] != arm, np.nan)
    text = words_of(record)
    assert "not a finite number" in text
    assert "of 21 points" in text


def test_methods_out_of_reach_are_not_compared() -> None:
    arms = [ArmConfig(method="full", learning_rate=5e-2), pocket_arms()[2]]
    text = words_of(study(arms=arms, metrics=TWO))
    assert "cannot be compared at equal learning: lora r4 reached" in text


def test_where_no_answer_was_exact_another_metric_of_learning_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exact match is the first metric of an instruction study, and may stay at 0."""
    arms = [ArmConfig(method="full", learning_rate=1e-3), pocket_arms()[2]]
    exact, bits, kl = "target/exact_match", "target/bits_per_byte", "self_probe/kl"
    monkeypatch.setitem(METRICS, exact, ("target", "accuracy", True))
    items = {("base", 0, m): items_frame(np.zeros(50)) for m in (exact, bits, kl)}
    noise = np.random.default_rng(0).normal(0, 0.02, 50)
    for arm, forgot in zip(arms, (0.2, 0.6), strict=True):
        for count, amount in ((10, 0.5), (20, 1.0)):
            items[arm.id, count, exact] = items_frame(np.zeros(50))
            items[arm.id, count, bits] = items_frame(-amount + noise)
            items[arm.id, count, kl] = items_frame(amount * forgot + noise)
    record = record_of(arms, items, [10, 20])
    target = record.config.target.model_copy(update={"metrics": ("bits_per_byte", "exact_match")})
    record.config = record.config.model_copy(update={"target": target, "regime": "ift"})
    found = answer(Findings.of(record))
    assert "full finetuning forgot less than LoRA" in found.headline
    assert dict(found.facts)["Learning"] == (
        "Shown by bits per byte on held-out target answers: by exact answers to held-out target "
        "prompts at least one method never learned anything."
    )
    # What the study asks for is shown, whatever it shows
    frontier = record.config.frontier.model_copy(update={"learning": exact})
    record.config = record.config.model_copy(update={"frontier": frontier})
    found = answer(Findings.of(record))
    assert "no arm learned anything by exact answers" in found.headline
    assert "Learning" not in dict(found.facts)


def test_a_card_says_how_prompts_were_written() -> None:
    record = study(metrics=TWO)
    arm = next(iter(record.arms))
    assert "prompt" not in model_card(record, arm, 100_000).partition("How to load it")[2]
    record.config = record.config.model_copy(update={"regime": "ift"})
    for template, words in (
        ("plain", r'A prompt was written as `"Question: ...\nAnswer:"`'),
        ("chat", "the tokenizer's chat template"),
    ):
        record.provenance["data"] = {"settings": {"training.template": template}}
        assert words in model_card(record, arm, 100_000)


def test_an_open_question_is_called_open() -> None:
    rng = np.random.default_rng(0)
    arms = [ArmConfig(method="full", learning_rate=1e-3), pocket_arms()[2]]
    x, y = "target/bits_per_byte", "self_probe/kl"
    items = {("base", 0, m): items_frame(np.zeros(50)) for m in (x, y)}
    for arm in arms:
        for count, amount in ((10, 0.2), (20, 0.4)):
            items[arm.id, count, x] = items_frame(-amount + rng.normal(0, 0.1, 50))
            items[arm.id, count, y] = items_frame(amount + rng.normal(0, 0.3, 50))
    found = answer(Findings.of(record_of(arms, items, [10, 20])))
    assert "it is open whether full finetuning or LoRA of rank 4 forgets less" in found.headline
    assert "holds 0" in found.text


def test_arms_that_learned_nothing_leave_the_base() -> None:
    arm = pocket_arms()[0]
    x, y = "target/bits_per_byte", "self_probe/kl"
    items = {("base", 0, m): items_frame(np.ones(20)) for m in (x, y)}
    items |= {(arm.id, 10, m): items_frame(np.full(20, 2.0)) for m in (x, y)}
    facts = dict(answer(Findings.of(record_of([arm], items, [10]))).facts)
    nothing = "No arm learned anything at any budget: the base itself is the best choice."
    assert facts["Frontier"] == nothing


def test_numbers_read_well() -> None:
    shown = [number(x) for x in (1.23456, 0.0123456, -0.5, 0.0, 1234.567, 2e-7, None, float("nan"))]
    assert shown == ["1.235", "0.01235", "−0.5000", "0.000", "1235", "2.000e−07", "–", "–"]
    assert interval(-0.1, 0.2, 2) == "−0.10 to 0.20"
    assert [tokens(n) for n in (999, 999_600, 999_999_999)] == ["999", "1M", "1B"]
    assert [tokens(n) for n in (500, 65_536, 8_000_000, 1_500_000_000)] == [
        "500",
        "65.5k",
        "8M",
        "1.5B",
    ]
    assert [seconds(s) for s in (4.21, 42, 200, 7500)] == [
        "4.2 s",
        "42 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_colours_are_fixed_by_rank_and_stand_out_on_both_pages() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    groups = ["full", *(f"lora r{2**i}" for i in range(12))]
    for colour in map(group_colour, groups):
        assert (1.0 + 0.05) / (luminance(colour) + 0.05) > 2.7
        assert (luminance(colour) + 0.05) / (luminance("#14171b") + 0.05) > 2.7
    ranks = [luminance(group_colour(f"lora r{2**i}")) for i in (0, 2, 4, 6, 8)]
    assert ranks == sorted(ranks, reverse=True)
    assert group_colour("lora r100000") == group_colour("lora r2048")


def test_claims_and_advice_of_the_ledger_are_on_the_page(tmp_path: Path) -> None:
    claim = {
        "claim": "less",
        "sentence": "LoRA learns less <b>always</b>.",
        "source": "a paper",
        "effect": 0.5,
        "interval": [0.4, 0.6],
        "unit": "bits/byte",
        "reason": "because it did",
        "what_would_resolve_it": None,
    }
    open_claim = claim | {
        "verdict": "unresolved",
        "effect": None,
        "interval": None,
        "what_would_resolve_it": "more items",
    }
    claims = {"claims": [claim | {"verdict": "supported"}, open_claim], "notes": ["a note"]}
    advice = {"headline": "Take full.", "why": ["It learned 1."], "next": ["Run more."]}
    (tmp_path / "claims.json").write_text(json.dumps(claims))
    (tmp_path / "advice.json").write_text(json.dumps(advice))
    reader = Reader(write_report(study(metrics=TWO), tmp_path).read_text())
    assert "1 supported, 0 contradicted, 1 unresolved" in reader.text
    assert "LoRA learns less <b>always</b>." in reader.text
    assert "b" not in reader.tags
    assert "to settle it: more items" in reader.text
    assert "0.400 to 0.600" in reader.text
    assert "Take full. It learned 1. What to run next Run more." in reader.text


def test_costs_are_listed_by_series(pocket_report: Path) -> None:
    text = Reader((pocket_report / "report.html").read_text()).text
    assert "Cost of each arm" in text
    assert "seconds per million tokens" in text
    assert "62.5" in text  # 12.5 s for 200,000 tokens
    stripped = Reader(words_html(study(metrics=TWO, status={}), seconds=0.0)).text
    assert "Cost of each arm" not in stripped


def words_html(record, seconds: float) -> str:
    for status in record.status.values():
        status["seconds"] = seconds
    findings = Findings.of(record)
    return page(findings, specifications(figures(findings)))


def test_seeds_share_a_chip_and_repeats_are_counted() -> None:
    arms = [ArmConfig(method="full", learning_rate=1e-3, seed=seed) for seed in (0, 1, 2)]
    arms.append(ArmConfig(method="lora", rank=4, learning_rate=1e-3))
    states = {arms[2].id: {"state": "diverged", "step": 3, "reason": "the loss is not a number"}}
    record = study(arms=arms, metrics=TWO, status=states)
    findings = Findings.of(record)
    assert [(one.name, len(one.arms)) for one in findings.series] == [
        ("full lr 0.001", 3),
        ("lora r4 lr 0.001", 1),
    ]
    text = words_of(record)
    assert "0.001 ×3" in text
    assert "1 diverged" in text
    assert "4 arms (1 diverged, 3 done), 2 of them repeats under other seeds" in text


def test_of_many_rates_the_one_that_learned_most_is_bold() -> None:
    arms = [ArmConfig(method="full", learning_rate=lr) for lr in (1e-4, 3e-4, 1e-3)]
    arms += [
        ArmConfig(method="lora", rank=rank, learning_rate=lr)
        for rank in (4, 16)
        for lr in (3e-4, 1e-3, 4e-3)
    ]
    findings = Findings.of(study(arms=arms, metrics=TWO))
    leads = sorted(findings.series_by_id[key].name for key in findings.leads)
    assert leads == ["full lr 0.001", "lora r16 lr 0.004", "lora r4 lr 0.004"]


def test_studies_without_shared_metrics_are_told_apart(tmp_path: Path) -> None:
    one = study(arms=pocket_arms()[:3], metrics=TWO)
    two = study(arms=pocket_arms()[:3], metrics=("target/bits_per_byte", "prose/cloze"), seed=3)
    nothing = _without_scores({"state": "running", "step": 7})
    pair = [Studied("one", Findings.of(one)), Studied("two", Findings.of(two))]
    assert shared_metrics(pair) == ("target/bits_per_byte", [])
    text = Reader(compare_page(pair)).text
    assert "No forgetting metric was scored in every study" in text
    assert differences(pair) == []
    pair[1] = Studied("two", Findings.of(nothing))
    assert "No arm has been scored yet" in Reader(compare_page(pair)).text


def test_a_study_in_which_nothing_was_learned_compares_nothing() -> None:
    arms = pocket_arms()
    record = study(arms)
    base = record.items("base", 0, "target/bits_per_byte")
    read = record.items

    def unlearned(arm: str, count: int, metric: str) -> pd.DataFrame:
        return base.copy() if metric == "target/bits_per_byte" else read(arm, count, metric)

    record.items = unlearned
    shown = answer(Findings.of(record))
    assert "no arm learned anything" in shown.headline
    assert "forgot" not in shown.headline
