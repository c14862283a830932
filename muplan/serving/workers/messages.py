"""What the executor and its workers tell each other; times are those of the host's monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from muplan.serving.realtime.backend import Span

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run a pass of a service; the first stage draws its own input, the last one answers."""

    number: int
    service: str
    batch: int
    is_last: bool
    entering: Array | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterate:
    """Run an iteration of a service that generates; the last stage answers with next tokens.

    ``entering``: the spans' tokens one after the other; at a later stage their activations.
    """

    number: int
    service: str
    spans: tuple[Span, ...]
    released: tuple[int, ...]
    entering: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The stages are in memory and have been run once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A work was run; ``leaving`` is what goes on to the next stage, or the answer: a number a sequence.

    Between stages it may be a transport's reference to an array.
    """

    number: int
    begin_s: float
    end_s: float
    leaving: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The worker cannot do what it is there for, as a user reads it.

    ``is_input``: what the user wrote is wrong, not the machine.
    """

    problem: str
    remedy: str
    is_input: bool = False


Order = Run | Iterate
Answer = Ready | Ran | Refused
