"""The one exception a user may see: what is wrong, where, and what to do about it."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave (a study file, a data row, a path, an argument).

    The message is complete: it names the thing, the place and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """


class UserErrors(UserError):
    """Several mistakes found together, so that a file is mended in one go."""

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages
        super().__init__("\n".join(messages))
