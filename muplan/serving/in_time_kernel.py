"""How many forward requests are in time, and nothing else; compiled.

A search for goodput simulates thousands of placements and looks at no energy, batch or clock. For
batches of one at fixed clocks without a batching timeout these functions give the counts of
`muplan.serving.forward_kernel`, to the last request, in a fraction of its time: they keep their state in
flat arrays and follow only what decides whether a request is in time. A test holds the two equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from muplan.serving.compiled import compiled, inlined
from muplan.serving.layout import Floats, Integers
from muplan.serving.policies import EDF, LEAST_LAST_STAGE, is_late, queue_key

NONE = -1


class Offered(NamedTuple):
    """Requests, in the order of arrival, with the rules they are served under.

    ``limit_s`` is each service's, ``service`` each request's. Counted are arrivals from
    ``measured_from_s`` to ``measured_until_s``. ``routing`` is ``LEAST_LAST_STAGE`` or
    ``SHORTEST_EXPECTED_COMPLETION``.
    """

    arrival_s: Floats
    service: Integers
    limit_s: Floats
    overhead_s: float
    measured_from_s: float
    measured_until_s: float
    routing: int


class Placed(NamedTuple):
    """Groups and their replicas.

    Stages and replicas of group g begin at ``first_stage[g]`` and ``first_replica[g]`` and end where those
    of the next begin. Replica r takes ``pass_s[row + k]`` on the k-th stage and ``transfer_s[row + k]`` to
    the next, with ``row = first_row[r]``, and ``slowest_s[r]`` on the slowest. The replicas of service s
    are ``by_service[first_by_service[s]:first_by_service[s + 1]]``.
    """

    first_stage: Integers
    first_replica: Integers
    group: Integers
    first_row: Integers
    slowest_s: Floats
    first_by_service: Integers
    by_service: Integers
    pass_s: Floats
    transfer_s: Floats


class Queues(NamedTuple):
    """The state of a simulation: when stages are free, and who waits (−1: nobody).

    Queues are linked: ``behind`` is the next request of the same replica. ``queued`` counts those of a group,
    ``hopeful`` those of a replica that are expected to be served; ``hopeless`` tells of each request whether
    it is not. ``backlog_s`` is a group's, of the hopeful, NaN until it is asked for.
    """

    free_s: Floats
    head: Integers
    tail: Integers
    hopeful: Integers
    queued: Integers
    backlog_s: Floats
    behind: Integers
    hopeless: Integers


def empty_queues(offered: Offered, placed: Placed) -> Queues:
    """The state before the first request comes."""
    num_stages, num_replicas, num_groups = (
        placed.first_stage[-1],
        len(placed.group),
        len(placed.first_stage) - 1,
    )
    return Queues(
        free_s=np.zeros(num_stages),
        head=np.full(num_replicas, NONE),
        tail=np.full(num_replicas, NONE),
        hopeful=np.zeros(num_replicas, dtype=np.int64),
        queued=np.zeros(num_groups, dtype=np.int64),
        backlog_s=np.zeros(num_groups),
        behind=np.full(len(offered.arrival_s), NONE),
        hopeless=np.zeros(len(offered.arrival_s), dtype=np.int64),
    )


@compiled
def count_fcfs(
    offered: Offered, placed: Placed, free_s: Floats, ends_s: Floats, in_time: Integers, served: Integers
) -> None:
    """First come, first served: what a request will be late by is known when it comes.

    So one that would be late is left out at once, whether it is rejected at its arrival or dropped when its
    turn comes, and every one that stays is in time.

    Parameters
    ----------
    free_s
        When stages are free, of zeros at first; shape (stages,).
    ends_s
        Room for the passes of a request through two replicas; shape (2, stages).
    in_time
        Filled: counted requests in time, by service.
    served
        Filled: requests served, by group.
    """
    for request in range(len(offered.arrival_s)):
        now_s, service = offered.arrival_s[request], offered.service[request]
        chosen, least_s, kept = NONE, np.inf, 0  # of the two rows of ends_s that of the chosen
        for candidate in range(placed.first_by_service[service], placed.first_by_service[service + 1]):
            replica = placed.by_service[candidate]
            if offered.routing == LEAST_LAST_STAGE:
                at_s = free_s[placed.first_stage[placed.group[replica] + 1] - 1]
            else:
                at_s = _pass_through(placed, free_s, replica, now_s, ends_s[1 - kept])
            if at_s < least_s:
                chosen, least_s, kept = replica, at_s, 1 - kept
        if chosen == NONE:
            continue
        if offered.routing == LEAST_LAST_STAGE:
            least_s = _pass_through(placed, free_s, chosen, now_s, ends_s[kept])
        if not is_late(now_s, least_s + offered.overhead_s, offered.limit_s[service]):
            group = placed.group[chosen]
            for stage in range(placed.first_stage[group], placed.first_stage[group + 1]):
                free_s[stage] = ends_s[kept, stage]
            served[group] += 1
            if offered.measured_from_s <= now_s < offered.measured_until_s:
                in_time[service] += 1


@inlined
def _pass_through(placed: Placed, free_s: Floats, replica: int, now_s: float, ends_s: Floats) -> float:
    """When a request that comes now would be complete on a replica, seconds; fills when its stages end."""
    group = placed.group[replica]
    first, last = placed.first_stage[group], placed.first_stage[group + 1]
    at_s, row = now_s, placed.first_row[replica] - first
    for stage in range(first, last):
        ends_s[stage] = max(at_s, free_s[stage]) + placed.pass_s[row + stage]
        at_s = ends_s[stage] + placed.transfer_s[row + stage]
    return float(at_s)


@compiled
def count_edf(offered: Offered, placed: Placed, queues: Queues, in_time: Integers, served: Integers) -> None:
    """Earliest deadline first; to the shortest expected completion of the groups expected to be in time.

    A request that would be late if dispatched is dropped, so every one that stays is in time.

    Parameters
    ----------
    queues
        As `empty_queues` makes them.
    in_time, served
        As `count_fcfs`.
    """
    for request in range(len(offered.arrival_s)):
        now_s, service = offered.arrival_s[request], offered.service[request]
        chosen, least_s, least_late = NONE, np.inf, True
        for candidate in range(placed.first_by_service[service], placed.first_by_service[service + 1]):
            replica = placed.by_service[candidate]
            group = placed.group[replica]
            if queues.queued[group] > 0:
                _dispatch_until(offered, placed, queues, group, now_s, in_time, served)
            next_s = _completion_if_next_s(placed, queues.free_s, replica, now_s)
            at_s = _backlog_s(placed, queues, group) + next_s
            late = is_late(now_s, at_s + offered.overhead_s, offered.limit_s[service])
            if late:
                due_s = _due_s(offered, placed, queues, replica, now_s + offered.limit_s[service]) + next_s
                late = is_late(now_s, due_s + offered.overhead_s, offered.limit_s[service])
            if late < least_late or (late == least_late and at_s < least_s):
                chosen, least_s, least_late = replica, at_s, late
        if chosen != NONE:
            _enqueue(placed, queues, chosen, request, least_late)
    for group in range(len(placed.first_stage) - 1):
        _dispatch_until(offered, placed, queues, group, np.inf, in_time, served)


@inlined
def _completion_if_next_s(placed: Placed, free_s: Floats, replica: int, now_s: float) -> float:
    """When a request that comes now would be complete on a replica if it went next, seconds."""
    group = placed.group[replica]
    first, last = placed.first_stage[group], placed.first_stage[group + 1]
    at_s, row = now_s, placed.first_row[replica] - first
    for stage in range(first, last):
        at_s = max(at_s, free_s[stage]) + placed.pass_s[row + stage]
        at_s += placed.transfer_s[row + stage]
    return float(at_s)


@inlined
def _backlog_s(placed: Placed, queues: Queues, group: int) -> float:
    """Time that what waits hopefully keeps a group's slowest stage."""
    if np.isnan(queues.backlog_s[group]):
        backlog_s = 0.0
        for replica in range(placed.first_replica[group], placed.first_replica[group + 1]):
            backlog_s += queues.hopeful[replica] * placed.slowest_s[replica]
        queues.backlog_s[group] = backlog_s
    return float(queues.backlog_s[group])


