"""The compiled simulator of forward groups.

Arrivals are taken in order. A group is brought forward only when an arrival may go to it, up to the
time of that arrival (groups do not interact otherwise). When a batch is dispatched its whole way
through the stages is known, so a dispatch is the only event of a group beside clock control. At
equal times the order is: control decision, arrival, dispatch.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.ageing import note_begun, note_queued
from muplan.serving.compiled import compiled, inlined
from muplan.serving.control import MIAD, count_completion, count_rejection, decide, next_decision_s
from muplan.serving.energy import settle_idle, switch_clocks
from muplan.serving.forward_clocks import decide_forward
from muplan.serving.forward_stages import (
    deadline_completion_s,
    expected_completion_s,
    last_stage_promised_s,
    pass_completion_s,
    promise,
    run_pass,
    tabulate_work,
)
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import (
    ADMIT_ALL,
    AT_ARRIVAL,
    AT_DISPATCH,
    EDF,
    FORETELLING,
    LEAST_LAST_STAGE,
    NO_PROMISES,
    POWER_OF_TWO,
    ROUND_ROBIN,
    batch_ready_s,
    is_due,
    is_late,
    queue_key,
)
from muplan.serving.routing import drawn_pair, is_beaten, smooth_round_robin


@compiled
def serve_forward(
    settings_rows: Rows,
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
) -> None:
    """Serve all requests, to the last; fills their rows, and the energy of ``stages`` and ``samples_j``."""
    settings = settings_rows[0]
    for place in range(len(groups)):
        tabulate_work(groups[place], stages, replicas, values)
    for place in range(len(requests)):
        arrive(
            settings, groups, stages, replicas, requests, virtual, service_candidate, candidate_replica,
            values, counts, log, samples_j, place,
        )  # fmt: skip
    for place in range(len(groups)):
        group = groups[place]
        _advance(settings, group, stages, replicas, requests, virtual, values, counts, log, samples_j, np.inf)
        for stage in range(group.first_stage, group.last_stage):
            settle_idle(settings, group, stages[stage], values, samples_j, settings.duration_s)


@inlined
def arrive(
    settings: Row,
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
    place: int,
) -> None:
    """Let a request come: it is routed, and queued or rejected."""
    request = requests[place]
    first = service_candidate[request.service]
    last = service_candidate[request.service + 1]
    if first == last:
        return  # no group hosts the service: rejected
    now_s = request.arrival_s
    chosen = candidate_replica[first]
    if last - first > 1:
        chosen = _route(
            settings, groups, stages, replicas, requests, virtual, candidate_replica, values, counts, log,
            samples_j, first, last, place,
        )  # fmt: skip
    group = groups[replicas[chosen].group]
    if group.wake_s <= now_s:
        _advance(settings, group, stages, replicas, requests, virtual, values, counts, log, samples_j, now_s)
    if settings.rejection != ADMIT_ALL and _is_expected_late(
        settings, group, stages, replicas, chosen, requests, values, now_s
    ):
        if settings.rejection == AT_ARRIVAL:
            count_rejection(settings, counts, chosen, now_s)
            return
        request.is_hopeless = 1
    elif settings.promises != NO_PROMISES:
        promise(group, stages, replicas[chosen], values, now_s, True)
    request.replica = chosen
    _enqueue(settings, group, replicas[chosen], requests, virtual, values, place)
    group.wake_s = min(group.wake_s, next_dispatch_s(group, stages))


@compiled
def _route(
    settings: Row,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    virtual: Rows,
    candidate_replica: Integers,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
    first: int,
    last: int,
    number: int,
) -> int:
    """The replica that an arriving request goes to; brings the groups forward that it looks at.

    Where what is late is dropped, one that has it in time goes before all that have it late. Of equals the
    first. Replicas that could not be sooner even if they were idle are not looked at.
    """
    if settings.routing == ROUND_ROBIN:
        return smooth_round_robin(replicas, candidate_replica, first, last)
    now_s, step = requests[number].arrival_s, 1
    if settings.routing == POWER_OF_TWO:
        first, last = drawn_pair(settings.routing_seed, number, first, last)
        last, step = last + 1, last - first
    best, best_s, best_late = candidate_replica[first], np.inf, True
    for candidate in range(first, last, step):
        place = candidate_replica[candidate]
        is_least_known = settings.least_is_known and not best_late
        if is_least_known and is_beaten(now_s + replicas[place].least_s, place, best_s, best):
            break  # so are all further candidates
        group, late = groups[replicas[place].group], False
        if group.wake_s <= now_s:
            _advance(
                settings, group, stages, replicas, requests, virtual, values, counts, log, samples_j, now_s
            )
        if settings.routing == LEAST_LAST_STAGE:
            at_s = last_stage_promised_s(group, stages)
        elif settings.promises == FORETELLING:
            at_s = promise(group, stages, replicas[place], values, now_s, False)
        else:
            at_s = expected_completion_s(group, stages, replicas, place, values, now_s)
            if settings.rejection == AT_DISPATCH:
                late = _is_expected_late(settings, group, stages, replicas, place, requests, values, now_s)
        sooner = at_s < best_s or (at_s == best_s and place < best)
        if late < best_late or (late == best_late and sooner):
            best, best_s, best_late = place, at_s, late
    return int(best)


@compiled
def _is_expected_late(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    place: int,
    requests: Rows,
    values: Floats,
    now_s: float,
) -> bool:
    """Whether a request that now comes to replica ``place`` is expected to be late there."""
    replica = replicas[place]
    if settings.promises == FORETELLING:
        at_s = promise(group, stages, replica, values, now_s, False)
        return is_late(now_s, at_s + settings.overhead_s, replica.latency_limit_s)
    at_s = expected_completion_s(group, stages, replicas, place, values, now_s)
    late = is_late(now_s, at_s + settings.overhead_s, replica.latency_limit_s)
    if late and settings.queue_order == EDF:
        at_s = deadline_completion_s(group, stages, replicas, place, requests, values, now_s)
        late = is_late(now_s, at_s + settings.overhead_s, replica.latency_limit_s)
    return late


@compiled
def _enqueue(
    settings: Row, group: Row, replica: Row, requests: Rows, virtual: Rows, values: Floats, place: int
) -> None:
    """Put a request at the end of its replica's queue."""
    if settings.ages:
        virtual[place].queued_s, virtual[place].weight = requests[place].arrival_s, replica.alone_s
        note_queued(settings.wait_cap, group, values, virtual, place)
    if replica.num_waiting == 0:
        replica.head = place
    else:
        requests[replica.tail].behind = place
    replica.tail = place
    replica.num_waiting += 1
    replica.num_arrived += 1
    replica.num_hopeful += 1 - requests[place].is_hopeless
    group.num_waiting += 1
    if replica.num_waiting == replica.max_batch:
        replica.full_since_s = requests[place].arrival_s
    group.ready_s = min(group.ready_s, first_ready_s(settings, replica, requests))
    group.backlog_s = np.nan


