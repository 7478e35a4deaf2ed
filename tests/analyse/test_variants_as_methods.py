"""Variants of LoRA are methods of their own: compared as such, and left out of LoRA's claims."""

from __future__ import annotations

import pytest
from claims_studies import full, lora, made, verdict

from paretune.analyse.claims.evidence import Evidence
from paretune.analyse.matched import matched
from paretune.analyse.record import group_order, method_group
from paretune.analyse.results import tidy
from paretune.report.words import method_words

PLAIN = {
    full(): [(0.5, 0.3), (1.0, 0.6)],
    lora(4): [(0.2, 0.05), (0.7, 0.1)],
    lora(64): [(0.4, 0.1), (0.8, 0.2)],
}
# Variants that would turn every claim about LoRA round
VARIANTS = {
    lora(4, dora=True): [(0.9, 0.9), (1.4, 1.4)],
    lora(64, init="pissa"): [(0.1, 0.8), (0.2, 0.9)],
    lora(64, scaling="rslora", alpha=16.0): [(0.9, 0.9), (1.4, 1.4)],
    lora(64, loraplus_lr_ratio=4.0): [(0.9, 0.9), (1.4, 1.4)],
}


@pytest.mark.parametrize("claim", ["learns-less", "forgets-less", "rank-orders-learning"])
def test_claims_about_lora_do_not_see_variants(claim: str) -> None:
    alone, beside = verdict(claim, made(PLAIN)), verdict(claim, made(PLAIN | VARIANTS))
    assert beside.verdict == alone.verdict == "supported"
    assert beside.effect == pytest.approx(alone.effect)
    assert [part.name for part in beside.parts] == [part.name for part in alone.parts]


def test_a_study_of_variants_alone_has_no_lora() -> None:
    found = verdict("learns-less", made({full(): [(0.5, 0.3)], lora(4, dora=True): [(0.4, 0.1)]}))
    assert found.verdict == "unresolved"
    assert "no scored LoRA" in found.reason


def test_groups_and_their_names() -> None:
    groups = sorted({method_group(arm) for arm in [*PLAIN, *VARIANTS]}, key=group_order)
    assert groups[:3] == ["full", "lora r4", "lora r64"]
    assert set(groups[3:]) == {"dora r4", "pissa r64", "rslora r64", "loraplus r64"}
    assert method_words("dora-rslora r16") == "DoRA + rsLoRA of rank 16"
    assert method_words("loraplus") == "LoRA+"
    assert method_words("lora r16") == "LoRA of rank 16"


def test_matched_learning_and_tables_name_each_variant() -> None:
    record = made(PLAIN | VARIANTS)
    table = matched(record, [0.5])
    assert {"full", "lora", "lora r64", "dora", "dora r4", "rslora r64"} <= set(table["group"])
    assert {"full", "lora", "dora", "pissa", "rslora", "loraplus"} <= set(tidy(record)["method"])
    evidence = Evidence.of(record)
    assert {evidence.settings[key].family for key in evidence.plain()} == {"full", "lora"}
