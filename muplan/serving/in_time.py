"""Counts of requests in time for placements made of a few kinds of groups, as a search makes them.

Every replica of a service takes the same time on every group of one kind, so `PassBook` holds these times
once, and a placement is only numbers that point into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.plan import Group
from muplan.problem.problem import Problem
from muplan.serving.forward_tables import forward_tables
from muplan.serving.in_time_kernel import Offered, Placed, count_edf, count_fcfs
from muplan.serving.layout import Floats, Integers
from muplan.serving.policies import ROUTING_CODE, plain_order
from muplan.traces.trace import Trace
from muplan.workload import QueueOrder, Rejection, Routing, Serving


def is_countable(serving: Serving) -> bool:
    """Whether the counts of batches of one under these rules are those of the full simulator.

    Rejection, in the order of arrivals with a routing that looks at what is promised (AlpaServe's rules are
    such), or of deadlines with the shortest expected completion; no controller, no batching timeout.
    """
    if serving.controller.policy != "fixed" or serving.batch_timeout_s > 0:
        return False
    if serving.rejection is Rejection.NONE or serving.routing is Routing.ROUND_ROBIN:
        return False
    if serving.queue_order is QueueOrder.FCFS:
        return True
    return (
        serving.queue_order is QueueOrder.EDF
        and serving.rejection is Rejection.AT_DISPATCH
        and serving.routing is Routing.SHORTEST_EXPECTED_COMPLETION
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Counted requests in time by service, and requests served by group."""

    in_time: Integers
    served: Integers


class PassBook:
    """Times of the passes of every service on every kind of group it can be on, batches of one.

    Parameters
    ----------
    kinds
        For each kind a group at its clocks that hosts one service, by the service's number.
    serving
        The rules; `is_countable` must hold of them.
    """

    def __init__(self, problem: Problem, kinds: Sequence[dict[int, Group]], serving: Serving) -> None:
        self._serving = serving
        self._limit_s = np.array([service.limits.latency_s for service in problem.services])
        self._order = plain_order(serving.queue_order, self._limit_s.tolist())
        num_services = len(problem.services)
        self._first_row = np.full((len(kinds), num_services), -1)
        self._slowest_s = np.zeros((len(kinds), num_services))
        self._num_stages = np.array([len(next(iter(kind.values())).stages) for kind in kinds])
        passes: list[Floats] = []
        transfers: list[Floats] = []
        rows = 0
        for number, kind in enumerate(kinds):
            for service, group in kind.items():
                pass_s, transfer_s = _times(problem, group, serving)
                passes.append(pass_s)
                transfers.append(transfer_s)
                self._first_row[number, service] = rows
                self._slowest_s[number, service] = pass_s.max()
                rows += len(pass_s)
        self._pass_s, self._transfer_s = np.concatenate(passes), np.concatenate(transfers)

    def offered(self, trace: Trace, service: Integers, warm_up_s: float, cool_down_s: float) -> Offered:
        """A trace as the kernels take it; ``service`` numbers its requests' services as the problem does."""
        return Offered(
            arrival_s=trace.arrival_s,
            service=service,
            limit_s=self._limit_s,
            overhead_s=self._serving.overhead_s,
            measured_from_s=warm_up_s,
            measured_until_s=trace.duration_s - cool_down_s,
            routing=ROUTING_CODE[self._serving.routing],
        )

    def placed(self, kinds: Sequence[int], services: Sequence[Sequence[int]]) -> Placed:
        """Groups as the kernels take them: the kind of each, and the services it hosts."""
        kind = np.array(kinds, dtype=np.int64)
        sizes = [len(hosted) for hosted in services]
        service = np.array([number for hosted in services for number in hosted], dtype=np.int64)
        group = np.repeat(np.arange(len(sizes)), sizes)
        by_service = np.argsort(service, kind="stable")
        bounds = np.arange(len(self._limit_s) + 1)
        return Placed(
            first_stage=np.concatenate(([0], np.cumsum(self._num_stages[kind]))),
            first_replica=np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))),
            group=group,
            first_row=self._first_row[kind[group], service],
            slowest_s=self._slowest_s[kind[group], service],
            first_by_service=np.searchsorted(service[by_service], bounds),
            by_service=by_service,
            pass_s=self._pass_s,
            transfer_s=self._transfer_s,
        )

    def count(self, placed: Placed, offered: Offered) -> Counts:
        """Simulate a placement on a trace."""
        in_time = np.zeros(len(self._limit_s), dtype=np.int64)
        served = np.zeros(len(placed.first_stage) - 1, dtype=np.int64)
        count = count_fcfs if self._order is QueueOrder.FCFS else count_edf
        count(offered, placed, in_time, served)
        return Counts(in_time=in_time, served=served)


def _times(problem: Problem, group: Group, serving: Serving) -> tuple[Floats, Floats]:
    """Time of a request by itself on each stage of a group with one replica, and to the next stage."""
    tables = forward_tables(problem, [group], serving)
    row, num_stages = tables.replicas[0], len(group.stages)
    num_clocks, largest = int(tables.groups[0]["num_clocks"]), int(row["max_batch"])
    cells = (np.arange(num_stages) * num_clocks + tables.stages["clock"]) * largest
    onward = np.arange(num_stages) * largest
    return tables.values[row["first_pass_s"] + cells], tables.values[row["first_transfer"] + onward]
