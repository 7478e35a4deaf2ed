from __future__ import annotations

from paretune.data.pieces import cut_near, parts, pieces, split_by_position
from paretune.data.rows import Document, Pair
from paretune.data.split import Copies, choose_split


def test_the_split_depends_on_names_alone() -> None:
    names = [(f"{n}", f"group {n % 40}") for n in range(400)]
    split = choose_split(names, 0.1)
    out = {group for id, group in names if split.heldout(id, group)}
    assert split.level == "group"
    assert 1 <= len(out) <= 10
    again = choose_split(reversed(names), 0.1)
    assert {group for id, group in names if again.heldout(id, group)} == out
    fewer = choose_split(names[:100], 0.1)
    assert {group for id, group in names if fewer.heldout(id, group)} == out


def test_about_the_share_is_held_out() -> None:
    split = choose_split([(str(n), str(n)) for n in range(10)], 0.05)
    out = sum(split.heldout(str(n), str(n)) for n in range(20_000))
    assert 900 < out < 1100


def test_both_sides_have_a_group_however_few_there_are() -> None:
    for names in (["a", "b"], ["x", "y", "z"], ["only one more", "than two", "or so"]):
        for share in (0.001, 0.5, 0.999):
            labels = [(name, name) for name in names]
            split = choose_split(labels, share)
            out = [name for name in names if split.heldout(name, name)]
            assert 0 < len(out) < len(names), (names, share)


def test_one_group_is_split_by_document_and_one_document_by_position() -> None:
    split = choose_split([(str(n), "book") for n in range(5)], 0.01)
    assert split.level == "document"
    assert sum(split.heldout(str(n), "book") for n in range(5)) == 1
    assert choose_split([("1", "book")], 0.1).level == "position"


def test_reading_stops_once_both_sides_have_shown_up() -> None:
    read = 0

    def endless() -> object:
        nonlocal read
        while True:
            read += 1
            yield str(read), str(read)

    choose_split(endless(), 0.05)  # type: ignore[arg-type]
    assert read < 1000


def test_copies_and_near_copies_are_recognised() -> None:
    lines = [f"    total_{n} = first_{n} + second_{n}" for n in range(20)]
    heldout = Document("a", "a", "\n".join(lines))
    copies = Copies.of([heldout])
    same = Document("b", "b", heldout.text)
    renamed = Document("c", "c", "import other\n" + "\n".join(line + "  " for line in lines[3:]))
    mostly_new = Document(
        "d", "d", "\n".join(lines[:8] + [f"    product_{n} = {n} * first_{n}" for n in range(12)])
    )
    assert copies.reason(same) == "copy of a held-out row"
    assert copies.reason(renamed) == "near-copy of held-out text"
    assert copies.reason(mostly_new) is None
    assert Copies.of([Pair("1", "1", "Why?", "So.")]).reason(Pair("2", "2", "Why?", "No."))


def test_pieces_join_to_the_text_and_end_where_a_reader_would() -> None:
    text = "".join(f"Paragraph {n}.\nIts second line.\n\n" for n in range(40))
    cut = list(pieces(text, 200))
    assert "".join(cut) == text
    assert all(len(piece) <= 200 for piece in cut)
    assert all(piece.endswith("\n\n") for piece in cut)
    assert "".join(pieces("日" * 1000, 64)) == "日" * 1000
    assert cut_near("one two three", 5, 9) == 8
    document = Document("d", "g", text)
    assert [part.id for part in parts(document, 200)][:2] == ["d#0", "d#1"]
    assert {part.group for part in parts(document, 200)} == {"g"}


def test_one_document_is_cut_between_paragraphs() -> None:
    text = "".join(f"Paragraph {n} of the only book.\n\n" for n in range(100))
    head, tail = split_by_position(Document("d", "g", text), 0.1)
    assert head.text + tail.text == text
    assert head.text.endswith("\n\n")
    assert 0.1 <= len(tail.text) / len(text) < 0.16
