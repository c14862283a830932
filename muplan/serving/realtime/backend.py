"""What the real-time executor asks of a backend: to run passes, and to say when their stages are done."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.serving.power_outcome import PowerOutcome
from muplan.serving.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What goes through the stages of a group.

    Parameters
    ----------
    number
        Works are numbered in the order in which they leave.
    group
        Name of the group.
    service
        Whose requests these are.
    compute_s, transfer_s, power_w
        What is foretold of each stage: time to compute, time from its end until the next stage can begin
        (after the last: until the answer is there), and power of its GPUs meanwhile; shape (stages,).
    """

    number: int
    group: str
    service: str
    compute_s: tuple[float, ...]
    transfer_s: tuple[float, ...]
    power_w: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass(Work):
    """A batch of forward requests.

    Parameters
    ----------
    requests
        Their numbers among all of the run.
    tokens
        Tokens of each sequence.
    """

    requests: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The tokens of a sequence, prompt and reply counted on, that an iteration computes.

    Parameters
    ----------
    request
        Its number among all of the run.
    begin, end
        The keys and values of the tokens before ``begin`` are there; from 0 on, none are.
    is_last
        Whether the sequence has no token beyond, so that the next one follows from this iteration.
    """

    request: int
    begin: int
    end: int
    is_last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration(Work):
    """An iteration of a continuous batch: of prompts, of chunks of them, and of sequences that decode.

    Parameters
    ----------
    spans
        One for each sequence.
    released
        Requests that are complete or were preempted: their keys and values are not asked for again.
    answered
        Those of them that are complete.
    """

    spans: tuple[Span, ...]
    released: tuple[int, ...]
    answered: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDone:
    """A stage has computed its part of a work; seconds since the run began."""

    number: int
    stage: int
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone:
    """A work is done: its answers, or next tokens, are there."""

    number: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLost:
    """A worker of a group died, and with it the works of these numbers; the group takes no others."""

    group: str
    numbers: tuple[int, ...]
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReady:
    """A group that was lost is there again, all its stages free; ``moved_to``: on what other host, if so."""

    group: str
    at_s: float
    moved_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupGone:
    """A group that was lost does not come back; each of its services has another that may."""

    group: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockCommand:
    """A stage's GPUs are to have another clock, MHz; commanded at a time of the run."""

    group: str
    stage: int
    clock_mhz: int
    at_s: float


Event = StageDone | WorkDone | GroupLost | GroupReady | GroupGone


class Backend(Protocol):
    """Runs passes and iterations. A context manager that puts back what it changed.

    Where it cannot go on it raises a `MachineError`, which ends the run.

    Stages of a group take works in the order in which they leave; each goes on to the next stage by itself.
    """

    name: str
    is_measured: bool
    """Whether its times are those of a real machine."""
    sets_clocks: bool
    """Whether it does as commanded; only then may clocks move."""

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

    def launch(self, work: Work) -> None:
        """Begin a work, whose group's first stage is free."""

    def set_clock(self, command: ClockCommand) -> None:
        """Command the clock of a stage; it takes the device's time to change."""

    def power(self, problem: Problem, plan: Plan, records: Records) -> tuple[PowerOutcome | None, str | None]:
        """What was measured of the power, None where it is modelled; and why nothing was, if it was tried."""

    def next_event(self, until_s: float) -> Event | None:
        """The next event up to a time, which may be infinite; None where that time comes first."""
