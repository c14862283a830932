"""The compiled simulator of generate groups: continuous batching at iteration boundaries.

At every boundary a group first admits waiting requests (in queue order, while sequences, prompt
tokens and KV memory allow) and prefills them in an iteration of its own; otherwise it decodes one
token for every running sequence. Decode iterations between two events are taken in one step. When
the KV memory is full the latest admitted sequence is preempted: it waits again, and its tokens are
computed anew. At equal times the order is: control decision, arrival, iteration.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled
from muplan.serving.control import MIAD, count_completion, count_rejection, decide, next_decision_s
from muplan.serving.energy import settle_idle, switch_clocks
from muplan.serving.generate_clocks import decide_generate
from muplan.serving.generate_iterations import (
    decode_s,
    iterations_until,
    prefill_alone_s,
    run_prefill,
    settle_decode,
    tabulate_iterations,
)
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import AGEING_MULTIPLE, AT_DISPATCH, ROUND_ROBIN, is_late
from muplan.serving.routing import smooth_round_robin
from muplan.serving.waiting import first_waiting, put, take


@compiled
def serve_generate(
    settings_rows: Rows,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
    running: Integers,
    service_candidate: Integers,
    candidate_replica: Integers,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
) -> None:
    """Serve all requests, to the last; fills their rows, and the energy of ``stages`` and ``samples_j``.

    ``nodes`` has two rows a request, ``running`` room for every sequence of every group.
    """
    settings = settings_rows[0]
    for place in range(len(groups)):
        tabulate_iterations(groups[place], stages, values)
    for place in range(len(requests)):
        request = requests[place]
        first = service_candidate[request.service]
        last = service_candidate[request.service + 1]
        if first == last:
            continue  # no group hosts the service: rejected
        now_s = request.queued_s
        for candidate in range(first, last):
            chosen = candidate_replica[candidate]
            _advance(
                settings, groups[chosen], stages, replicas, requests, nodes, running, values, counts, log,
                samples_j, now_s,
            )  # fmt: skip
        chosen = candidate_replica[first]
        if last - first > 1:
            chosen = _route(
                settings, groups, stages, replicas, candidate_replica, values, request, first, last
            )
        request.replica = chosen
        _enqueue(settings, groups[chosen], replicas[chosen], requests, nodes, place)
    for place in range(len(groups)):
        group = groups[place]
        _advance(
            settings, group, stages, replicas, requests, nodes, running, values, counts, log,
            samples_j, np.inf,
        )  # fmt: skip
        for stage in range(group.first_stage, group.last_stage):
            settle_idle(settings, group, stages[stage], values, samples_j, settings.duration_s)


@compiled
def _route(
    settings: Row,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    candidate_replica: Integers,
    values: Floats,
    request: Row,
    first: int,
    last: int,
) -> int:
    """The replica (and so the group) that an arriving request goes to."""
    if settings.routing == ROUND_ROBIN:
        return smooth_round_robin(replicas, candidate_replica, first, last)
    best, best_s = candidate_replica[first], np.inf
    for candidate in range(first, last):
        place = candidate_replica[candidate]
        completion_s = _expected_completion_s(groups[place], stages, values, request)
        if completion_s < best_s:
            best, best_s = place, completion_s
    return int(best)


@compiled
def _expected_completion_s(group: Row, stages: Rows, values: Floats, request: Row) -> float:
    """When an arriving request would be complete, seconds, from mean lengths.

    The backlog is the work of those that wait and half the work of those that run, at the pace of
    a full batch; the request's own time is its prefill and a mean reply at the batch it will meet.
    """
    context = group.mean_input + group.mean_output / 2.0
    full_s = decode_s(group, values, group.max_batch, group.max_batch * context, 1)
    work_s = group.mean_output * full_s / group.max_batch
    work_s += prefill_alone_s(group, stages, values, group.mean_input)
    backlog_s = work_s * (group.num_waiting + 0.5 * group.num_running)
    batch = min(group.num_waiting + group.num_running + 1, group.max_batch)
    own_s = group.mean_output * decode_s(group, values, batch, batch * context, 1)
    own_s += prefill_alone_s(group, stages, values, float(request.input_tokens))
    return float(max(group.boundary_s, request.queued_s) + backlog_s + own_s)


@compiled
def _enqueue(settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows, place: int) -> None:
    """Queue an arriving request; an idle group's next boundary is now."""
    if group.num_running == 0 and group.num_waiting == 0:
        group.boundary_s = max(group.boundary_s, requests[place].queued_s)
    put(settings.queue_order, group, requests, nodes, place, replica.ttft_limit_s)
    replica.num_arrived += 1
    group.blocked = 0


