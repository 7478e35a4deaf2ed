"""Templates of the harness are compiled once while Paretune asks, and as ever when others do."""

from __future__ import annotations

from lm_eval.utils import apply_template, env

from paretune.evaluate.tasks.templates import templates_compiled_once

TEXT = "{{question}} of {{place | regex_replace('a', 'o')}}\n"


def test_a_template_is_compiled_once_and_says_the_same() -> None:
    document = {"question": "What", "place": "banana"}
    alone = apply_template(TEXT, document)
    with templates_compiled_once():
        first = env.from_string(TEXT)
        with templates_compiled_once():
            assert env.from_string(TEXT) is first
        assert env.from_string(TEXT) is first
        assert apply_template(TEXT, document) == alone == "What of bonono\n"
        assert apply_template(TEXT, {**document, "question": "Who"}) == "Who of bonono\n"
    assert env.from_string(TEXT) is not first
    assert "from_string" not in vars(env)
