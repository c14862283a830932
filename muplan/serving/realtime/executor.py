"""The real-time executor: requests come, decisions fall, a backend runs the passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from muplan.errors import InputError
from muplan.serving.case import Case
from muplan.serving.forward_tables import forward_tables
from muplan.serving.ledger import empty_columns, make_records
from muplan.serving.realtime.backend import Backend, Event, GroupLost, Pass, PassDone, StageDone
from muplan.serving.realtime.desk import ForwardDesk
from muplan.serving.realtime.partial import cut_records
from muplan.serving.records import Records

Report = Callable[[float, int, int], None]
"""Is told seconds since the run began, requests answered or rejected so far, and requests in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTimeRun:
    """What a run in real time left: its records, and whether it was broken off."""

    records: Records
    num_lost: int
    """Passes that were lost with their worker and run again."""
    decision_s: float
    """Mean time that the executor itself took for a request, by the host's clock; 0 without requests."""
    is_partial: bool


def serve_in_real_time(
    case: Case, backend: Backend, *, rng: np.random.Generator, report: Report | None = None
) -> RealTimeRun:
    """Serve the requests of a case on a backend, to the last.

    At equal times what is done comes first, then who arrives, then what leaves, as in the simulator. Ctrl-C
    breaks the run off: the records go as far as it went.

    Parameters
    ----------
    backend
        Entered here, and left at the end.

    Raises
    ------
    InputError
        The case asks for what is not served in real time.
    MachineError
        It was broken off before anything was measured.
    """
    _check(case)
    _load_steps(_desk(case, np.random.default_rng(0)))
    desk = _desk(case, rng)
    loop = _Loop(desk=desk, backend=backend, report=report)
    until_s = case.trace.duration_s
    with backend:
        is_partial = loop.run()
        if is_partial:
            until_s = min(backend.now_s(), until_s)
    columns = empty_columns(len(case.trace))
    result = desk.finish(columns, until_s)
    return RealTimeRun(
        records=cut_records(make_records(case, columns, [result]), until_s),
        num_lost=loop.num_lost,
        decision_s=loop.deciding_s / max(loop.num_come, 1),
        is_partial=is_partial,
    )


def _desk(case: Case, rng: np.random.Generator) -> ForwardDesk:
    tables = forward_tables(case.problem, case.groups("forward"), case.deployment.serving)
    return ForwardDesk(case, tables, rng)


def _load_steps(desk: ForwardDesk) -> None:
    """Have every compiled step loaded, or compiled, before time counts: some seconds, or half a minute.

    The first request that is not rejected is dispatched, lost, dispatched again and served, on a desk that
    is then thrown away.
    """
    for request in range(desk.num_requests):
        desk.arrive(request)
        at_s, group = desk.next_dispatch()
        if group >= 0:
            break
    else:
        return
    work = desk.dispatch(group, at_s)
    if work is None:
        return
    desk.lost(work.group)
    desk.ready(work.group, at_s)
    again = desk.dispatch(group, at_s)
    if again is not None:
        desk.stage_done(StageDone(number=again.number, stage=0, begin_s=at_s, end_s=at_s))


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
    deciding_s: float = 0.0
    """Time spent at the desk, by the host's clock."""

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
        begin_s = time.perf_counter()
        arrival_s = math.inf
        if self.num_come < self.desk.num_requests:
            arrival_s = self.desk.arrival_s(self.num_come)
        dispatch_s, group = self.desk.next_dispatch()
        self.deciding_s += time.perf_counter() - begin_s
        event = self.backend.next_event(min(arrival_s, dispatch_s))
        begin_s = time.perf_counter()
        work = self._decide(event, arrival_s, dispatch_s, group)
        self.deciding_s += time.perf_counter() - begin_s
        if work is not None:
            self.backend.launch(work)

    def _decide(self, event: Event | None, arrival_s: float, dispatch_s: float, group: int) -> Pass | None:
        """Take in what happens next; returns the pass that leaves, if one does."""
        if event is not None:
            self._note(event)
        elif arrival_s <= dispatch_s:
            self.desk.arrive(self.num_come)
            self.num_come += 1
            if self.report is not None:
                done = self.num_come - self.desk.num_open
                self.report(self.backend.now_s(), done, self.desk.num_requests)
        else:
            return self.desk.dispatch(group, max(dispatch_s, self.backend.now_s()))
        return None

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