@compiled
def _advance(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
    running: Integers,
    values: Floats,
    counts: Integers,
    log: Floats,
    samples_j: Floats,
    until_s: float,
) -> None:
    """Run all iterations of a group that begin before ``until_s``, and control its clocks up to it."""
    replica = replicas[group.first_replica]
    while True:
        has_work = group.num_running > 0 or group.num_waiting > 0
        now_s = group.boundary_s if has_work else np.inf
        if settings.num_windows > 0:
            _control(
                settings, group, stages, replicas, requests, nodes, running, values, counts, log,
                samples_j, min(now_s, until_s),
            )  # fmt: skip
        if now_s >= until_s:
            return
        for place in range(group.first_stage, group.last_stage):
            settle_idle(settings, group, stages[place], values, samples_j, now_s)
        num_before = group.num_running
        tokens = _admit(settings, group, stages, replica, requests, nodes, running, values, counts, now_s)
        if group.num_running == 0:
            continue  # all that waited was rejected
        if group.num_running > num_before:
            group.boundary_s = run_prefill(
                settings, group, stages, requests, running, values, samples_j, num_before, tokens, now_s
            )
            _begin_decoding(settings, group, requests, running, num_before)
        else:
            _preempt(settings, group, replica, requests, nodes, running)
            _decode(settings, group, stages, requests, running, values, samples_j, until_s)
        _complete(settings, group, replica, requests, running, counts)


