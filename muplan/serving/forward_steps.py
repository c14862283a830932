"""The kernel of forward groups a step at a time, for an executor that has the batches run elsewhere.

Each step is what `muplan.serving.forward_kernel` does at an arrival, a dispatch or the end of a stage, on the
same rows and by the same functions. When stages will be free is for the executor to note.
"""

from __future__ import annotations

import numpy as np

from muplan.serving import forward_kernel
from muplan.serving.ageing import note_returned
from muplan.serving.compiled import allocating, compiled
from muplan.serving.control import count_completion
from muplan.serving.forward_kernel import first_ready_s, leave, next_batch, next_dispatch_s, settle_promises
from muplan.serving.forward_stages import foretell_pass, tabulate_work
from muplan.serving.layout import Floats, Integers, Rows

_arrive, _control = forward_kernel.arrive, forward_kernel.control


@compiled
def tabulate_all(groups: Rows, stages: Rows, replicas: Rows, values: Floats) -> None:
    """Fill the tables of work of all groups."""
    for place in range(len(groups)):
        tabulate_work(groups[place], stages, replicas, values)


@compiled
def arrive(
    settings: Rows,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    virtual: Rows,
    service_candidate: Integers,
    candidate_replica: Integers,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
    request: int,
) -> None:
    """Let a request come: it is routed, and queued or rejected."""
    _arrive(
        settings[0], groups, stages, replicas, requests, virtual, service_candidate, candidate_replica,
        values, counts, log, samples_j, request,
    )  # fmt: skip


@compiled
def dispatch_s(groups: Rows, stages: Rows, place: int) -> float:
    """When the next batch of a group may leave, seconds; infinite where nothing waits."""
    return float(next_dispatch_s(groups[place], stages))


@compiled
def begin_batch(
    settings: Rows,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    virtual: Rows,
    values: Floats,
    counts: Integers,
    place: int,
    now_s: float,
    taken: Integers,
    foretold: Floats,
) -> int:
    """Let the next batch of a group leave; returns its size, 0 where a hopeless request was dropped instead.

    ``taken`` is filled with its requests, ``foretold`` as `foretell_pass` does.
    """
    group = groups[place]
    chosen = next_batch(settings[0], group, stages, replicas, requests, virtual, values, counts, now_s)
    if chosen < 0:
        return 0
    replica = replicas[chosen]
    batch = min(replica.num_waiting, replica.max_batch)
    request = replica.head
    for number in range(batch):
        taken[number] = request
        requests[request].start_s, requests[request].batch = now_s, batch
        request = requests[request].behind
    foretell_pass(group, stages, replica, values, batch, now_s, foretold)
    leave(settings[0], group, replicas, replica, requests, virtual, values, batch, now_s)
    return int(batch)


@compiled
def settle_group_promises(groups: Rows, stages: Rows, place: int) -> None:
    """Where nothing waits, what the stages of a group have promised is what they have been given."""
    if groups[place].num_waiting == 0:
        settle_promises(groups[place], stages)


@compiled
def complete_batch(
    settings: Rows, replicas: Rows, requests: Rows, counts: Integers, batch: Integers, at_s: float
) -> None:
    """Note that the answers of a batch are there, and count them in their window of clock control."""
    for request in batch:
        place = requests[request].replica
        requests[request].completion_s = at_s
        within = at_s - requests[request].arrival_s <= replicas[place].latency_limit_s
        count_completion(settings[0], counts, place, at_s, within)


@allocating
def control_clocks(
    settings: Rows,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    values: Floats,
    counts: Integers,
    log: Floats,
    number: int,
    until_s: float,
) -> None:
    """Take a group's control decisions up to a time, and let clock changes take effect.

    The energy of the stages is not accounted for: it is only known when they have ended what they compute.
    """
    group, nothing_j = groups[number], np.zeros(2)
    settled_s = np.zeros(group.last_stage - group.first_stage)
    for place in range(group.first_stage, group.last_stage):
        settled_s[place - group.first_stage], stages[place].settled_s = stages[place].settled_s, np.inf
    _control(settings[0], group, stages, replicas, requests, values, counts, log, nothing_j, until_s)
    for place in range(group.first_stage, group.last_stage):
        stages[place].settled_s = settled_s[place - group.first_stage]


@compiled
def requeue(
    settings: Rows,
    groups: Rows,
    replicas: Rows,
    requests: Rows,
    virtual: Rows,
    values: Floats,
    place: int,
    lost: Integers,
) -> None:
    """Put requests of one service, in the order of arrival, back to the head of their queue on a group."""
    group, replica = groups[place], replicas[requests[lost[0]].replica]
    for number in range(len(lost) - 1, -1, -1):
        request = lost[number]
        if settings[0].ages:
            note_returned(group, values, virtual, request, requests[request].start_s)
        requests[request].start_s, requests[request].batch = np.nan, 0
        requests[request].behind = replica.head
        if replica.num_waiting == 0:
            replica.tail = request
        replica.head = request
        replica.num_waiting += 1
        replica.num_hopeful += 1 - requests[request].is_hopeless
        group.num_waiting += 1
    if replica.num_waiting >= replica.max_batch:
        replica.full_since_s = min(replica.full_since_s, requests[replica.tail].arrival_s)
    group.ready_s = min(group.ready_s, first_ready_s(settings[0], replica, requests))
    group.backlog_s = np.nan


@compiled
def empty_queues(groups: Rows, replicas: Rows, requests: Rows, place: int, waiting: Integers) -> None:
    """Take all requests out of the queues of a group; ``waiting`` is filled with them."""
    group, count = groups[place], 0
    for number in range(group.first_replica, group.last_replica):
        replica, request = replicas[number], replicas[number].head
        for _ in range(replica.num_waiting):
            waiting[count] = request
            requests[request].replica, requests[request].is_hopeless = -1, 0
            request = requests[request].behind
            count += 1
        replica.num_waiting = replica.num_hopeful = 0
    group.num_waiting, group.ready_s, group.backlog_s = 0, np.inf, np.nan


@compiled
def put_in_order(settings: Rows, groups: Rows, replicas: Rows, requests: Rows, place: int) -> None:
    """Put the last request of a replica's queue where it belongs in the order of arrival."""
    replica = replicas[place]
    group, last = groups[replica.group], replica.tail
    if replica.num_waiting == 1 or replica.head == last:
        return
    ahead = -1  # the last that came before it
    request = replica.head
    for _ in range(replica.num_waiting - 1):
        if request < last:
            ahead = request
        replica.tail = request
        request = requests[request].behind
    if ahead == replica.tail:  # it is where it belongs
        replica.tail = last
    elif ahead < 0:
        requests[last].behind, replica.head = replica.head, last
    else:
        requests[last].behind, requests[ahead].behind = requests[ahead].behind, last
    group.ready_s = min(group.ready_s, first_ready_s(settings[0], replica, requests))
    group.backlog_s = np.nan
