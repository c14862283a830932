"""Clocks of generate groups by prediction: which level keeps limits, and what it costs; compiled.

No reply's true length enters: what runs is expected to go on for a mean reply more.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.clock_levels import clock_at, command_level, highest_level, lowest_level, observe
from muplan.serving.clock_policies import moved_level
from muplan.serving.compiled import compiled
from muplan.serving.control import FORECAST, next_decision_s
from muplan.serving.generate_iterations import decode_row, prefill_stage, prefill_transfer_s
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.waiting import first_waiting

FULL = 0.9
"""The part of the KV memory that the expected batch may fill."""


@compiled
def decide_generate(
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
) -> None:
    """Take a group's next decision under ``slack`` or ``forecast``."""
    now_s = next_decision_s(settings, group)
    observe(settings, group, replicas, counts)
    group.next_window += 1
    if group.change_at_s < np.inf:
        return
    replica = replicas[group.first_replica]
    highest, needed = highest_level(group, stages), lowest_level(group, stages)
    oldest_s = _oldest_s(settings, group, requests, nodes)
    pace_s = _pace_allowed_s(group, replica, requests, running, now_s)
    while needed < highest and not _keeps_limits(
        settings, group, stages, replica, values, now_s, oldest_s, pace_s, needed
    ):
        needed += 1
    wanted = needed
    if settings.policy == FORECAST:
        least_w = np.inf
        for level in range(needed, highest + 1):
            power_w = _power_w(group, stages, replica, values, level)
            if power_w < least_w:
                wanted, least_w = level, power_w
        wanted = moved_level(group.level, wanted, now_s - group.changed_s, settings.dwell_s)
    command_level(settings, group, stages, wanted, now_s, log)


@compiled
def _oldest_s(settings: Row, group: Row, requests: Rows, nodes: Rows) -> float:
    """Arrival of the request that is next in the queue order, seconds; infinite where none waits anew.

    One that was preempted has its first token.
    """
    place = first_waiting(settings.queue_order, group, requests, nodes, 0.0, np.inf)
    if place < 0 or requests[place].batch > 0:
        return np.inf
    return float(requests[place].arrival_s)


@compiled
def _pace_allowed_s(group: Row, replica: Row, requests: Rows, running: Integers, now_s: float) -> float:
    """Longest mean time of an iteration at which all that runs keeps its limit per token, seconds.

    What has fallen behind must catch up within a mean reply.
    """
    allowed_s = replica.tpot_limit_s
    for slot in range(group.num_running):
        request = requests[running[group.first_running + slot]]
        done = request.output_tokens - (request.finish - group.iteration) - 1
        behind_s = now_s - request.first_token_s - replica.tpot_limit_s * done
        allowed_s = min(allowed_s, replica.tpot_limit_s - max(behind_s, 0.0) / max(group.mean_output, 1.0))
    return float(allowed_s)


@compiled
def _keeps_limits(
    settings: Row,
    group: Row,
    stages: Rows,
    replica: Row,
    values: Floats,
    now_s: float,
    oldest_s: float,
    pace_s: float,
    level: int,
) -> bool:
    """Whether what is there keeps its limits at a level; under ``forecast`` what is expected, too."""
    prefill_s = _prefill_s(group, stages, values, level)
    start_s = max(group.boundary_s, now_s)
    if oldest_s + replica.ttft_limit_s < start_s + prefill_s + settings.overhead_s:
        return False
    present = min(group.num_running + group.num_waiting, group.max_batch)
    context = group.context + group.num_waiting * group.mean_input
    lead_s, reserve_s = 0.0, 0.0
    prefilling = min(replica.rate_rps * prefill_s, 1.0)
    if settings.policy == FORECAST:
        lead_s = settings.window_s + group.clock_change_s
        reserve_s = 0.0
        batch = _expected_batch(group, stages, replica, values, level)
        if batch > FULL * group.max_batch:
            return False
        if batch * _mean_context(group) > FULL * group.kv_tokens:
            return False
        present = min(max(present, int(np.ceil(batch + replica.price * np.sqrt(batch)))), group.max_batch)
        context = max(context, present * _mean_context(group))
    queue_s = (group.num_waiting + 1) * prefill_s + reserve_s + max(group.boundary_s - now_s, 0.0)
    iteration_s = 0.0
    if present > 0:
        iteration_s = _decode(group, stages, values, level, present, context, 0)
    if queue_s + iteration_s + settings.overhead_s > replica.ttft_limit_s:
        return False
    return iteration_s <= pace_s * (1.0 - prefilling)


@compiled
def _mean_context(group: Row) -> float:
    """Tokens that a sequence attends to in the middle of a mean reply."""
    return group.mean_input + group.mean_output / 2.0


@compiled
def _decode(
    group: Row, stages: Rows, values: Floats, level: int, batch: int, context: float, column: int
) -> float:
    """Time (column 0) or energy (2) of a decode iteration at a level."""
    total = values[group.first_transfer + batch - 1] if column == 0 else 0.0
    for place in range(group.first_stage, group.last_stage):
        row = decode_row(group, clock_at(group, stages[place], level), place, batch) + column
        total += values[row] + values[row + 1] * context
    return total


@compiled
def _prefill_s(group: Row, stages: Rows, values: Floats, level: int) -> float:
    """Time of the prefill of a mean prompt by itself at a level, seconds."""
    total_s = prefill_transfer_s(group, values, group.mean_input)
    for place in range(group.first_stage, group.last_stage):
        clock = clock_at(group, stages[place], level)
        total_s += prefill_stage(group, clock, place, values, group.mean_input, 0)
        total_s += prefill_stage(group, clock, place, values, group.mean_input, 1)
    return total_s


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
            return following
        batch = following
    return batch


@compiled
def _power_w(group: Row, stages: Rows, replica: Row, values: Floats, level: int) -> float:
    """Expected power of a group at a level by the estimated rate, watts; infinite where it does not keep up."""
    mean = _expected_batch(group, stages, replica, values, level)
    if mean == np.inf:
        return np.inf
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
    return total_w
