"""Server-sent events, as completions are streamed: bytes to events, events to chunks.

Format: WHATWG HTML Living Standard, 9.2.6 (parsing an event stream); chunks: OpenAI API, create completion
and create chat completion, ``stream: true``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from muplan.serving.http.failure import FailureKind, RequestFailedError

DONE = "[DONE]"
"""The last event of a stream; some servers leave it out."""


class EventStream:
    """Cuts bytes into events.

    Lines end with a line feed, as the format says: a reply may hold other characters that Python takes for
    line ends.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, received: bytes) -> list[str]:
        """Take bytes in; returns the data of the events that they complete."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(_decoded(line[5:].removeprefix(b" ")))
            elif not line and self._data:
                events.append("\n".join(self._data))
                self._data = []
        return events


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What an event tells.

    Parameters
    ----------
    has_choice
        Whether it is of the reply, and not of its usage alone.
    has_token
        Whether it brings a token or several; a token may have no text.
    is_last
        Whether the reply ends with it.
    num_tokens, num_prompt_tokens
        Of the whole request, by the server's count; None where it is not told.
    """

    has_choice: bool
    has_token: bool
    is_last: bool
    num_tokens: int | None
    num_prompt_tokens: int | None


def read_chunk(event: str) -> Chunk:
    """Read one event of a completion or of a chat.

    Raises
    ------
    RequestFailedError
        The event is malformed, or tells of an error.
    """
    content = read_json(event)
    if "error" in content:
        raise RequestFailedError(FailureKind.SERVER_ERROR, f"in the stream: {content['error']}")
    try:
        choice: dict[str, Any] | None = next(iter(content["choices"]), None)
        usage = content.get("usage") or {}
        ends = choice is not None and choice.get("finish_reason") is not None
        return Chunk(
            has_choice=choice is not None,
            has_token=choice is not None and _has_token(choice, ends=ends),
            is_last=ends,
            num_tokens=usage.get("completion_tokens"),
            num_prompt_tokens=usage.get("prompt_tokens"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestFailedError(
            FailureKind.MALFORMED, f"{type(error).__name__} {error}: {event:.200}"
        ) from None


def read_json(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    RequestFailedError
        It is none.
    """
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RequestFailedError(FailureKind.MALFORMED, f"not a JSON object: {text[:200]!r}")
    return content


def _has_token(choice: dict[str, Any], *, ends: bool) -> bool:
    """Of a completion all but an empty last one; of a chat those with content, as the first names a role."""
    if "delta" in choice:
        delta = choice["delta"]
        return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))
    return bool(choice["text"]) or not ends


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RequestFailedError(FailureKind.MALFORMED, f"not UTF-8: {data[:200]!r}") from None
