"""The lm-evaluation-harness's templates, compiled once each instead of once a document.

The harness compiles the Jinja template of a prompt or of a target anew for every document that it
makes a request of, and for every answer that it judges: most of the time that both take.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Within, the harness is given a template that it has compiled before."""
    from lm_eval.utils import env

    outer = vars(env).get("from_string")
    env.from_string = _templates()
    try:
        yield
    finally:
        if outer is None:
            del env.from_string  # the class's own again
        else:
            env.from_string = outer


@cache
def _templates() -> Any:
    from lm_eval.utils import env

    return lru_cache(maxsize=1024)(type(env).from_string.__get__(env))