@compiled
def _advance(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    virtual: Rows,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
    until_s: float,
) -> None:
    """Dispatch all batches of a group that leave before ``until_s``, and control its clocks up to it."""
    while True:
        dispatch_s = next_dispatch_s(group, stages)
        limit_s = min(dispatch_s, until_s)
        if settings.num_windows > 0:
            control(settings, group, stages, replicas, requests, values, counts, log, samples_j, limit_s)
        if dispatch_s >= until_s:
            group.wake_s = min(dispatch_s, min(next_decision_s(settings, group), group.change_at_s))
            return
        place = next_batch(settings, group, stages, replicas, requests, virtual, values, counts, dispatch_s)
        if place < 0:
            continue
        replica = replicas[place]
        batch = min(replica.num_waiting, replica.max_batch)
        completion_s = run_pass(settings, group, stages, replica, values, samples_j, batch, dispatch_s)
        completion_s += settings.overhead_s
        _dispatch(settings, replica, place, requests, counts, batch, dispatch_s, completion_s)
        leave(settings, group, replicas, replica, requests, virtual, values, batch, dispatch_s)
        if settings.promises != NO_PROMISES and group.num_waiting == 0:
            settle_promises(group, stages)


@compiled
def next_batch(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    virtual: Rows,
    values: Floats,
    counts: Integers,
    now_s: float,
) -> int:
    """The replica whose batch leaves now; −1 where its oldest request is dropped as hopeless instead."""
    place = group.first_replica
    if group.last_replica - place > 1:
        place = _next_replica(settings, group, replicas, requests, now_s)
    replica = replicas[place]
    batch = min(replica.num_waiting, replica.max_batch)
    if settings.rejection == AT_DISPATCH and _is_hopeless(
        settings, group, stages, replica, requests, values, batch, now_s
    ):
        requests[replica.head].replica = -1
        count_rejection(settings, counts, place, now_s)
        leave(settings, group, replicas, replica, requests, virtual, values, 1, now_s)
        return -1
    return int(place)


