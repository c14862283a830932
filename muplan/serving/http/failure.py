"""Failures: why a request was not answered."""

from __future__ import annotations

from enum import StrEnum


class FailureKind(StrEnum):
    """What kept a request from its answer."""

    NO_CONNECTION = "no connection"  # refused, unreachable, or no socket left here
    REFUSED = "refused"  # 4xx: the server does not take such requests, or not so many
    SERVER_ERROR = "server error"  # 5xx, or an error told within the stream
    TIMEOUT = "timeout"
    BROKEN_STREAM = "broken stream"  # the connection ended before the answer did
    MALFORMED = "malformed answer"  # not what the protocol says
    NO_TOKENS = "no tokens"  # a whole answer of nothing


class RequestFailedError(Exception):
    """A request was not answered; caught where it was sent."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
