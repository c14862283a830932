"""Several desks as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from muplan.serving.ledger import Columns, KernelResult
from muplan.serving.realtime.backend import (
    ClockCommand,
    Event,
    GroupGone,
    GroupLost,
    GroupReady,
    StageDone,
    Work,
    WorkDone,
)
from muplan.serving.realtime.desk import Desk


class Desks:
    """Several desks as one: requests in the order in which they come, groups numbered on."""

    def __init__(self, desks: Sequence[Desk]) -> None:
        self._desks = tuple(desks)
        self._arrivals = sorted(
            (desk.arrival_s(request), number, request)
            for number, desk in enumerate(self._desks)
            for request in range(desk.num_requests)
        )
        self._places = [(desk, group) for desk in self._desks for group in range(len(desk.group_names))]
        self._of_group = {name: desk for desk in self._desks for name in desk.group_names}
        self._of_work: dict[int, Desk] = {}

    @property
    def num_requests(self) -> int:
        """Requests that come."""
        return len(self._arrivals)

    @property
    def num_open(self) -> int:
        """Requests that wait or are under way."""
        return sum(desk.num_open for desk in self._desks)

    def arrival_s(self, number: int) -> float:
        """When the request comes that is next after ``number`` others, seconds."""
        return self._arrivals[number][0]

    def arrive(self, number: int) -> None:
        """Let it come."""
        _, desk, request = self._arrivals[number]
        self._desks[desk].arrive(request)

    def next_dispatch(self) -> tuple[float, int]:
        """When the next work may leave, and of which group; infinite where none does by itself."""
        best_s, best, first = math.inf, -1, 0
        for desk in self._desks:
            at_s, group = desk.next_dispatch()
            if at_s < best_s:
                best_s, best = at_s, first + group
            first += len(desk.group_names)
        return best_s, best

    def dispatch(self, group: int, now_s: float) -> Work | None:
        """Let the next work of a group leave; None where none is left after all."""
        desk, number = self._places[group]
        work = desk.dispatch(number, now_s)
        if work is not None:
            self._of_work[work.number] = desk
        return work

    def next_control_s(self) -> float:
        """When the next decision on clocks falls, or the next command takes effect; infinite: never."""
        return min((desk.next_control_s() for desk in self._desks), default=math.inf)

    def control(self, until_s: float) -> list[ClockCommand]:
        """Take the decisions on clocks up to a time."""
        return [command for desk in self._desks for command in desk.control(until_s)]

    def note(self, event: Event) -> int:
        """Take in what a backend tells; returns how many works were lost."""
        match event:
            case StageDone():
                self._of_work[event.number].stage_done(event)
            case WorkDone():
                self._of_work.pop(event.number).work_done(event.number, event.at_s)
            case GroupLost():
                for number in event.numbers:
                    del self._of_work[number]
                self._of_group[event.group].lost(event.group)
                return len(event.numbers)
            case GroupReady():
                self._of_group[event.group].ready(event.group, event.at_s)
            case GroupGone():
                self._of_group[event.group].gone(event.group)
        return 0

    def finish(self, columns: Columns, until_s: float) -> list[KernelResult]:
        """Close the books of all at a time."""
        return [desk.finish(columns, until_s) for desk in self._desks]
