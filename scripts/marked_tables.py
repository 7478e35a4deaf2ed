"""Generated tables inside pages that are written by hand, between marks."""

from __future__ import annotations

import re


def fill(page: str, made: dict[str, str]) -> str:
    """The page with every generated table put between its marks.

    Raises:
        ValueError: the page has a table that is not made, or lacks one that is.
    """
    marked = re.findall(r"<!-- begin (\S+) -->", page)
    if sorted(marked) != sorted(made):
        raise ValueError(f"the page has the tables {marked}, made were {list(made)}")
    for name, text in made.items():
        before, rest = page.split(f"<!-- begin {name} -->")
        _, after = rest.split(f"<!-- end {name} -->")
        page = f"{before}<!-- begin {name} -->\n\n{text}\n\n<!-- end {name} -->{after}"
    return page
