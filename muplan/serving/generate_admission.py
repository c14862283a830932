"""Who is in the batch of a generate group: admission from the queue, and who has to give way; compiled."""

from __future__ import annotations

import numpy as np

from muplan.serving.ageing import note_begun
from muplan.serving.compiled import compiled, inlined
from muplan.serving.control import count_rejection
from muplan.serving.generate_batch import close_gap, complete, find_next_finish, generated
from muplan.serving.generate_iterations import prefill_alone_s
from muplan.serving.layout import PLACE, Floats, Integers, Row, Rows
from muplan.serving.policies import (
    AT_DISPATCH,
    SRPT,
    is_due,
    is_late,
    is_worth_preempting,
    remaining_work,
)
from muplan.serving.waiting import first_waiting, put, take


@inlined
def change_batch(
    settings: Row,
    group: Row,
    replica: Row,
    requests: Rows,
    nodes: Rows,
    virtual: Rows,
    running: Integers,
    values: Floats,
    counts: Integers,
    now_s: float,
) -> float:
    """At a boundary let complete sequences go, admit waiting ones, and preempt where memory does not suffice.

    Returns the tokens that are admitted; −1 where no iteration follows: nothing runs then, and a batch that
    waits to be full may not begin yet.
    """
    if group.num_running > 0:
        complete(settings, group, replica, requests, running, counts)
        if group.num_running == 0:
            return -1.0
    tokens = _admit(settings, group, replica, requests, nodes, virtual, running, values, counts, now_s)
    if group.num_running == 0:
        return -1.0  # all that waited was rejected
    if not settings.is_dynamic and not prefills_whole(settings, group):
        _preempt(settings, group, replica, requests, nodes, running)
    return tokens


@inlined
def prefills_whole(settings: Row, group: Row) -> bool:
    """Whether the iteration prefills whole prompts, by themselves."""
    return bool(group.num_running > group.num_decoding and settings.prefill_chunk_tokens == 0)


@compiled
def _admit(
    settings: Row,
    group: Row,
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
            settings, group, replica, request, values, now_s
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
        running[PLACE, group.first_running + group.num_running] = place
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
        other = requests[running[PLACE, group.first_running + slot]]
        if other.num_preemptions >= settings.max_preemptions:
            continue
        if settings.ages and is_due(now_s, other.queued_s, group.wait_limit_s):
            continue
        left = remaining_work(SRPT, other.work, generated(group, requests, running, slot))
        if left > most:
            longest, most = slot, left
    if longest < 0:
        return False
    other, request = requests[running[PLACE, group.first_running + longest]], requests[place]
    held = other.input_tokens + generated(group, requests, running, longest)
    own = request.input_tokens + request.generated
    needed = remaining_work(SRPT, request.work, request.generated) + group.prompt_weight * own
    if group.context - held + own + 1 > group.kv_tokens:
        return False
    if not is_worth_preempting(most, group.prompt_weight * held, needed, settings.preemption_gain):
        return False
    stop(settings, group, replica, requests, nodes, running, longest)
    return True


@compiled
def stop(
    settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows, running: Integers, slot: int
) -> None:
    """Let a running sequence wait again, its keys and values dropped."""
    place = running[PLACE, group.first_running + slot]
    request = requests[place]
    if slot < group.num_decoding:
        request.generated = generated(group, requests, running, slot)
        group.context -= request.input_tokens + request.generated
        group.num_decoding -= 1
    else:
        own = request.input_tokens + request.generated
        group.context -= own + 1
        group.prefill_context -= own + 1
        group.pending_tokens -= own - request.prefilled
        request.prefilled = 0
    request.num_preemptions += 1
    close_gap(group, running, slot)
    find_next_finish(group, running)
    put(settings, group, requests, nodes, place, replica.ttft_limit_s)


@compiled
def _preempt(settings: Row, group: Row, replica: Row, requests: Rows, nodes: Rows, running: Integers) -> None:
    """While the KV memory is exceeded let the latest admitted sequence wait again, its tokens dropped."""
    while group.context > group.kv_tokens:
        stop(settings, group, replica, requests, nodes, running, group.num_running - 1)
        group.blocked = 1


@compiled
def _is_hopeless(settings: Row, group: Row, replica: Row, request: Row, values: Floats, now_s: float) -> bool:
    """Whether a request's first token would be late even if it were prefilled now, by itself.

    One that was admitted before has its first token.
    """
    if request.batch > 0:
        return False
    first_token_s = now_s + prefill_alone_s(group, values, float(request.input_tokens))
    return is_late(request.arrival_s, first_token_s + settings.overhead_s, replica.ttft_limit_s)
