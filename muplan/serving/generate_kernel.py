"""The compiled simulator of generate groups: batches of sequences, changed at iteration boundaries.

At every boundary a group first admits waiting requests (in queue order, while sequences, prompt
tokens and KV memory allow) and prefills them in an iteration of its own; otherwise it decodes one
token for every running sequence. Decode iterations between two events are taken in one step. When
the KV memory is full the latest admitted sequence is preempted: it waits again, and its tokens are
computed anew. Prompts may be prefilled in chunks beside the sequences that decode; batches may be
dynamic, which run as they began until their longest sequence is complete; and a sequence may give way to a
shorter one. At equal times the order is: control decision, arrival, iteration.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.ageing import note_begun, note_queued
from muplan.serving.compiled import compiled
from muplan.serving.control import count_completion, count_rejection, decide, next_decision_s
from muplan.serving.energy import settle_idle, switch_clocks
from muplan.serving.generate_iterations import (
    chunk_part,
    decode_s,
    iterations_until,
    prefill_alone_s,
    run_chunk,
    run_prefill,
    settle_decode,
    tabulate_iterations,
)
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import (
    AT_DISPATCH,
    POWER_OF_TWO,
    ROUND_ROBIN,
    SRPT,
    batch_ready_s,
    is_due,
    is_late,
    is_worth_preempting,
    remaining_work,
)
from muplan.serving.routing import drawn_pair, smooth_round_robin
from muplan.serving.waiting import first_waiting, oldest_queued_s, put, take


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

    ``nodes`` has two rows a request, ``running`` room for every sequence of every group.
    """
    settings = settings_rows[0]
    for place in range(len(groups)):
        tabulate_iterations(groups[place], stages, values)
        groups[place].prompt_weight = _prompt_weight(groups[place], stages, values)
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
                settings, groups[chosen], stages, replicas, requests, nodes, virtual, running, values, counts,
                log, samples_j, now_s,
            )  # fmt: skip
        chosen = candidate_replica[first]
        if last - first > 1:
            chosen = _route(
                settings, groups, stages, replicas, candidate_replica, values, requests, first, last, place
            )
        request.replica = chosen
        _enqueue(settings, groups[chosen], replicas[chosen], requests, nodes, virtual, values, place)
    for place in range(len(groups)):
        group = groups[place]
        _advance(
            settings, group, stages, replicas, requests, nodes, virtual, running, values, counts, log,
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
    requests: Rows,
    first: int,
    last: int,
    number: int,
) -> int:
    """The replica (and so the group) that an arriving request goes to."""
    if settings.routing == ROUND_ROBIN:
        return smooth_round_robin(replicas, candidate_replica, first, last)
    step = 1
    if settings.routing == POWER_OF_TWO:
        first, last = drawn_pair(settings.routing_seed, number, first, last)
        last, step = last + 1, last - first
    best, best_s = candidate_replica[first], np.inf
    for candidate in range(first, last, step):
        place = candidate_replica[candidate]
        completion_s = _expected_completion_s(groups[place], stages, values, requests[number])
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
def _prompt_weight(group: Row, stages: Rows, values: Floats) -> float:
    """Work of a prompt token, in output tokens of a full batch: of a mean prompt, at the first clocks."""
    context = group.mean_input + group.mean_output / 2.0
    token_s = decode_s(group, values, group.max_batch, group.max_batch * context, 1) / group.max_batch
    return float(prefill_alone_s(group, stages, values, group.mean_input) / group.mean_input / token_s)


@compiled
def _enqueue(
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
    if group.num_waiting == group.max_batch:
        replica.full_since_s = request.queued_s
    group.blocked = 0


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
) -> None:
    """Run all iterations of a group that begin before ``until_s``, and control its clocks up to it."""
    replica = replicas[group.first_replica]
    while True:
        now_s = _next_boundary_s(settings, group, replica, requests, nodes)
        if settings.num_windows > 0:
            _control(settings, group, stages, replicas, values, counts, log, samples_j, min(now_s, until_s))
        if now_s >= until_s:
            return
        for place in range(group.first_stage, group.last_stage):
            settle_idle(settings, group, stages[place], values, samples_j, now_s)
        tokens = _admit(
            settings, group, stages, replica, requests, nodes, virtual, running, values, counts, now_s
        )
        if group.num_running == 0:
            continue  # all that waited was rejected
        if group.num_running > group.num_decoding and settings.prefill_chunk_tokens == 0:
            group.boundary_s = run_prefill(
                settings,
                group,
                stages,
                requests,
                running,
                values,
                samples_j,
                group.num_decoding,
                tokens,
                now_s,
            )
            _begin_decoding(settings, group, requests, running, group.num_running)
            if settings.is_dynamic:
                _end_together(group, requests, running)
        else:
            if not settings.is_dynamic:
                _preempt(settings, group, replica, requests, nodes, running)
            if group.num_running > group.num_decoding:
                _advance_chunk(settings, group, stages, requests, running, values, samples_j, now_s)
            else:
                _decode(settings, group, stages, requests, running, values, samples_j, until_s)
        _complete(settings, group, replica, requests, running, counts)


