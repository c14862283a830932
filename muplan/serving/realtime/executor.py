"""The real-time executor: requests come, decisions fall, a backend runs the passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from muplan.errors import InputError
from muplan.serving.case import Case
from muplan.serving.forward_tables import forward_tables
from muplan.serving.ledger import empty_columns, make_records
from muplan.serving.realtime.backend import Backend, Event, GroupLost, PassDone, StageDone
from muplan.serving.realtime.desk import ForwardDesk
from muplan.serving.records import Records

Report = Callable[[float, int, int], None]
"""Is told seconds since the run began, requests answered or rejected so far, and requests in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTimeRun:
    """What a run in real time left: its records, and whether it was broken off."""

    records: Records
    num_lost: int
    """Passes that were lost with their worker and run again."""
    is_partial: bool


def serve_in_real_time(
    case: Case, backend: Backend, *, rng: np.random.Generator, report: Report | None = None
) -> RealTimeRun:
    """Serve the requests of a case on a backend, to the last.

    At equal times what is done comes first, then who arrives, then what leaves, as in the simulator. Ctrl-C
    breaks the run off: what was served until then is in the records, the rest is not answered.

    Parameters
    ----------
    backend
        Entered here, and left at the end.

    Raises
    ------
    InputError
        The case asks for what is not served in real time.
    """
    _check(case)
    tables = forward_tables(case.problem, case.groups("forward"), case.deployment.serving)
    desk = ForwardDesk(case, tables, rng)
    loop = _Loop(desk=desk, backend=backend, report=report)
    with backend:
        is_partial = loop.run()
    columns = empty_columns(len(case.trace))
    result = desk.finish(columns)
    records = make_records(case, columns, [result])
    return RealTimeRun(records=records, num_lost=loop.num_lost, is_partial=is_partial)


def _check(case: Case) -> None:
    generating = [one.name for one in case.problem.services if one.request_kind == "generate"]
    if generating:
        raise InputError(
            f"{generating[0]!r} generates, which is not served in real time yet.",
            "Execute the plan on the simulated backend, or plan its forward services alone.",
        )
    if case.controller.policy != "fixed":
        raise InputError(
            f"The controller {case.controller.policy!r} does not run in real time yet.",
            "Execute with the plan's clocks: --controller fixed",
        )


@dataclass(slots=True, kw_only=True)
class _Loop:
    """The event loop."""

    desk: ForwardDesk
    backend: Backend
    report: Report | None
    num_lost: int = 0
    num_come: int = 0

    def run(self) -> bool:
        """Serve until every request is answered or rejected; says whether that was broken off."""
        try:
            while self.num_come < self.desk.num_requests or self.desk.num_open:
                self._step()
        except KeyboardInterrupt:
            return True
        return False

    def _step(self) -> None:
        """What happens next: an event of the backend, an arrival, or a dispatch."""
        arrival_s = math.inf
        if self.num_come < self.desk.num_requests:
            arrival_s = self.desk.arrival_s(self.num_come)
        dispatch_s, group = self.desk.next_dispatch()
        event = self.backend.next_event(min(arrival_s, dispatch_s))
        if event is not None:
            self._note(event)
        elif arrival_s <= dispatch_s:
            self.desk.arrive(self.num_come)
            self.num_come += 1
            if self.report is not None:
                done = self.num_come - self.desk.num_open
                self.report(self.backend.now_s(), done, self.desk.num_requests)
        else:
            work = self.desk.dispatch(group, max(dispatch_s, self.backend.now_s()))
            if work is not None:
                self.backend.launch(work)

    def _note(self, event: Event) -> None:
        match event:
            case StageDone():
                self.desk.stage_done(event)
            case PassDone():
                self.desk.pass_done(event.number, event.at_s)
            case GroupLost():
                self.num_lost += len(event.numbers)
                self.desk.lost(event.group)
            case _:
                self.desk.ready(event.group, event.at_s)
