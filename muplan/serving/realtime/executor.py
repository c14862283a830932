"""The real-time executor: requests come, decisions fall, a backend runs the passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from muplan.errors import InputError, MachineError
from muplan.serving.case import Case
from muplan.serving.forward_tables import forward_tables
from muplan.serving.generate_tables import generate_tables
from muplan.serving.ledger import empty_columns, make_records
from muplan.serving.realtime.backend import Backend, Event, GroupGone, GroupLost, GroupReady, StageDone, Work
from muplan.serving.realtime.desk import Desk
from muplan.serving.realtime.desks import Desks
from muplan.serving.realtime.forward_desk import ForwardDesk
from muplan.serving.realtime.generate_desk import GenerateDesk
from muplan.serving.realtime.partial import cut_records
from muplan.serving.records import Records

Report = Callable[[float, int, int], None]
"""Is told seconds since the run began, requests answered or rejected so far, and requests in all."""


@dataclass(slots=True, kw_only=True)
class Outage:
    """A group without all its workers: from when, until when if it came back, and on what other host."""

    group: str
    begin_s: float
    end_s: float | None = None
    moved_to: str | None = None
    is_final: bool = False
    """Whether it was given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealTimeRun:
    """What a run in real time left: its records, and whether it was broken off."""

    records: Records
    num_lost: int
    """Passes and iterations that were lost with their worker and run again."""
    decision_s: float
    """Mean time that the executor itself took for a request, by the host's clock; 0 without requests."""
    is_partial: bool
    fault: MachineError | None = None
    """What broke it off, where that was not the user."""
    outages: tuple[Outage, ...] = ()


def serve_in_real_time(
    case: Case, backend: Backend, *, rng: np.random.Generator, report: Report | None = None
) -> RealTimeRun:
    """Serve the requests of a case on a backend, to the last.

    At equal times what is done comes first, then decisions on clocks, then who arrives, then what leaves, as
    in the simulator. Ctrl-C breaks the run off, and so does a backend that cannot go on: the records go as
    far as it went.

    Parameters
    ----------
    backend
        Entered here, and left at the end.

    Raises
    ------
    InputError
        The case asks for what is not served in real time.
    MachineError
        It was broken off before anything was measured; the backend's own where that broke it off.
    """
    _check(case, backend)
    for desk in _desks(case, np.random.default_rng(0), is_foretold=True):
        _rehearse(desk)
    desks = Desks(_desks(case, rng, is_foretold=not backend.is_measured))
    least_s = case.measured_until_s if backend.is_measured else 0.0  # what idles is measured too
    loop = _Loop(desks=desks, backend=backend, report=report, least_s=least_s)
    until_s = case.trace.duration_s
    with backend:
        is_partial = loop.run()
        if is_partial:
            until_s = min(backend.now_s(), until_s)
    if loop.fault is not None and until_s <= case.warm_up_s:
        raise loop.fault
    columns = empty_columns(len(case.trace))
    results = desks.finish(columns, until_s)
    return RealTimeRun(
        records=cut_records(make_records(case, columns, results), until_s),
        num_lost=loop.num_lost,
        decision_s=loop.deciding_s / max(loop.num_come, 1),
        is_partial=is_partial,
        fault=loop.fault,
        outages=tuple(loop.outages),
    )


def _desks(case: Case, rng: np.random.Generator, *, is_foretold: bool) -> list[Desk]:
    """The desks of a case, randomness drawn in the order of the simulator."""
    desks: list[Desk] = []
    numbers = count().__next__
    problem, serving = case.problem, case.deployment.serving
    if groups := case.groups("forward"):
        desks.append(ForwardDesk(case, forward_tables(problem, groups, serving), rng, numbers))
    if groups := case.groups("generate"):
        overhead_s = serving.overhead_s if is_foretold else 0.0
        tables = generate_tables(problem, groups, serving)
        desks.append(GenerateDesk(case, tables, rng, numbers, overhead_s=overhead_s))
    return desks


