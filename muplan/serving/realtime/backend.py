"""What the real-time executor asks of a backend: to run passes, and to say when their stages are done."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A batch on its way through the stages of a group.

    Parameters
    ----------
    number
        Passes are numbered in the order in which they leave.
    group
        Name of the group.
    service
        Whose requests these are.
    requests
        Their numbers among all of the run.
    tokens
        Tokens of each sequence.
    compute_s, transfer_s, power_w
        What is foretold of each stage: time to compute, time from its end until the next stage can begin
        (after the last: until the answer is there), and power of its GPUs meanwhile; shape (stages,).
    """

    number: int
    group: str
    service: str
    requests: tuple[int, ...]
    tokens: int
    compute_s: tuple[float, ...]
    transfer_s: tuple[float, ...]
    power_w: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDone:
    """A stage has computed a pass; seconds since the run began."""

    number: int
    stage: int
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PassDone:
    """The answers of a pass are there."""

    number: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLost:
    """A worker of a group died, and with it the passes of these numbers; the group takes no others."""

    group: str
    numbers: tuple[int, ...]
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReady:
    """A group that was lost is there again, all its stages free."""

    group: str
    at_s: float


Event = StageDone | PassDone | GroupLost | GroupReady


class Backend(Protocol):
    """Runs passes. A context manager that puts back what it changed.

    Stages of a group take passes in the order in which they leave; each goes on to the next stage by itself.
    """

    name: str
    is_measured: bool
    """Whether its times are those of a real machine."""

    def __enter__(self) -> Self:
        """Make ready: the run begins on return."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop what runs."""

    def now_s(self) -> float:
        """Seconds since the run began."""

    def launch(self, work: Pass) -> None:
        """Begin a pass, whose group's first stage is free."""

    def next_event(self, until_s: float) -> Event | None:
        """The next event up to a time, which may be infinite; None where that time comes first."""
