"""The kernel of generate groups an iteration at a time, for an executor that has them run elsewhere.

Each step is what `muplan.serving.generate_kernel` does at an arrival, at a boundary or over an iteration, on
the same rows and by the same functions; only that iterations are single, and end when they are told to have
ended.
"""

from __future__ import annotations

import numpy as np

from muplan.serving import generate_kernel
from muplan.serving.compiled import allocating, compiled
from muplan.serving.generate_admission import change_batch, prefills_whole
from muplan.serving.generate_batch import advance_chunk, complete, decoded, generated, prefilled
from muplan.serving.generate_iterations import (
    chunk_part,
    decode_s,
    foretell_chunk,
    foretell_decode,
    foretell_prefill,
    prompt_weight,
    tabulate_iterations,
)
from muplan.serving.generate_routing import route
from muplan.serving.layout import FINISH, PLACE, Floats, Integers, Row, Rows
from muplan.serving.waiting import put, take

_enqueue, _control = generate_kernel.enqueue, generate_kernel.control
_next_boundary_s = generate_kernel.next_boundary_s

NUM_DECODING, ITERATION = 0, 1
"""Noted of a group before an iteration: how many sequences decode in it, how many iterations there were."""


@compiled
def tabulate_all(groups: Rows, stages: Rows, values: Floats) -> None:
    """Fill the tables of iterations of all groups."""
    for place in range(len(groups)):
        tabulate_iterations(groups[place], stages, values)
        groups[place].prompt_weight = prompt_weight(groups[place], values)


@compiled
def arrive(
    settings: Rows,
    groups: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
    virtual: Rows,
    service_candidate: Integers,
    candidate_replica: Integers,
    values: Floats,
    place: int,
) -> None:
    """Let a request come: it is routed and queued, or rejected where no group hosts its service."""
    request = requests[place]
    first, last = service_candidate[request.service], service_candidate[request.service + 1]
    if first == last:
        return
    chosen = candidate_replica[first]
    if last - first > 1:
        chosen = route(settings[0], groups, replicas, candidate_replica, values, requests, first, last, place)
    request.replica = chosen
    _enqueue(settings[0], groups[chosen], replicas[chosen], requests, nodes, virtual, values, place)


@compiled
def boundary_s(
    settings: Rows, groups: Rows, replicas: Rows, requests: Rows, nodes: Rows, number: int
) -> float:
    """When a group's next iteration may begin, seconds; infinite where there is none."""
    group = groups[number]
    return float(_next_boundary_s(settings[0], group, replicas[group.first_replica], requests, nodes))


@compiled
def begin_iteration(
    settings: Rows,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
    virtual: Rows,
    running: Integers,
    values: Floats,
    counts: Integers,
    number: int,
    now_s: float,
    before: Integers,
    spans: Integers,
) -> int:
    """Begin a group's next iteration: complete sequences go, waiting ones are admitted.

    Parameters
    ----------
    before
        Is filled with `NUM_DECODING` and `ITERATION`.
    spans
        Is filled with a row for each sequence of the iteration: its request, from which of its tokens to
        which the iteration goes, and 1 where another token follows from the last; shape (batches, 4).

    Returns
    -------
    int
        How many spans there are; 0 where no iteration begins. ``pass_s`` and ``pass_j`` of the stages then
        hold what it will take, ``boundary_s`` of the group when it will end.
    """
    rules, group = settings[0], groups[number]
    replica = replicas[group.first_replica]
    tokens = change_batch(rules, group, replica, requests, nodes, virtual, running, values, counts, now_s)
    if tokens < 0.0:
        return 0
    whole = prefills_whole(rules, group)
    before[NUM_DECODING], before[ITERATION] = group.num_decoding, group.iteration
    count = _note_spans(rules, group, requests, running, whole, spans)
    if whole:
        group.boundary_s = now_s + foretell_prefill(group, stages, requests, running, values, tokens)
        prefilled(rules, group, requests, running)
    elif group.num_running > group.num_decoding:
        group.boundary_s = now_s + foretell_chunk(rules, group, stages, requests, running, values)
        advance_chunk(rules, group, requests, running)
    else:
        batch = group.num_running
        group.boundary_s = now_s + decode_s(group, values, batch, float(group.context), 1)
        foretell_decode(group, stages, values, 1)
        decoded(group, batch, 1)
    return count