def _rehearse(desk: Desk) -> None:
    """Have every compiled step loaded or, at first, compiled before time counts.

    The first request that is not rejected is dispatched, lost, dispatched again and served, a decision on
    clocks is taken and the group given up, on a desk that is then thrown away.
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
        for stage in range(len(again.compute_s)):
            desk.stage_done(StageDone(number=again.number, stage=stage, begin_s=at_s, end_s=at_s))
        desk.work_done(again.number, at_s)
    if math.isfinite(desk.next_control_s()):
        desk.control(desk.next_control_s())
    if request + 1 < desk.num_requests:  # which the group then has, most likely
        desk.arrive(request + 1)
    desk.lost(work.group)
    desk.gone(work.group)


def _check(case: Case, backend: Backend) -> None:
    if case.controller.policy != "fixed" and not backend.sets_clocks:
        raise InputError(
            f"The controller {case.controller.policy!r} moves clocks, which are not set here.",
            "Execute with the plan's clocks: --controller fixed",
        )


@dataclass(slots=True, kw_only=True)
class _Loop:
    """The event loop."""

    desks: Desks
    backend: Backend
    report: Report | None
    least_s: float
    """How long it goes on at least, seconds."""
    num_lost: int = 0
    num_come: int = 0
    deciding_s: float = 0.0
    """Time spent at the desks, by the host's clock."""
    fault: MachineError | None = None
    """Why the backend could not go on."""
    outages: list[Outage] = field(default_factory=list)

    def run(self) -> bool:
        """Serve until every request is answered or rejected; says whether that was broken off."""
        try:
            while self._is_open() or self.backend.now_s() < self.least_s:
                self._step()
        except KeyboardInterrupt:
            return True
        except MachineError as error:
            self.fault = error
            return True
        return False

    def _is_open(self) -> bool:
        """Whether requests come yet, wait or are under way."""
        return self.num_come < self.desks.num_requests or self.desks.num_open > 0

    def _step(self) -> None:
        """What happens next: an event of the backend, an arrival, or a dispatch."""
        begin_s = time.perf_counter()
        arrival_s = math.inf
        if self.num_come < self.desks.num_requests:
            arrival_s = self.desks.arrival_s(self.num_come)
        (dispatch_s, group), control_s = self.desks.next_dispatch(), self.desks.next_control_s()
        self.deciding_s += time.perf_counter() - begin_s
        end_s = math.inf if self._is_open() else self.least_s
        event = self.backend.next_event(min(control_s, arrival_s, dispatch_s, end_s))
        begin_s = time.perf_counter()
        if event is None and end_s < min(control_s, arrival_s, dispatch_s):
            return
        if event is None and control_s <= min(arrival_s, dispatch_s):
            commands = self.desks.control(control_s)
            self.deciding_s += time.perf_counter() - begin_s
            for command in commands:
                self.backend.set_clock(command)
            return
        work = self._decide(event, arrival_s, dispatch_s, group)
        self.deciding_s += time.perf_counter() - begin_s
        if work is not None:
            self.backend.launch(work)

    def _decide(self, event: Event | None, arrival_s: float, dispatch_s: float, group: int) -> Work | None:
        """Take in what happens next; returns the work that leaves, if one does."""
        if event is not None:
            self.num_lost += self.desks.note(event)
            self._note_outage(event)
        elif arrival_s <= dispatch_s:
            self.desks.arrive(self.num_come)
            self.num_come += 1
            if self.report is not None:
                done = self.num_come - self.desks.num_open
                self.report(self.backend.now_s(), done, self.desks.num_requests)
        else:
            return self.desks.dispatch(group, max(dispatch_s, self.backend.now_s()))
        return None

    def _note_outage(self, event: Event) -> None:
        """Note from when to when a group was down."""
        if not isinstance(event, GroupLost | GroupReady | GroupGone):
            return
        down = next((one for one in self.outages if one.group == event.group and one.end_s is None), None)
        match event:
            case GroupLost() if down is None:
                self.outages.append(Outage(group=event.group, begin_s=event.at_s))
            case GroupReady() if down is not None:
                down.end_s, down.moved_to = event.at_s, event.moved_to
            case GroupGone() if down is not None:
                down.is_final = True