@compiled
def _next_boundary_s(settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows) -> float:
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
def _control(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
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
        decide(settings, group, stages, replicas, clocks_mhz, counts, log)
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
    virtual: Rows,
    running: Integers,
    values: Floats,
    counts: Integers,
    now_s: float,
) -> float:
    """Admit waiting requests in queue order until the first that does not fit; returns their tokens.

    KV memory must hold all tokens of the running sequences and of the admitted ones, the next of
    each included. The first prompt may be longer than the budget of an iteration. A dynamic batch is admitted
    as a whole, its memory set aside. Hopeless requests are rejected on the way where the deployment says so.
    """
    if group.blocked or (settings.is_dynamic and group.num_running > 0):
        return 0.0
    tokens, num_admitted = 0, 0
    while group.num_running < group.max_batch or settings.queue_order == SRPT:
        place = first_waiting(settings, group, requests, nodes, now_s)
        if place < 0:
            break
        request = requests[place]
        if settings.rejection == AT_DISPATCH and _is_hopeless(
            settings, group, stages, replica, request, values, now_s
        ):
            _begin(settings, group, values, requests, nodes, virtual, place, now_s)
            request.replica = -1
            count_rejection(settings, counts, group.first_replica, now_s)
            continue
        own = request.input_tokens + request.generated
        if _exceeds_budget(settings, group, tokens, own):
            break
        if not _fits(settings, group, own) and not (
            settings.queue_order == SRPT
            and _make_room(settings, group, replica, requests, nodes, running, place, now_s)
        ):
            break
        _begin(settings, group, values, requests, nodes, virtual, place, now_s)
        running[group.first_running + group.num_running] = place
        group.num_running += 1
        num_admitted += 1
        group.context += own + 1
        tokens += own
        if settings.prefill_chunk_tokens > 0:
            group.prefill_context += own + 1
            group.pending_tokens += own
        if request.batch == 0:
            request.start_s, request.batch = now_s, group.num_running
    if settings.is_dynamic:
        replica.full_since_s = now_s if group.num_waiting >= group.max_batch else np.inf
    # what is still being prefilled in chunks makes room in the budget, else nothing does by itself
    group.blocked = 1 if num_admitted == 0 and group.num_running == group.num_decoding else 0
    return float(tokens)


@compiled
def _begin(
    settings: Row,
    group: Row,
    values: Floats,
    requests: Rows,
    nodes: Rows,
    virtual: Rows,
    place: int,
    now_s: float,
) -> None:
    """Take a request out of the queue, which it leaves for the first time or again."""
    take(settings, group, requests, nodes, place)
    if settings.ages and requests[place].batch == 0:
        note_begun(group, values, virtual, place, now_s)


@compiled
def _exceeds_budget(settings: Row, group: Row, tokens: int, own: int) -> bool:
    """Whether an iteration that prefills ``tokens`` has no room for a prompt of ``own``."""
    if settings.is_dynamic:
        return False
    if settings.prefill_chunk_tokens > 0:
        return bool(group.pending_tokens >= settings.prefill_chunk_tokens)
    return bool(tokens > 0 and tokens + own > group.prefill_budget)


@compiled
def _fits(settings: Row, group: Row, own: int) -> bool:
    """Whether there is room for one more sequence of ``own`` tokens."""
    if group.num_running >= group.max_batch:
        return False
    return bool(settings.is_dynamic or group.context + own + 1 <= group.kv_tokens)


@compiled
def _make_room(
    settings: Row,
    group: Row,
    replica: Row,
    requests: Rows,
    nodes: Rows,
    running: Integers,
    place: int,
    now_s: float,
) -> bool:
    """Preempt the sequence with the most work left for a waiting request, where that is worth it.

    One that was preempted too often, or was queued longer ago than the limit of waits, is left alone.
    """
    longest, most = -1, 0.0
    for slot in range(group.num_decoding):
        other = requests[running[group.first_running + slot]]
        if other.num_preemptions >= settings.max_preemptions:
            continue
        if settings.ages and is_due(now_s, other.queued_s, group.wait_limit_s):
            continue
        left = remaining_work(SRPT, other.work, _generated(group, other))
        if left > most:
            longest, most = slot, left
    if longest < 0:
        return False
    other, request = requests[running[group.first_running + longest]], requests[place]
    held, own = other.input_tokens + _generated(group, other), request.input_tokens + request.generated
    needed = remaining_work(SRPT, request.work, request.generated) + group.prompt_weight * own
    if group.context - held + own + 1 > group.kv_tokens:
        return False
    if not is_worth_preempting(most, group.prompt_weight * held, needed, settings.preemption_gain):
        return False
    _stop(settings, group, replica, requests, nodes, running, longest)
    return True