@compiled
def _control(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
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
            decide_generate(settings, group, stages, replicas, requests, nodes, running, values, counts, log)
        decision_s = next_decision_s(settings, group)
    if switch_clocks(settings, group, stages, values, samples_j, until_s):
        tabulate_iterations(group, stages, values)


@compiled
def _admit(
    settings: Row,
    group: Row,
    stages: Rows,
    replica: Row,
    requests: Rows,
    nodes: Rows,
    running: Integers,
    values: Floats,
    counts: Integers,
    now_s: float,
) -> float:
    """Admit waiting requests in queue order until the first that does not fit; returns their tokens.

    KV memory must hold all tokens of the running sequences and of the admitted ones, the next of
    each included. The first prompt may be longer than the budget of an iteration. Hopeless ones are
    rejected on the way where the deployment says so.
    """
    tokens = 0
    if group.blocked == 1:
        return 0.0
    ageing_s = AGEING_MULTIPLE * replica.ttft_limit_s
    num_before = group.num_running
    while group.num_running < group.max_batch:
        place = first_waiting(settings.queue_order, group, requests, nodes, now_s, ageing_s)
        if place < 0:
            break
        request = requests[place]
        if settings.rejection == AT_DISPATCH and _is_hopeless(
            settings, group, stages, replica, request, values, now_s
        ):
            take(group, request)
            request.replica = -1
            count_rejection(settings, counts, group.first_replica, now_s)
            continue
        own = request.input_tokens + request.generated
        if group.context + own + 1 > group.kv_tokens or (tokens > 0 and tokens + own > group.prefill_budget):
            break
        take(group, request)
        running[group.first_running + group.num_running] = place
        group.num_running += 1
        group.context += own + 1
        tokens += own
        if request.batch == 0:
            request.start_s, request.batch = now_s, group.num_running
    group.blocked = 1 if group.num_running == num_before else 0
    return float(tokens)


@compiled
def _is_hopeless(
    settings: Row, group: Row, stages: Rows, replica: Row, request: Row, values: Floats, now_s: float
) -> bool:
    """Whether a request's first token would be late even if it were prefilled now, by itself.

    One that was admitted before has its first token.
    """
    if request.batch > 0:
        return False
    first_token_s = now_s + prefill_alone_s(group, stages, values, float(request.input_tokens))
    return is_late(request.arrival_s, first_token_s + settings.overhead_s, replica.ttft_limit_s)


@compiled
def _begin_decoding(settings: Row, group: Row, requests: Rows, running: Integers, num_before: int) -> None:
    """The prefilled sequences have their (first) token at the boundary; set when they will finish."""
    for slot in range(num_before, group.num_running):
        request = requests[running[group.first_running + slot]]
        request.generated += 1
        request.finish = group.iteration + request.output_tokens - request.generated
        if request.generated == 1:
            request.first_token_s = group.boundary_s + settings.overhead_s


@compiled
def _preempt(settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows, running: Integers) -> None:
    """While the KV memory is exceeded let the latest admitted sequence wait again, its tokens dropped."""
    while group.context > group.kv_tokens:
        group.num_running -= 1
        place = running[group.first_running + group.num_running]
        request = requests[place]
        request.generated = request.output_tokens - (request.finish - group.iteration)
        request.num_preemptions += 1
        group.context -= request.input_tokens + request.generated
        put(settings.queue_order, group, requests, nodes, place, replica.ttft_limit_s)


@compiled
def _decode(
    settings: Row,
    group: Row,
    stages: Rows,
    requests: Rows,
    running: Integers,
    values: Floats,
    samples_j: Floats,
    until_s: float,
) -> None:
    """Run decode iterations up to the first boundary at which something may change.

    That is a completion, the limit of the KV memory, ``until_s``, a control decision, a clock
    change, or an end of the measured period (so that an iteration is the most that is split).
    """
    batch, now_s = group.num_running, group.boundary_s
    most = (group.kv_tokens - group.context) // batch + 1
    for slot in range(batch):
        most = min(most, requests[running[group.first_running + slot]].finish - group.iteration)
    stop_s = min(until_s, min(next_decision_s(settings, group), group.change_at_s))
    if now_s < settings.warm_up_s:
        stop_s = min(stop_s, settings.warm_up_s)
    elif now_s < settings.measured_until_s:
        stop_s = min(stop_s, settings.measured_until_s)
    elif now_s < settings.duration_s:
        stop_s = min(stop_s, settings.duration_s)
    count = iterations_until(group, values, batch, float(group.context), stop_s - now_s, most)
    end_s = now_s + decode_s(group, values, batch, float(group.context), count)
    settle_decode(settings, group, stages, values, samples_j, count, end_s)
    group.iteration += count
    group.context += count * batch
    group.boundary_s = end_s


@compiled
def _complete(
    settings: Row, group: Row, replica: Row, requests: Rows, running: Integers, counts: Integers
) -> None:
    """Let go of the sequences that have their last token at the boundary."""
    kept = 0
    for slot in range(group.num_running):
        place = running[group.first_running + slot]
        request = requests[place]
        if request.finish > group.iteration:
            running[group.first_running + kept] = place
            kept += 1
            continue
        request.completion_s = group.boundary_s + settings.overhead_s
        group.context -= request.input_tokens + request.output_tokens
        group.blocked = 0
        within = _is_within(replica, request)
        count_completion(settings, counts, group.first_replica, request.completion_s, within)
    group.num_running = kept


@compiled
def _is_within(replica: Row, request: Row) -> bool:
    """Whether a completed request kept all limits."""
    decode_time_s = request.completion_s - request.first_token_s
    return bool(
        request.first_token_s - request.arrival_s <= replica.ttft_limit_s
        and decode_time_s <= replica.tpot_limit_s * max(request.output_tokens - 1, 1)
        and request.completion_s - request.arrival_s <= replica.latency_limit_s
    )
