"""Messages between two processes that do not trust each other: JSON in frames of limited length.

A frame is its length in four bytes, then JSON. JSON and not pickle, since a pickle can run code
in whoever reads it.
"""

from __future__ import annotations

import json
import os
from typing import Any

MOST_BYTES = 16 << 20


class Ended(Exception):
    """The other side closed the channel, or wrote what is no message."""


def send(channel: int, message: Any) -> None:
    """Write one message."""
    send_bytes(channel, json.dumps(message).encode())


def receive(channel: int) -> Any:
    """Read one message.

    Raises:
        Ended: there is none, or it is too long, or not JSON.
    """
    try:
        return json.loads(receive_bytes(channel))
    except (ValueError, RecursionError) as error:
        raise Ended("wrote what is no message") from error


def send_bytes(channel: int, content: bytes) -> None:
    """Write one frame of any content."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"a message of {len(content)} bytes: at most {MOST_BYTES} go through")
    view = memoryview(len(content).to_bytes(4, "big") + content)
    while view:
        view = view[os.write(channel, view) :]


def receive_bytes(channel: int) -> bytes:
    """Read one frame of any content.

    Raises:
        Ended: the channel was closed, or announces more than MOST_BYTES.
    """
    length = int.from_bytes(_exactly(channel, 4), "big")
    if length > MOST_BYTES:
        raise Ended("announced a message that is too long")
    return _exactly(channel, length)


def _exactly(channel: int, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = os.read(channel, min(count, 1 << 20))
        except ConnectionError as error:
            raise Ended("closed the channel") from error
        if not part:
            raise Ended("closed the channel")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
