"""The compiled simulator of generate groups: batches of sequences, changed at iteration boundaries.

At every boundary a group lets complete sequences go, then admits waiting requests (in queue order, while
sequences, prompt tokens and KV memory allow) and prefills them in an iteration of its own; otherwise it
decodes one token for every running sequence. Decode iterations between two events are taken in one step. When
the KV memory is full the latest admitted sequence is preempted: it waits again, and its tokens are
computed anew. Prompts may be prefilled in chunks beside the sequences that decode; batches may be
dynamic, which run as they began until their longest sequence is complete; and a sequence may give way to a
shorter one. At equal times the order is: control decision, arrival, iteration.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.ageing import note_queued
from muplan.serving.compiled import compiled, inlined
from muplan.serving.control import MIAD, decide, next_decision_s
from muplan.serving.energy import settle_idle, switch_clocks
from muplan.serving.generate_admission import change_batch, prefills_whole
from muplan.serving.generate_batch import advance_chunk, decode, prefilled
from muplan.serving.generate_clocks import decide_generate
from muplan.serving.generate_iterations import (
    foretell_chunk,
    foretell_prefill,
    prompt_weight,
    settle_iteration,
    tabulate_iterations,
)
from muplan.serving.generate_routing import route
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import ROUND_ROBIN, SRPT, batch_ready_s
from muplan.serving.token_intervals import note_tokens
from muplan.serving.waiting import oldest_queued_s, put


@compiled
def serve_generate(
    settings_rows: Rows,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
    virtual: Rows,
    running: Integers,
    service_candidate: Integers,
    candidate_replica: Integers,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
) -> None:
    """Serve all requests, to the last; fills their rows, and the energy of ``stages`` and ``samples_j``.

    ``nodes`` has two rows a request, ``running`` the rows `PLACE` and `FINISH` for all that may run.
    """
    settings = settings_rows[0]
    for place in range(len(groups)):
        tabulate_iterations(groups[place], stages, values)
        groups[place].prompt_weight = prompt_weight(groups[place], values)
    for place in range(len(requests)):
        request = requests[place]
        first = service_candidate[request.service]
        last = service_candidate[request.service + 1]
        if first == last:
            continue  # no group hosts the service: rejected
        now_s = request.queued_s
        chosen = candidate_replica[first]
        if last - first > 1:
            for candidate in range(first, last if settings.routing != ROUND_ROBIN else first):
                group = groups[candidate_replica[candidate]]
                if group.wake_s <= now_s:
                    _advance(
                        settings, group, stages, replicas, requests, nodes, virtual, running, values, counts,
                        log, samples_j, now_s, False,
                    )  # fmt: skip
            chosen = route(
                settings, groups, replicas, candidate_replica, values, requests, first, last, place
            )
        request.replica, group = chosen, groups[chosen]
        if group.wake_s <= now_s and not _may_admit(settings, group):
            _advance(
                settings, group, stages, replicas, requests, nodes, virtual, running, values, counts, log,
                samples_j, now_s, False,
            )  # fmt: skip
        if _may_admit(settings, group):  # perhaps only now, as sequences are complete
            _advance(
                settings, group, stages, replicas, requests, nodes, virtual, running, values, counts, log,
                samples_j, now_s, True,
            )  # fmt: skip
        enqueue(settings, group, replicas[chosen], requests, nodes, virtual, values, place)
    for place in range(len(groups)):
        group = groups[place]
        _advance(
            settings, group, stages, replicas, requests, nodes, virtual, running, values, counts, log,
            samples_j, np.inf, False,
        )  # fmt: skip
        for stage in range(group.first_stage, group.last_stage):
            settle_idle(settings, group, stages[stage], values, samples_j, settings.duration_s)


@inlined
def _may_admit(settings: Row, group: Row) -> bool:
    """Whether a request that comes may be admitted at the next boundary, with no completion before."""
    if settings.is_dynamic:
        return False
    return bool(group.num_running < group.max_batch or settings.queue_order == SRPT)


@compiled
def enqueue(
    settings: Row,
    group: Row,
    replica: Row,
    requests: Rows,
    nodes: Rows,
    virtual: Rows,
    values: Floats,
    place: int,
) -> None:
    """Queue an arriving request; an idle group's next boundary is now."""
    request = requests[place]
    if group.num_running == 0 and group.num_waiting == 0:
        group.boundary_s = max(group.boundary_s, request.queued_s)
    if settings.ages:
        virtual[place].queued_s = request.queued_s
        virtual[place].weight = request.work + group.prompt_weight * request.input_tokens
        note_queued(settings.wait_cap, group, values, virtual, place)
    put(settings, group, requests, nodes, place, replica.ttft_limit_s)
    replica.num_arrived += 1
    if group.num_waiting == group.max_batch:
        replica.full_since_s = request.queued_s
    group.blocked = 0
    if group.num_running == 0:
        group.wake_s = min(group.wake_s, next_boundary_s(settings, group, replica, requests, nodes))