@compiled
def control(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
    until_s: float,
) -> None:
    """Let control decisions and clock changes up to ``until_s`` happen."""
    clocks_mhz = values[group.first_clock : group.first_clock + group.num_clocks]
    decision_s = next_decision_s(settings, group)
    while decision_s < np.inf and decision_s <= until_s:
        if switch_clocks(settings, group, stages, values, samples_j, decision_s):
            tabulate_work(group, stages, replicas, values)
        if settings.policy == MIAD:
            decide(settings, group, stages, replicas, clocks_mhz, counts, log)
        else:
            decide_forward(settings, group, stages, replicas, requests, values, counts, log)
        decision_s = next_decision_s(settings, group)
    if switch_clocks(settings, group, stages, values, samples_j, until_s):
        tabulate_work(group, stages, replicas, values)


@compiled
def next_dispatch_s(group: Row, stages: Rows) -> float:
    """When the group's next batch leaves, seconds; infinite when nothing waits."""
    if group.num_waiting == 0:
        return np.inf
    return float(max(group.ready_s, stages[group.first_stage].free_s))


@compiled
def first_ready_s(settings: Row, replica: Row, requests: Rows) -> float:
    """When the batch of those that wait at a replica may leave, seconds; some wait."""
    oldest_s = requests[replica.head].arrival_s
    return batch_ready_s(
        replica.num_waiting, replica.max_batch, replica.full_since_s, oldest_s, settings.batch_timeout_s
    )


@compiled
def _next_replica(settings: Row, group: Row, replicas: Rows, requests: Rows, now_s: float) -> int:
    """The replica whose oldest request is first in the queue order, among those with a ready batch.

    Requests of one service have the same work, so its oldest comes first in every order. Where waits are
    bounded a request that is due goes before all that are not; among due ones the oldest.
    """
    best, best_due, best_key, best_head = -1, False, np.inf, -1
    for place in range(group.first_replica, group.last_replica):
        replica = replicas[place]
        if replica.num_waiting == 0 or first_ready_s(settings, replica, requests) > now_s:
            continue
        head = replica.head
        queued_s = requests[head].arrival_s
        limit_s = replica.latency_limit_s
        due = settings.ages == 1 and is_due(now_s, queued_s, group.wait_limit_s)
        key = queued_s if due else queue_key(settings.queue_order, queued_s, replica.alone_s, limit_s)
        sooner = key < best_key or (key == best_key and head < best_head)
        if best < 0 or (due and not best_due) or (due == best_due and sooner):
            best, best_due, best_key, best_head = place, due, key, head
    return best


@compiled
def _is_hopeless(
    settings: Row,
    group: Row,
    stages: Rows,
    replica: Row,
    requests: Rows,
    values: Floats,
    batch: int,
    now_s: float,
) -> bool:
    """Whether the oldest request of a replica would be late in the batch that leaves now.

    The others have the same limit and came later: where the oldest is in time all of them are. A
    request is judged in a full batch, not by itself, as batches that shrink to save the oldest cost
    throughput (Shen et al., Nexus, SOSP 2019, §6.3: early drop).
    """
    completion_s = pass_completion_s(group, stages, replica, values, batch, now_s) + settings.overhead_s
    return is_late(requests[replica.head].arrival_s, completion_s, replica.latency_limit_s)


@compiled
def settle_promises(group: Row, stages: Rows) -> None:
    """Nothing waits: what the stages have promised is what they have been given."""
    for place in range(group.first_stage, group.last_stage):
        stages[place].promised_s = stages[place].free_s


@compiled
def _dispatch(
    settings: Row,
    replica: Row,
    place: int,
    requests: Rows,
    counts: Integers,
    batch: int,
    now_s: float,
    completion_s: float,
) -> None:
    """Note start and end of the oldest waiting requests of a replica, which leave as a batch."""
    head = replica.head
    for _ in range(batch):
        request = requests[head]
        request.start_s, request.completion_s, request.batch = now_s, completion_s, batch
        within = completion_s - request.arrival_s <= replica.latency_limit_s
        count_completion(settings, counts, place, completion_s, within)
        head = request.behind


@compiled
def leave(
    settings: Row,
    group: Row,
    replicas: Rows,
    replica: Row,
    requests: Rows,
    virtual: Rows,
    values: Floats,
    count: int,
    now_s: float,
) -> None:
    """Take the oldest requests out of a replica's queue."""
    for _ in range(count):
        if settings.ages:
            note_begun(group, values, virtual, replica.head, now_s)
        replica.num_hopeful -= 1 - requests[replica.head].is_hopeless
        replica.head = requests[replica.head].behind
    replica.num_waiting -= count
    group.num_waiting -= count
    replica.full_since_s = now_s if replica.num_waiting >= replica.max_batch else np.inf
    group.backlog_s = np.nan
    group.ready_s = np.inf
    if group.num_waiting > 0:
        for place in range(group.first_replica, group.last_replica):
            if replicas[place].num_waiting > 0:
                group.ready_s = min(group.ready_s, first_ready_s(settings, replicas[place], requests))