@compiled
def _generated(group: Row, request: Row) -> int:
    """Tokens so far of a sequence that decodes."""
    return int(request.output_tokens - (request.finish - group.iteration))


@compiled
def _stop(
    settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows, running: Integers, slot: int
) -> None:
    """Let a running sequence wait again, its keys and values dropped."""
    place = running[group.first_running + slot]
    request = requests[place]
    if slot < group.num_decoding:
        request.generated = _generated(group, request)
        group.context -= request.input_tokens + request.generated
        group.num_decoding -= 1
    else:
        own = request.input_tokens + request.generated
        group.context -= own + 1
        group.prefill_context -= own + 1
        group.pending_tokens -= own - request.prefilled
        request.prefilled = 0
    request.num_preemptions += 1
    for other in range(slot + 1, group.num_running):
        running[group.first_running + other - 1] = running[group.first_running + other]
    group.num_running -= 1
    put(settings, group, requests, nodes, place, replica.ttft_limit_s)


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
def _begin_decoding(settings: Row, group: Row, requests: Rows, running: Integers, last: int) -> None:
    """The prefilled sequences, up to ``last``, have their (first) token at the boundary; set their finish."""
    for slot in range(group.num_decoding, last):
        request = requests[running[group.first_running + slot]]
        request.generated += 1
        request.finish = group.iteration + request.output_tokens - request.generated
        if request.generated == 1:
            request.first_token_s = group.boundary_s + settings.overhead_s
    group.num_decoding = last


@compiled
def _end_together(group: Row, requests: Rows, running: Integers) -> None:
    """A dynamic batch stays whole: all its sequences finish with the longest."""
    finish = 0
    for slot in range(group.num_running):
        finish = max(finish, requests[running[group.first_running + slot]].finish)
    for slot in range(group.num_running):
        requests[running[group.first_running + slot]].finish = finish


@compiled
def _advance_chunk(
    settings: Row,
    group: Row,
    stages: Rows,
    requests: Rows,
    running: Integers,
    values: Floats,
    samples_j: Floats,
    now_s: float,
) -> None:
    """Run an iteration that prefills the next chunk, in the order of admission, and decodes as well."""
    group.boundary_s = run_chunk(settings, group, stages, requests, running, values, samples_j, now_s)
    left = min(settings.prefill_chunk_tokens, group.pending_tokens)
    group.pending_tokens -= left
    group.iteration += 1
    group.context += group.num_decoding
    last = group.num_decoding
    for slot in range(group.num_decoding, group.num_running):
        request = requests[running[group.first_running + slot]]
        part = chunk_part(request, left)
        request.prefilled += part
        left -= part
        own = request.input_tokens + request.generated
        if request.prefilled == own:
            request.prefilled = 0
            group.prefill_context -= own + 1
            last += 1
    _begin_decoding(settings, group, requests, running, last)


@compiled
def _preempt(settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows, running: Integers) -> None:
    """While the KV memory is exceeded let the latest admitted sequence wait again, its tokens dropped."""
    while group.context > group.kv_tokens:
        _stop(settings, group, replica, requests, nodes, running, group.num_running - 1)
        group.blocked = 1


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
    most = requests[running[group.first_running]].finish - group.iteration
    if not settings.is_dynamic:
        most = min(most, (group.kv_tokens - group.context) // batch + 1)
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
        if slot >= group.num_decoding or request.finish > group.iteration:
            running[group.first_running + kept] = place
            kept += 1
            continue
        request.completion_s = group.boundary_s + settings.overhead_s
        group.context -= request.input_tokens + request.output_tokens
        group.blocked = 0
        within = _is_within(replica, request)
        count_completion(settings, counts, group.first_replica, request.completion_s, within)
    group.num_decoding -= group.num_running - kept
    group.num_running = kept
    if kept == 0:
        group.context = 0  # a dynamic batch attended to more than its sequences' tokens


@compiled
def _is_within(replica: Row, request: Row) -> bool:
    """Whether a completed request kept all limits."""
    decode_time_s = request.completion_s - request.first_token_s
    return bool(
        request.first_token_s - request.arrival_s <= replica.ttft_limit_s
        and decode_time_s <= replica.tpot_limit_s * max(request.output_tokens - 1, 1)
        and request.completion_s - request.arrival_s <= replica.latency_limit_s
    )