@inlined
def _due_s(offered: Offered, placed: Placed, queues: Queues, replica: int, deadline_s: float) -> float:
    """Of the backlog of a replica's group what is due up to a deadline."""
    group, due_s = placed.group[replica], 0.0
    for other in range(placed.first_replica[group], placed.first_replica[group + 1]):
        count = queues.hopeful[other]
        if other != replica and count > 0:
            limit_s = offered.limit_s[offered.service[queues.head[other]]]
            if offered.arrival_s[queues.tail[other]] + limit_s > deadline_s:
                count, request = 0, queues.head[other]
                while offered.arrival_s[request] + limit_s <= deadline_s:
                    count += 1 - queues.hopeless[request]
                    request = queues.behind[request]
        due_s += count * placed.slowest_s[other]
    return due_s


@inlined
def _enqueue(placed: Placed, queues: Queues, replica: int, request: int, hopeless: bool) -> None:
    """Put a request at the end of a replica's queue."""
    group = placed.group[replica]
    if queues.head[replica] == NONE:
        queues.head[replica] = request
    else:
        queues.behind[queues.tail[replica]] = request
    queues.tail[replica] = request
    queues.queued[group] += 1
    if hopeless:
        queues.hopeless[request] = 1
    else:
        queues.hopeful[replica] += 1
        queues.backlog_s[group] = np.nan