@compiled
def _advance(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
    virtual: Rows,
    running: Integers,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
    until_s: float,
    cut: bool,
) -> None:
    """Run all iterations of a group that begin before ``until_s``, and control its clocks up to it.

    Decode iterations that go on beyond are left for later, unless they are to be ``cut``, as a request comes
    that may be admitted, or as clocks are controlled.
    """
    cut = cut or settings.num_windows > 0
    replica = replicas[group.first_replica]
    while True:
        now_s = next_boundary_s(settings, group, replica, requests, nodes)
        if settings.num_windows > 0:
            control(
                settings, group, stages, replicas, requests, running, values, counts, log, samples_j,
                min(now_s, until_s),
            )  # fmt: skip
        if now_s >= until_s:
            group.wake_s = now_s if settings.num_windows == 0 else -np.inf  # decisions come at any time
            return
        for place in range(group.first_stage, group.last_stage):
            settle_idle(settings, group, stages[place], values, samples_j, now_s)
        tokens = change_batch(
            settings, group, replica, requests, nodes, virtual, running, values, counts, now_s
        )
        if tokens < 0.0:
            continue
        first_iteration, num_before = group.iteration, group.num_decoding
        if prefills_whole(settings, group):
            group.boundary_s = now_s + foretell_prefill(group, stages, requests, running, values, tokens)
            settle_iteration(settings, group, stages, values, samples_j, group.boundary_s)
            prefilled(settings, group, requests, running)
        elif group.num_running > group.num_decoding:
            group.boundary_s = now_s + foretell_chunk(settings, group, stages, requests, running, values)
            settle_iteration(settings, group, stages, values, samples_j, group.boundary_s)
            advance_chunk(settings, group, requests, running)
        elif not decode(settings, group, stages, values, samples_j, until_s, cut):
            return
        if settings.is_detailed:
            note_tokens(
                settings, group, requests, running, values, samples_j, num_before,
                group.iteration - first_iteration, now_s,
            )  # fmt: skip


@compiled
def next_boundary_s(settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows) -> float:
    """When the group's next iteration may begin, seconds; infinite where there is none."""
    if group.num_running > 0:
        return float(group.boundary_s)
    if group.num_waiting == 0:
        return np.inf
    if not settings.is_dynamic:
        return float(group.boundary_s)
    oldest_s = oldest_queued_s(group, requests, nodes)
    ready_s = batch_ready_s(
        group.num_waiting, group.max_batch, replica.full_since_s, oldest_s, settings.batch_timeout_s
    )
    return float(max(group.boundary_s, ready_s))


@compiled
def control(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    running: Integers,
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
            tabulate_iterations(group, stages, values)
        if settings.policy == MIAD:
            decide(settings, group, stages, replicas, clocks_mhz, counts, log)
        else:
            decide_generate(settings, group, stages, replicas, requests, running, values, counts, log)
        decision_s = next_decision_s(settings, group)
    if switch_clocks(settings, group, stages, values, samples_j, until_s):
        tabulate_iterations(group, stages, values)
