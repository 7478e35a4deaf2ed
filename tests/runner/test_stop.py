"""Signals are taken for what they are, wherever they arrive; a real one is sent each time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import huggingface_hub
import pytest

from paretune.data.hub import _commit
from paretune.data.rows import Pair
from paretune.data.template import encode_pairs
from paretune.errors import Stopped
from paretune.runner.stop import Interrupted, Stop


def ask(*_: object, number: int = signal.SIGTERM, **__: object) -> Any:
    os.kill(os.getpid(), number)


class Chatty:
    """A tokenizer with a chat template; whatever fails in one is the template's mistake."""

    chat_template = "any"
    apply_chat_template = staticmethod(ask)


def in_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    encode_pairs([Pair("a", "a", "prompt", "response")], Chatty(), "chat")


def in_a_call_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    _commit("anyone/anything")


@pytest.mark.parametrize("work", [in_a_template, in_a_call_of_the_hub])
def test_a_stop_is_no_failure_of_what_ran_when_it_came(
    work: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM"), Stop().listening():
        work(monkeypatch)


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGTERM, Stopped, 75), (signal.SIGINT, Interrupted, 130)],
)
def test_a_step_ends_before_the_stop(number: int, kind: type[Stopped], code: int) -> None:
    stop, seen = Stop(), []

    def step() -> None:
        with stop.deferred():
            ask(number=number)
            seen.append(stop.asked)

    with pytest.raises(kind) as raised, stop.listening():
        step()
    assert seen == [True]
    assert raised.value.exit_code == code


def test_what_may_be_stopped_anywhere_does_not_begin_after_a_stop() -> None:
    stop = Stop()

    def step() -> None:
        with stop.deferred():
            ask()
            with stop.at_once():
                pytest.fail("a stop was asked for before")

    with pytest.raises(Stopped), stop.listening():
        step()


def test_a_second_signal_does_not_wait() -> None:
    stop = Stop()

    def step() -> None:
        with stop.deferred():
            ask()
            ask(number=signal.SIGINT)
            pytest.fail("the second one was to stop at once")

    with pytest.raises(Interrupted), stop.listening():
        step()


def test_a_stop_is_over_with_the_work_that_it_stopped() -> None:
    stop = Stop()
    with pytest.raises(Stopped), stop.listening():
        ask()
    with stop.listening():
        assert not stop.asked
