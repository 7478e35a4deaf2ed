from __future__ import annotations

import numpy as np
import pytest
from data_helpers import tokenizer

from paretune.data.cloze import ClozeItem, cloze_items
from paretune.data.rows import Document
from paretune.errors import UserError

WORDS = ["river", "boat", "lamp", "table", "cold", "green", "walked", "under", "seven", "never"]


def story(seed: int, words: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in random.integers(0, len(WORDS), words)) + "."


def documents(count: int = 4, words: int = 120) -> list[Document]:
    return [Document(f"d{n}", f"g{n % 2}", story(n, words)) for n in range(count)]


def build(
    rows: list[Document], count: int = 20, seed: int = 0, context: int = 12, continuation: int = 6
) -> list[ClozeItem]:
    return cloze_items(
        rows, tokenizer(), context=context, continuation=continuation, count=count, seed=seed
    )


def where(item: ClozeItem) -> tuple[str, int]:
    name, at = item.id.rsplit("@", 1)
    return name, int(at)


def test_the_answer_is_what_followed_the_context() -> None:
    ids = {d.id: tokenizer().encode(d.text) for d in documents()}
    items = build(documents())
    assert len(items) == 20
    for item in items:
        name, at = where(item)
        assert item.context.tolist() == ids[name][at - 12 : at]
        assert item.options[item.answer].tolist() == ids[name][at : at + 6]
        assert item.options.shape == (4, 6)
        assert item.options.dtype == np.int64


def test_options_differ_and_come_from_elsewhere_in_the_same_document() -> None:
    ids = {d.id: tokenizer().encode(d.text) for d in documents()}
    for item in build(documents()):
        name, at = where(item)
        assert len({tuple(option) for option in item.options.tolist()}) == 4
        outside = [
            ids[name][start : start + 6]
            for start in range(len(ids[name]) - 5)
            if not at - 12 - 6 < start < at + 6
        ]
        for number, option in enumerate(item.options.tolist()):
            assert number == item.answer or option in outside


def test_options_begin_where_a_word_does() -> None:
    for item in build(documents()):
        for option in item.options:
            assert tokenizer().decode(option).startswith(" ")


def test_questions_do_not_share_text_and_are_spread_over_groups() -> None:
    items = build(documents(), count=16)
    assert [(item.group, item.id) for item in items] == sorted(
        (item.group, item.id) for item in items
    )
    assert {item.group for item in items} == {"g0", "g1"}
    used: dict[str, list[int]] = {}
    for item in items:
        name, at = where(item)
        used.setdefault(name, []).extend(range(at - 12, at + 6))
    assert all(len(set(places)) == len(places) for places in used.values())


def test_answers_stand_in_all_places_and_hang_on_the_seed() -> None:
    items = build(documents(12, 400), count=120)
    places = np.bincount([item.answer for item in items], minlength=4)
    assert places.min() > 10
    again = build(documents(12, 400), count=120)
    assert [item.answer for item in items] == [item.answer for item in again]
    other = build(documents(12, 400), count=120, seed=1)
    assert [item.answer for item in items] != [item.answer for item in other]


def test_a_script_without_spaces_works() -> None:
    text = "".join(chr(0x4E00 + int(i)) for i in np.random.default_rng(0).integers(0, 2000, 200))
    assert build([Document("d", "d", text)], count=5)


def test_short_documents_take_options_from_others() -> None:
    rows = [Document(f"d{n}", f"d{n}", story(n, 14)) for n in range(8)]
    assert build(rows, count=4)


def test_texts_too_short_for_a_question_are_a_user_error() -> None:
    with pytest.raises(UserError, match="too short for cloze: a question takes 18 tokens"):
        build([Document("d", "d", "two words")])