@compiled
def _note_spans(
    settings: Row, group: Row, requests: Rows, running: Integers, whole: bool, spans: Integers
) -> int:
    """Note what the iteration computes of each sequence: prompts as a whole, or chunks and what decodes."""
    count, left = 0, min(settings.prefill_chunk_tokens, group.pending_tokens)
    for slot in range(group.num_decoding if whole else 0, group.num_running):
        place = running[PLACE, group.first_running + slot]
        request, begin, is_last = requests[place], 0, 1
        end = request.input_tokens + request.generated
        if slot < group.num_decoding:
            end = request.input_tokens + _num_generated(settings, group, requests, running, slot)
            begin = end - 1
        elif not whole:
            part = chunk_part(request, left)
            begin, left = request.prefilled, left - part
            is_last = 1 if begin + part == end else 0
            end = begin + part
            if part == 0:
                continue
        spans[count, 0], spans[count, 1], spans[count, 2], spans[count, 3] = place, begin, end, is_last
        count += 1
    return count


@compiled
def _num_generated(settings: Row, group: Row, requests: Rows, running: Integers, slot: int) -> int:
    """Tokens so far of a sequence that decodes; in a dynamic batch those beyond its own reply count too."""
    if not settings.is_dynamic:
        return generated(group, requests, running, slot)
    longest = 0
    for other in range(group.num_running):
        longest = max(longest, requests[running[PLACE, group.first_running + other]].output_tokens)
    return int(longest - (running[FINISH, group.first_running + slot] - group.iteration))


@compiled
def end_iteration(
    settings: Rows,
    groups: Rows,
    requests: Rows,
    running: Integers,
    number: int,
    before: Integers,
    end_s: float,
) -> None:
    """End a group's iteration at ``end_s``."""
    group = groups[number]
    group.boundary_s = end_s
    for slot in range(group.first_running + before[NUM_DECODING], group.first_running + group.num_decoding):
        request = requests[running[PLACE, slot]]
        if request.generated == 1:
            request.first_token_s = end_s + settings[0].overhead_s


@allocating
def control_clocks(
    settings: Rows,
    groups: Rows,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    running: Integers,
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
    _control(settings[0], group, stages, replicas, requests, running, values, counts, log, nothing_j, until_s)
    for place in range(group.first_stage, group.last_stage):
        stages[place].settled_s = settled_s[place - group.first_stage]


@compiled
def lose_batch(
    settings: Rows,
    groups: Rows,
    replicas: Rows,
    requests: Rows,
    nodes: Rows,
    running: Integers,
    counts: Integers,
    number: int,
    under_way: bool,
    before: Integers,
) -> None:
    """Let all running sequences of a group wait again with their tokens; keys and values are gone.

    Of an iteration that is ``under_way`` no token comes. A dynamic batch begins anew.
    """
    rules, group = settings[0], groups[number]
    replica = replicas[group.first_replica]
    if not under_way:
        complete(rules, group, replica, requests, running, counts)
        before[NUM_DECODING], before[ITERATION] = group.num_decoding, group.iteration
    group.iteration = before[ITERATION]
    for slot in range(group.num_running):
        place = running[PLACE, group.first_running + slot]
        request = requests[place]
        request.prefilled = 0
        if rules.is_dynamic:
            request.generated = 0
        elif slot < before[NUM_DECODING]:
            request.generated = generated(group, requests, running, slot)
        elif slot < group.num_decoding:
            request.generated -= 1
        if request.generated == 0:
            request.first_token_s = np.nan
        put(rules, group, requests, nodes, place, replica.ttft_limit_s)
    group.num_running = group.num_decoding = group.context = 0
    group.prefill_context = group.pending_tokens = group.blocked = 0
    if rules.is_dynamic and group.num_waiting >= group.max_batch:
        replica.full_since_s = -np.inf


@compiled
def leave_queue(settings: Rows, groups: Rows, requests: Rows, nodes: Rows, number: int, place: int) -> None:
    """Let a request that waits on a group wait there no longer."""
    take(settings[0], groups[number], requests, nodes, place)
