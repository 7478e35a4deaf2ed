"""Cutting long texts where a reader would: between paragraphs, lines or words."""

from __future__ import annotations

from collections.abc import Iterator

from paretune.data.rows import Document

BREAKS = ("\n\n", "\n", " ")


def cut_near(text: str, low: int, high: int) -> int:
    """The last place in (low, high] after a paragraph, else a line, else a word, else ``high``."""
    for mark in BREAKS:
        found = text.rfind(mark, low, high)
        if found >= 0 and found + len(mark) <= high:
            return found + len(mark)
    return high


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at most ``size`` characters that give the text when joined."""
    start = 0
    while len(text) - start > size:
        end = cut_near(text, start + size // 2, start + size)
        yield text[start:end]
        start = end
    yield text[start:]


def parts(document: Document, size: int) -> list[Document]:
    """A document in parts of at most ``size`` characters: ``id#0``, ``id#1``, ...; none blank."""
    if len(document.text) <= size:
        return [document]
    return [
        Document(f"{document.id}#{number}", document.group, piece)
        for number, piece in enumerate(pieces(document.text, size))
        if piece.strip()
    ]


def split_by_position(document: Document, share: float) -> tuple[Document, Document]:
    """A document's beginning, for training, and about the last ``share`` of it, held out.

    The cut lies between paragraphs where there is one near, else between lines or words.
    """
    text = document.text
    high = max(1, round(len(text) * (1 - share)))
    cut = cut_near(text, high - max(1, len(text) // 20), high)
    head = Document(f"{document.id}#training", document.group, text[:cut])
    tail = Document(f"{document.id}#heldout", document.group, text[cut:])
    return head, tail