@inlined
def _dispatch_until(
    offered: Offered,
    placed: Placed,
    queues: Queues,
    group: int,
    until_s: float,
    in_time: Integers,
    served: Integers,
) -> None:
    """Dispatch or drop, in queue order, what leaves a group before ``until_s``."""
    first, last = placed.first_stage[group], placed.first_stage[group + 1]
    while queues.queued[group] > 0:
        begin_s = np.inf
        for replica in range(placed.first_replica[group], placed.first_replica[group + 1]):
            if queues.head[replica] != NONE:
                begin_s = min(begin_s, offered.arrival_s[queues.head[replica]])
        begin_s = max(begin_s, queues.free_s[first])
        if begin_s >= until_s:
            return
        replica = _next_replica(offered, placed, queues, group, begin_s)
        request = queues.head[replica]
        service, at_s = offered.service[request], begin_s
        row = placed.first_row[replica] - first
        for stage in range(first, last):
            at_s = max(at_s, queues.free_s[stage]) + placed.pass_s[row + stage]
            at_s += placed.transfer_s[row + stage]
        if not is_late(offered.arrival_s[request], at_s + offered.overhead_s, offered.limit_s[service]):
            at_s = begin_s
            for stage in range(first, last):
                queues.free_s[stage] = max(at_s, queues.free_s[stage]) + placed.pass_s[row + stage]
                at_s = queues.free_s[stage] + placed.transfer_s[row + stage]
            served[group] += 1
            if offered.measured_from_s <= offered.arrival_s[request] < offered.measured_until_s:
                in_time[service] += 1
        queues.head[replica] = queues.behind[request]
        queues.queued[group] -= 1
        queues.hopeful[replica] -= 1 - queues.hopeless[request]
        queues.backlog_s[group] = np.nan


@inlined
def _next_replica(offered: Offered, placed: Placed, queues: Queues, group: int, now_s: float) -> int:
    """The replica whose oldest request is due first; ties go to the earlier request."""
    best, best_key, best_head = NONE, np.inf, NONE
    for replica in range(placed.first_replica[group], placed.first_replica[group + 1]):
        head = queues.head[replica]
        if head == NONE or offered.arrival_s[head] > now_s:
            continue
        key = queue_key(EDF, offered.arrival_s[head], 0.0, offered.limit_s[offered.service[head]])
        if best == NONE or key < best_key or (key == best_key and head < best_head):
            best, best_key, best_head = replica, key, head
    return best
