"""Clocks of generate groups by prediction: which level keeps limits, and what it costs; compiled.

No reply's true length enters: what runs is expected to go on for a mean reply more.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.clock_levels import clock_at, command_level, highest_level, lowest_level, observe
from muplan.serving.clock_policies import late_share, moved_level
from muplan.serving.compiled import compiled
from muplan.serving.control import FORECAST, next_decision_s
from muplan.serving.generate_batch import generated
from muplan.serving.generate_iterations import decode_row, prefill_stage, prefill_transfer_s
from muplan.serving.layout import PLACE, Floats, Integers, Row, Rows

FULL = 0.9
"""The part of the KV memory and of the batch that the expected batch may fill."""


@compiled
def decide_generate(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    running: Integers,
    values: Floats,
    counts: Integers,
    log: Floats,
) -> None:
    """Take a group's next decision under ``slack`` or ``forecast``."""
    now_s = next_decision_s(settings, group)
    observe(settings, group, replicas, counts)
    group.next_window += 1
    if group.change_at_s < np.inf:
        return
    replica = replicas[group.first_replica]
    lowest, highest = lowest_level(group, stages), highest_level(group, stages)
    oldest_s = _oldest_s(group, requests, now_s)
    best, least_j = highest, np.inf
    for level in range(lowest, highest + 1):
        late = _late(settings, group, stages, replica, requests, running, values, now_s, oldest_s, level)
        if settings.policy != FORECAST:
            if late == 0.0:
                best = level
                break
            continue
        power_w = _power_w(group, stages, replica, values, level)
        late += _late_next(settings, group, stages, replica, values, now_s, level)
        cost_j = settings.dwell_s * power_w + late * _price_j(group, stages, replica, values)
        if cost_j < least_j:
            best, least_j = level, cost_j
    if settings.policy == FORECAST:
        best = moved_level(group.level, best, now_s - group.changed_s, settings.dwell_s)
    command_level(settings, group, stages, best, now_s, log)


@compiled
def _oldest_s(group: Row, requests: Rows, now_s: float) -> float:
    """Arrival of the request that is next in the queue order, seconds; now where none waits."""
    return float(requests[group.root_by_key].arrival_s) if group.root_by_key >= 0 else now_s


@compiled
def _late(
    settings: Row,
    group: Row,
    stages: Rows,
    replica: Row,
    requests: Rows,
    running: Integers,
    values: Floats,
    now_s: float,
    oldest_s: float,
    level: int,
) -> float:
    """How many of those that wait or run would miss a limit at a level.

    What waits has come evenly since the oldest of it, and is prefilled one by one; what runs goes on for a
    mean reply, at the pace of all that is there.
    """
    late = 0.0
    prefill_s = _prefill_s(group, stages, values, level)
    begin_s = max(group.boundary_s, now_s) + settings.overhead_s - replica.ttft_limit_s
    for number in range(group.num_waiting):
        came_s = oldest_s + (now_s - oldest_s) * number / group.num_waiting
        late += begin_s + (number + 1) * prefill_s > came_s
    if group.num_running == 0:
        return late
    present = min(group.num_running + group.num_waiting, group.max_batch)
    context = group.context + (present - group.num_running) * group.mean_input
    free = max(1.0 - replica.rate_rps * prefill_s, 0.01)
    reply_s = group.mean_output * _decode(group, stages, values, level, present, context, 0) / free
    for slot in range(group.num_decoding):
        request = requests[running[PLACE, group.first_running + slot]]
        done = generated(group, requests, running, slot) - 1
        decoding_s = max(group.boundary_s - request.first_token_s, 0.0) + reply_s
        late += decoding_s > replica.tpot_limit_s * (done + group.mean_output)
    return late


@compiled
def _late_next(
    settings: Row, group: Row, stages: Rows, replica: Row, values: Floats, now_s: float, level: int
) -> float:
    """How many of those that may come are expected to miss a limit at a level.

    Of those that come before another decision could help: the ones that would find too many before them.
    Where the group does not keep up at the estimated rate, or its expected batch is too slow, all that come
    while the level is held.
    """
    batch = _expected_batch(group, stages, replica, values, level)
    held = batch > FULL * group.max_batch or batch * _mean_context(group) > FULL * group.kv_tokens
    prefill_s, pace_s = _prefill_s(group, stages, values, level), 0.0
    if not held and batch > 0.0:
        whole = int(np.ceil(batch))
        pace_s = _decode(group, stages, values, level, whole, whole * _mean_context(group), 0)
        held = pace_s > replica.tpot_limit_s * (1.0 - replica.rate_rps * prefill_s)
    if held:
        return float(replica.rate_rps * settings.dwell_s)
    slack_s = replica.ttft_limit_s - settings.overhead_s
    slack_s -= max(group.boundary_s - now_s, 0.0) + (group.num_waiting + 1) * prefill_s
    late_s = min(max(-slack_s, 0.0), settings.window_s + group.clock_change_s)
    wait_s = replica.ttft_limit_s - settings.overhead_s - pace_s - prefill_s
    doubt = late_share(replica.rate_rps * prefill_s, prefill_s, slack_s, wait_s)
    return float(replica.rate_rps * (late_s + doubt * settings.dwell_s))


