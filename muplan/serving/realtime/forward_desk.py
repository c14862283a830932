"""The desk of forward groups: when their stages will be free follows from what is told of the passes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from muplan.serving.case import Case
from muplan.serving.forward_steps import (
    arrive,
    begin_batch,
    complete_batch,
    control_clocks,
    dispatch_s,
    empty_queues,
    put_in_order,
    requeue,
    settle_group_promises,
    tabulate_all,
)
from muplan.serving.kernel_tables import KernelTables
from muplan.serving.ledger import Columns
from muplan.serving.realtime.backend import Pass, StageDone
from muplan.serving.realtime.desk import Desk, Numbers
from muplan.serving.simulator import forward_requests, note_forward, routing_seed, virtual_queues


@dataclass(slots=True, kw_only=True)
class _Flight:
    """A pass under way, and when its stages have ended it, as far as they have."""

    work: Pass
    requests: tuple[int, ...]
    """Their rows."""
    launch_s: float
    end_s: list[float] = field(default_factory=list)


class ForwardDesk(Desk):
    """Queues of the forward groups of a case, and what is under way.

    Parameters
    ----------
    tables
        The groups, all idle and empty; the desk keeps its state in them.
    rng
        Draws the seed of power-of-two routing.
    numbers
        Of the passes.
    """

    def __init__(self, case: Case, tables: KernelTables, rng: np.random.Generator, numbers: Numbers) -> None:
        settings = case.settings("forward", routing_seed(case, rng))
        super().__init__(case, case.groups("forward"), tables, settings, numbers)
        self._requests = forward_requests(case)
        self._requests["completion_s"] = np.nan
        self._virtual = virtual_queues(settings, self._requests)
        self._flights: list[deque[_Flight]] = [deque() for _ in self._groups]
        self._group_of: dict[int, int] = {}
        self._last_end_s = np.zeros(len(tables.stages))
        self._taken = np.zeros(int(tables.replicas["max_batch"].max()), dtype=np.int64)
        self._global = case.requests("forward")
        tables.groups["wake_s"] = np.inf  # nothing leaves by itself
        tabulate_all(tables.groups, tables.stages, tables.replicas, tables.values)

    @property
    def num_requests(self) -> int:
        """Requests that come, in the order of arrival."""
        return len(self._requests)

    @property
    def num_open(self) -> int:
        """Requests that wait or are under way."""
        return int(self._tables.groups["num_waiting"].sum()) + sum(
            len(flight.work.requests) for flights in self._flights for flight in flights
        )

    def arrival_s(self, request: int) -> float:
        """When a request comes, seconds."""
        return float(self._requests["arrival_s"][request])

    def arrive(self, request: int) -> None:
        """Let a request come: it is queued, or rejected."""
        tables = self._tables
        arrive(
            self._settings, tables.groups, tables.stages, tables.replicas, self._requests, self._virtual,
            *self._candidates, tables.values, self._counts, self._clocks.log, self._account.samples_j,
            request,
        )  # fmt: skip
        tables.groups["wake_s"] = np.inf

    def next_dispatch(self) -> tuple[float, int]:
        """When the next batch may leave of a group whose first stage is free, and which; infinite: none."""
        best_s, best = np.inf, -1
        for number, group in enumerate(self._tables.groups):
            if group["num_waiting"] == 0 or number in self._down or self._is_busy(number):
                continue
            at_s = dispatch_s(self._tables.groups, self._tables.stages, number)
            if at_s < best_s:
                best_s, best = at_s, number
        return best_s, best

    def dispatch(self, number: int, now_s: float) -> Pass | None:
        """Let the next batch of a group leave; None where a hopeless request was dropped instead."""
        tables, group = self._tables, self._groups[number]
        foretold = np.zeros(3 * len(group.stages))
        size = begin_batch(
            self._settings, tables.groups, tables.stages, tables.replicas, self._requests, self._virtual,
            tables.values, self._counts, number, now_s, self._taken, foretold,
        )  # fmt: skip
        if size == 0:
            return None
        requests = tuple(self._taken[:size].tolist())
        compute_s, transfer_s, power_w = foretold.reshape(-1, 3).T.tolist()
        service = self._case.problem.services[int(self._requests["service"][requests[0]])]
        work = Pass(
            number=self._next_number(),
            group=group.name,
            service=service.name,
            requests=tuple(self._global[list(requests)].tolist()),
            tokens=int(service.input_tokens),
            compute_s=tuple(compute_s),
            transfer_s=tuple(transfer_s),
            power_w=tuple(power_w),
        )
        self._group_of[work.number] = number
        self._flights[number].append(_Flight(work=work, requests=requests, launch_s=now_s))
        self._foresee(number)
        settle_group_promises(tables.groups, tables.stages, number)
        return work

    def stage_done(self, event: StageDone) -> None:
        """Note the end of a stage, and account for its energy."""
        number = self._group_of[event.number]
        flight = next(one for one in self._flights[number] if one.work.number == event.number)
        flight.end_s.append(event.end_s)
        stage = int(self._tables.groups["first_stage"][number]) + event.stage
        self._last_end_s[stage] = event.end_s
        self._account.busy(stage, event.begin_s, event.end_s, flight.work.power_w[event.stage])
        self._foresee(number)

    def work_done(self, number: int, at_s: float) -> None:
        """Note that the answers of a pass are there."""
        flights = self._flights[self._group_of.pop(number)]
        flight = next(one for one in flights if one.work.number == number)
        complete_batch(
            self._settings, self._tables.replicas, self._requests, self._counts,
            np.array(flight.requests, dtype=np.int64), at_s,
        )  # fmt: skip
        flights.remove(flight)

    def _lose(self, number: int) -> None:
        """Put the requests of all passes under way on a group back to the head of their queues."""
        while self._flights[number]:
            flight = self._flights[number].pop()
            del self._group_of[flight.work.number]
            requeue(
                self._settings, self._tables.groups, self._tables.replicas, self._requests, self._virtual,
                self._tables.values, number, np.array(flight.requests, dtype=np.int64),
            )  # fmt: skip

    def _free(self, number: int, at_s: float) -> None:
        row = self._tables.groups[number]
        self._last_end_s[row["first_stage"] : row["last_stage"]] = at_s
        self._foresee(number)

    def _move(self, number: int) -> None:
        """Let what waits at a group come again, in the order of arrival.

        It is judged as if it came when it did come, behind what waits now.
        """
        tables = self._tables
        waiting = np.zeros(int(tables.groups["num_waiting"][number]), dtype=np.int64)
        empty_queues(tables.groups, tables.replicas, self._requests, number, waiting)
        for request in np.sort(waiting).tolist():
            self.arrive(request)
            replica = int(self._requests["replica"][request])
            if replica >= 0:
                put_in_order(self._settings, tables.groups, tables.replicas, self._requests, replica)

    def _control_group(self, number: int, until_s: float) -> None:
        tables = self._tables
        control_clocks(
            self._settings, tables.groups, tables.stages, tables.replicas, self._requests, tables.values,
            self._counts, self._clocks.log, number, until_s,
        )  # fmt: skip

    def _note(self, columns: Columns) -> None:
        self._requests["replica"][np.isnan(self._requests["completion_s"])] = -1
        note_forward(self._case, self._tables, self._requests, columns)

    def _is_busy(self, number: int) -> bool:
        """Whether a pass has not left a group's first stage yet."""
        return any(not flight.end_s for flight in self._flights[number])

    def _foresee(self, number: int) -> None:
        """Set when the stages of a group will be free, from what has ended and what is foretold."""
        row = self._tables.groups[number]
        first = int(row["first_stage"])
        free_s = self._last_end_s[first : int(row["last_stage"])].tolist()
        for flight in self._flights[number]:
            work, at_s = flight.work, flight.launch_s
            for stage in range(len(free_s)):
                if stage < len(flight.end_s):
                    at_s = flight.end_s[stage] + work.transfer_s[stage]
                    continue
                free_s[stage] = max(at_s, free_s[stage]) + work.compute_s[stage]
                at_s = free_s[stage] + work.transfer_s[stage]
        self._tables.stages["free_s"][first : first + len(free_s)] = free_s
