"""The running batch of a generate group: its sequences begin to decode, go on, and are complete; compiled.

Those that decode come first, then those that are being prefilled in chunks, both in the order of admission.
"""

from __future__ import annotations

from muplan.serving.compiled import compiled, inlined
from muplan.serving.control import count_completion, next_decision_s
from muplan.serving.generate_iterations import (
    chunk_part,
    decode_s,
    foretell_decode,
    iterations_until,
    settle_iteration,
)
from muplan.serving.layout import FINISH, PLACE, Floats, Integers, Row, Rows

_NEVER, _MOST_SLOTS = 2**62, 2**20


@inlined
def slots(group: Row, running: Integers) -> tuple[Integers, Integers]:
    """The group's part of ``running``, the rows `PLACE` and `FINISH`, by slots from 0 on."""
    last = group.first_running + group.max_batch
    return running[PLACE, group.first_running : last], running[FINISH, group.first_running : last]


@compiled
def begin_decoding(settings: Row, group: Row, requests: Rows, running: Integers, last: int) -> None:
    """The prefilled sequences, up to ``last``, have their (first) token at the boundary; set their finish."""
    for slot in range(group.first_running + group.num_decoding, group.first_running + last):
        request = requests[running[PLACE, slot]]
        request.generated += 1
        running[FINISH, slot] = group.iteration + request.output_tokens - request.generated
        if request.generated == 1:
            request.first_token_s = group.boundary_s + settings.overhead_s
    group.num_decoding = last
    find_next_finish(group, running)


@compiled
def end_together(group: Row, running: Integers) -> None:
    """A dynamic batch stays whole: all its sequences finish with the longest."""
    first, last = group.first_running, group.first_running + group.num_running
    finish = 0
    for slot in range(first, last):
        finish = max(finish, running[FINISH, slot])
    running[FINISH, first:last] = finish
    find_next_finish(group, running)


@compiled
def generated(group: Row, requests: Rows, running: Integers, slot: int) -> int:
    """Tokens so far of a sequence that decodes."""
    request = requests[running[PLACE, group.first_running + slot]]
    return int(request.output_tokens - (running[FINISH, group.first_running + slot] - group.iteration))


@compiled
def prefilled(settings: Row, group: Row, requests: Rows, running: Integers) -> None:
    """All sequences of the batch are prefilled: those that were admitted last decode from the boundary on."""
    begin_decoding(settings, group, requests, running, group.num_running)
    if settings.is_dynamic:
        end_together(group, running)


@compiled
def advance_chunk(settings: Row, group: Row, requests: Rows, running: Integers) -> None:
    """The next chunk, in the order of admission, is prefilled, and all that decodes has a token more."""
    left = min(settings.prefill_chunk_tokens, group.pending_tokens)
    group.pending_tokens -= left
    decoded(group, group.num_decoding, 1)
    last = group.num_decoding
    for slot in range(group.num_decoding, group.num_running):
        request = requests[running[PLACE, group.first_running + slot]]
        part = chunk_part(request, left)
        request.prefilled += part
        left -= part
        own = request.input_tokens + request.generated
        if request.prefilled == own:
            request.prefilled = 0
            group.prefill_context -= own + 1
            last += 1
    begin_decoding(settings, group, requests, running, last)


@compiled
def decoded(group: Row, batch: int, num_iterations: int) -> None:
    """The sequences that decode, ``batch`` of them, have so many tokens more."""
    group.iteration += num_iterations
    group.context += num_iterations * batch


@compiled
def decode(
    settings: Row, group: Row, stages: Rows, values: Floats, samples_j: Floats, until_s: float, cut: bool
) -> bool:
    """Run decode iterations up to the first boundary at which something may change.

    That is a completion, the limit of the KV memory, a control decision, a clock change, or an end of the
    measured period (so that an iteration is the most that is split). What goes on to ``until_s`` or beyond is
    left for later, as nobody looks at it before; or ``cut`` there, at the next boundary.

    Returns
    -------
    bool
        Whether they were run, and not left for later.
    """
    batch, now_s = group.num_running, group.boundary_s
    most = group.next_finish - group.iteration
    if not settings.is_dynamic:
        most = min(most, (group.kv_tokens - group.context) // batch + 1)
    stop_s = min(next_decision_s(settings, group), group.change_at_s)
    if cut:
        stop_s = min(stop_s, until_s)
    if now_s < settings.warm_up_s:
        stop_s = min(stop_s, settings.warm_up_s)
    elif now_s < settings.measured_until_s:
        stop_s = min(stop_s, settings.measured_until_s)
    elif now_s < settings.duration_s:
        stop_s = min(stop_s, settings.duration_s)
    count = iterations_until(group, values, batch, float(group.context), stop_s - now_s, most)
    end_s = now_s + decode_s(group, values, batch, float(group.context), count)
    if end_s >= until_s and not cut:
        group.wake_s = end_s
        return False
    foretell_decode(group, stages, values, count)
    settle_iteration(settings, group, stages, values, samples_j, end_s)
    decoded(group, batch, count)
    group.boundary_s = end_s
    return True


@compiled
def complete(
    settings: Row, group: Row, replica: Row, requests: Rows, running: Integers, counts: Integers
) -> None:
    """Let go of the sequences that have their last token at the boundary."""
    if group.num_decoding == 0 or group.next_finish > group.iteration:
        return
    while group.num_decoding > 0 and group.next_finish <= group.iteration:
        request = requests[running[PLACE, group.first_running + group.next_slot]]
        request.completion_s = group.boundary_s + settings.overhead_s
        group.context -= request.input_tokens + request.output_tokens
        within = _is_within(replica, request)
        count_completion(settings, counts, group.first_replica, request.completion_s, within)
        group.num_decoding -= 1
        close_gap(group, running, group.next_slot)
        find_next_finish(group, running)
    group.blocked = 0
    if group.num_running == 0:
        group.context = 0  # a dynamic batch attended to more than its sequences' tokens


@inlined
def close_gap(group: Row, running: Integers, gone: int) -> None:
    """Let a sequence go from its slot, and those behind it move up."""
    group.num_running -= 1
    for column in slots(group, running):
        behind = column[gone : group.num_running + 1]
        for slot in range(len(behind) - 1):
            behind[slot] = behind[slot + 1]


@compiled
def find_next_finish(group: Row, running: Integers) -> None:
    """Find which of the sequences that decode will be complete first, and when.

    The least of finish and slot in one number, which a processor finds several slots at a time.
    """
    _, finish = slots(group, running)
    least = _NEVER
    for slot in range(group.num_decoding):
        least = min(least, finish[slot] * _MOST_SLOTS + slot)
    group.next_finish, group.next_slot = least // _MOST_SLOTS, least % _MOST_SLOTS


@compiled
def _is_within(replica: Row, request: Row) -> bool:
    """Whether a completed request kept all limits."""
    decode_time_s = request.completion_s - request.first_token_s
    return bool(
        request.first_token_s - request.arrival_s <= replica.ttft_limit_s
        and decode_time_s <= replica.tpot_limit_s * max(request.output_tokens - 1, 1)
        and request.completion_s - request.arrival_s <= replica.latency_limit_s
    )
