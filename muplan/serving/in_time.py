"""Counts of requests in time for placements made of a few kinds of groups, as a search makes them.

Every replica of a service takes the same time on every group of one kind, so `PassBook` holds these times
once, and a placement is only numbers that point into it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.plan import Group
from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.forward_tables import forward_tables
from muplan.serving.in_time_kernel import Offered, Placed, count_edf, count_fcfs, empty_queues
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
    if serving.rejection is Rejection.NONE or serving.routing in (Routing.ROUND_ROBIN, Routing.POWER_OF_TWO):
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
        self._num_stages = np.array([len(next(iter(kind.values())).stages) for kind in kinds])
        passes: list[Floats] = []
        transfers: list[Floats] = []
        rows: dict[tuple[object, ...], int] = {}  # where the times of services that are alike stand
        next_row = 0
        for number, kind in enumerate(kinds):
            for service, group in kind.items():
                alike = (number, *_what_decides(problem.services[service], group))
                if alike not in rows:
                    pass_s, transfer_s = _times(problem, group, serving)
                    passes.append(pass_s)
                    transfers.append(transfer_s)
                    rows[alike], next_row = next_row, next_row + len(pass_s)
                self._first_row[number, service] = rows[alike]
        self._pass_s, self._transfer_s = np.concatenate(passes), np.concatenate(transfers)
        self._slowest_s = np.concatenate([np.full(len(pass_s), pass_s.max()) for pass_s in passes])

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
            slowest_s=self._slowest_s[self._first_row[kind[group], service]],
            first_by_service=np.searchsorted(service[by_service], bounds),
            by_service=by_service,
            pass_s=self._pass_s,
            transfer_s=self._transfer_s,
        )

    def count(self, placed: Placed, offered: Offered) -> Counts:
        """Simulate a placement on a trace."""
        in_time = np.zeros(len(self._limit_s), dtype=np.int64)
        served = np.zeros(len(placed.first_stage) - 1, dtype=np.int64)
        if self._order is QueueOrder.FCFS:
            num_stages = placed.first_stage[-1]
            free_s, ends_s = np.zeros(num_stages), np.zeros((2, num_stages))
            count_fcfs(offered, placed, free_s, ends_s, in_time, served)
        else:
            count_edf(offered, placed, empty_queues(offered, placed), in_time, served)
        return Counts(in_time=in_time, served=served)


def _what_decides(service: ResolvedService, group: Group) -> tuple[object, ...]:
    """What the times of a service on a kind of group depend on, beside the kind."""
    return id(service.profiles[group.pool]), service.input_tokens, group.replicas[0].stage_clusters


def _times(problem: Problem, group: Group, serving: Serving) -> tuple[Floats, Floats]:
    """Time of a request by itself on each stage of a group with one replica, and to the next stage."""
    tables = forward_tables(problem, [group], serving)
    row, num_stages = tables.replicas[0], len(group.stages)
    num_clocks, largest = int(tables.groups[0]["num_clocks"]), int(row["max_batch"])
    cells = (np.arange(num_stages) * num_clocks + tables.stages["clock"]) * largest
    onward = np.arange(num_stages) * largest
    return tables.values[row["first_pass_s"] + cells], tables.values[row["first_transfer"] + onward]
