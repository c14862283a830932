"""A backend without a machine: passes take what is foretold, or a random multiple of it, in virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np

from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.serving.power_outcome import PowerOutcome
from muplan.serving.realtime.backend import (
    ClockCommand,
    Event,
    GroupGone,
    GroupLost,
    GroupReady,
    Pass,
    StageDone,
    Work,
    WorkDone,
)
from muplan.serving.records import Records


class ScriptedBackend:
    """Runs passes in virtual time.

    Parameters
    ----------
    overhead_s
        Serving overhead of every forward request; the executor adds that of the others.
    spread
        Standard deviation of the logarithm of the factor by which each stage's time differs from what is
        foretold; the mean factor is 1.
    losses
        By time, the group of which a worker is lost then.
    restart_s
        How long it takes until the group is there again; infinite: it is given up at once.
    rng
        Draws the factors.
    """

    name = "scripted"
    is_measured = False
    sets_clocks = True

    def __init__(
        self,
        *,
        overhead_s: float = 0.0,
        spread: float = 0.0,
        losses: Mapping[float, str] | None = None,
        restart_s: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._overhead_s, self._spread = overhead_s, spread
        self._rng = rng or np.random.default_rng(0)
        self._now_s = 0.0
        self._free_s: dict[tuple[str, int], float] = {}
        self._group_of: dict[int, str] = {}
        self._events: list[tuple[float, int, Event]] = []
        self._sequence = 0
        for at_s, group in (losses or {}).items():
            self._push(at_s, GroupLost(group=group, numbers=(), at_s=at_s))
            if np.isinf(restart_s):
                self._push(at_s, GroupGone(group=group, at_s=at_s))
            else:
                self._push(at_s + restart_s, GroupReady(group=group, at_s=at_s + restart_s))

    def __enter__(self) -> Self:
        """Begin at time zero."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Nothing runs."""

    def now_s(self) -> float:
        """Virtual seconds since the run began."""
        return self._now_s

    def launch(self, work: Work) -> None:
        """Take a work through the stages of its group, first in, first out."""
        at_s = self._now_s
        self._group_of[work.number] = work.group
        for stage, (compute_s, transfer_s) in enumerate(zip(work.compute_s, work.transfer_s, strict=True)):
            begin_s = max(at_s, self._free_s.get((work.group, stage), 0.0))
            end_s = begin_s + compute_s * self._factor()
            self._free_s[work.group, stage] = end_s
            self._push(end_s, StageDone(number=work.number, stage=stage, begin_s=begin_s, end_s=end_s))
            at_s = end_s + transfer_s
        if isinstance(work, Pass):
            at_s += self._overhead_s
        self._push(at_s, WorkDone(number=work.number, at_s=at_s))

    def set_clock(self, command: ClockCommand) -> None:
        """What is foretold of a work is at the clocks that it has; nothing is left to do."""

    def power(self, problem: Problem, plan: Plan, records: Records) -> tuple[PowerOutcome | None, str | None]:  # noqa: ARG002
        """Nothing is measured of it."""
        return None, None

    def next_event(self, until_s: float) -> Event | None:
        """The next event up to a time, to which the clock is put."""
        while self._events and self._events[0][0] <= until_s:
            self._now_s, _, event = heapq.heappop(self._events)
            if isinstance(event, GroupReady | GroupGone):
                return event
            if isinstance(event, GroupLost):
                return self._lost(event)
            if event.number in self._group_of:
                if isinstance(event, WorkDone):
                    del self._group_of[event.number]
                return event
        self._now_s = max(self._now_s, until_s) if np.isfinite(until_s) else self._now_s
        return None

    def _lost(self, event: GroupLost) -> GroupLost:
        """Forget the passes of a group under way."""
        numbers = tuple(number for number, group in self._group_of.items() if group == event.group)
        for number in numbers:
            del self._group_of[number]
        for group, stage in self._free_s:
            if group == event.group:
                self._free_s[group, stage] = event.at_s
        return GroupLost(group=event.group, numbers=numbers, at_s=event.at_s)

    def _factor(self) -> float:
        if self._spread == 0.0:
            return 1.0
        return float(np.exp(self._spread * self._rng.standard_normal() - self._spread**2 / 2))

    def _push(self, at_s: float, event: Event) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (at_s, self._sequence, event))