@compiled
def _price_j(group: Row, stages: Rows, replica: Row, values: Floats) -> float:
    """The price of a miss, joules: that of the replica times the energy of a mean request by itself."""
    request_j = group.mean_output * _decode(group, stages, values, 0, 1, _mean_context(group), 2)
    for place in range(group.first_stage, group.last_stage):
        request_j += prefill_stage(group, stages[place].floor, place, values, group.mean_input, 2)
    return float(replica.price * request_j)


@compiled
def _mean_context(group: Row) -> float:
    """Tokens that a sequence attends to in the middle of a mean reply."""
    return float(group.mean_input + group.mean_output / 2.0)


@compiled
def _decode(
    group: Row, stages: Rows, values: Floats, level: int, batch: int, context: float, column: int
) -> float:
    """Time (column 0) or energy (2) of a decode iteration at a level."""
    total = values[group.first_transfer + batch - 1] if column == 0 else 0.0
    for place in range(group.first_stage, group.last_stage):
        row = decode_row(group, clock_at(group, stages[place], level), place, batch) + column
        total += values[row] + values[row + 1] * context
    return float(total)


@compiled
def _prefill_s(group: Row, stages: Rows, values: Floats, level: int) -> float:
    """Time of the prefill of a mean prompt by itself at a level, seconds."""
    total_s = prefill_transfer_s(group, values, group.mean_input)
    for place in range(group.first_stage, group.last_stage):
        clock = clock_at(group, stages[place], level)
        total_s += prefill_stage(group, clock, place, values, group.mean_input, 0)
        total_s += prefill_stage(group, clock, place, values, group.mean_input, 1)
    return float(total_s)


@compiled
def _expected_batch(group: Row, stages: Rows, replica: Row, values: Floats, level: int) -> float:
    """Mean number of running sequences at the estimated rate; infinite where a full batch does not keep up.

    By Little's law it is tokens a second times the time of an iteration and of the prefills that come
    between: the least root of n = λ · reply · t(n) / (1 − prefilling), by repeated substitution from below.
    """
    free = 1.0 - replica.rate_rps * _prefill_s(group, stages, values, level)
    if free <= 0.0:
        return np.inf
    tokens_per_s = replica.rate_rps * group.mean_output / free
    batch = 0.0
    for _ in range(30):
        whole = min(max(int(np.ceil(batch)), 1), group.max_batch)
        context = max(batch, 1.0) * _mean_context(group)
        following = tokens_per_s * _decode(group, stages, values, level, whole, context, 0)
        if following > group.max_batch:
            return np.inf
        if following - batch < 1e-3 * batch:
            return float(following)
        batch = following
    return batch


@compiled
def _power_w(group: Row, stages: Rows, replica: Row, values: Floats, level: int) -> float:
    """Expected power of a group at a level by the estimated rate, watts."""
    mean = _expected_batch(group, stages, replica, values, level)
    if mean == np.inf:  # it does not keep up: the whole time in full batches
        mean = float(group.max_batch)
    batch = min(max(int(np.ceil(mean)), 1), group.max_batch)
    context = max(mean, 1.0) * _mean_context(group)
    iterations_per_s = replica.rate_rps * group.mean_output / max(mean, 1.0)
    total_w = iterations_per_s * _decode(group, stages, values, level, batch, context, 2)
    for place in range(group.first_stage, group.last_stage):
        clock = clock_at(group, stages[place], level)
        loaded_w = values[stages[place].first_loaded + clock]
        row = decode_row(group, clock, place, batch)
        busy = iterations_per_s * (values[row] + values[row + 1] * context)
        busy += replica.rate_rps * prefill_stage(group, clock, place, values, group.mean_input, 0)
        total_w += replica.rate_rps * prefill_stage(group, clock, place, values, group.mean_input, 2)
        total_w += max(1.0 - busy, 0.0) * loaded_w
    return float(total_w)
