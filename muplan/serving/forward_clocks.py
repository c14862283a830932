"""Clocks of forward groups by prediction: which level keeps deadlines, and what it costs; compiled."""

from __future__ import annotations

import numpy as np

from muplan.serving.clock_levels import clock_at, command_level, highest_level, lowest_level, observe
from muplan.serving.clock_policies import late_share, moved_level
from muplan.serving.compiled import compiled
from muplan.serving.control import FORECAST, next_decision_s
from muplan.serving.forward_stages import pass_row, transfer_row
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import is_late

MOST_FORESEEN = 500
"""Waiting requests beyond which nothing is predicted: `forecast` goes to the highest clocks."""


@compiled
def decide_forward(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
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
    level = _level_in_time(settings, group, stages, replicas, requests, values, now_s)
    if settings.policy == FORECAST:
        level = _cheapest_level(settings, group, stages, replicas, requests, values, now_s)
        level = moved_level(group.level, level, now_s - group.changed_s, settings.dwell_s)
    command_level(settings, group, stages, level, now_s, log)


@compiled
def _level_in_time(
    settings: Row, group: Row, stages: Rows, replicas: Rows, requests: Rows, values: Floats, now_s: float
) -> int:
    """The lowest level at which nothing that waits would be late; the highest where there is none."""
    highest = highest_level(group, stages)
    for level in range(lowest_level(group, stages), highest):
        late_j = _late_j(settings, group, stages, replicas, requests, values, now_s, level, 1)
        if late_j == 0.0:
            return level
    return highest


@compiled
def _cheapest_level(
    settings: Row, group: Row, stages: Rows, replicas: Rows, requests: Rows, values: Floats, now_s: float
) -> int:
    """The level of least expected cost over the next ``dwell_s``, the lowest of equal ones.

    The cost is energy, and misses at their price: of what waits, and of what may come before another
    decision could help it, with a doubt. A level that does not keep up makes all late that comes.
    """
    lowest, highest = lowest_level(group, stages), highest_level(group, stages)
    if group.num_waiting > MOST_FORESEEN:
        return highest
    helpless_s = settings.window_s + group.clock_change_s
    best, least_j = highest, np.inf
    for level in range(lowest, highest + 1):
        cost_j = settings.dwell_s * _power_w(group, stages, replicas, values, level)
        cost_j += _late_j(
            settings, group, stages, replicas, requests, values, now_s, level, group.num_waiting
        )
        load, work_s = _load(group, stages, replicas, values, level)
        for place in range(group.first_replica, group.last_replica):
            replica = replicas[place]
            allowed_s = replica.latency_limit_s - settings.overhead_s
            at_s = _next_completion_s(group, stages, replica, values, now_s, level)
            slack_s = allowed_s - (at_s - now_s)
            late_s = min(max(-slack_s, 0.0), helpless_s)
            doubt = late_share(load, work_s, slack_s, allowed_s - work_s)
            price_j = _price_j(group, stages, replica, values)
            cost_j += price_j * replica.rate_rps * (late_s + doubt * settings.dwell_s)
        if cost_j < least_j:
            best, least_j = level, cost_j
    return best


@compiled
def _late_j(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    values: Floats,
    now_s: float,
    level: int,
    most: int,
) -> float:
    """Predict the passes of all that waits at a level; returns the price of what would be late, joules.

    It stops after ``most`` late requests. What waits is taken in the order of arrival, in batches as large
    as they can be by now. What was expected to be dropped when it came is no miss more.
    """
    change_at_s = now_s if level == group.level else now_s + group.clock_change_s
    for place in range(group.first_stage, group.last_stage):
        stages[place].foreseen_s = stages[place].free_s
    for place in range(group.first_replica, group.last_replica):
        replica = replicas[place]
        replica.next_waiting, replica.num_left = replica.head, replica.num_waiting
    late, late_j = 0, 0.0
    place = _first_left(group, replicas, requests)
    while place >= 0 and late < most:
        replica = replicas[place]
        batch = min(replica.num_left, replica.max_batch)
        at_s = (
            _foresee(group, stages, replica, values, now_s, change_at_s, level, batch) + settings.overhead_s
        )
        late_before = late
        for _ in range(batch):
            request = requests[replica.next_waiting]
            late += request.is_hopeless == 0 and is_late(request.arrival_s, at_s, replica.latency_limit_s)
            replica.next_waiting = request.behind
        replica.num_left -= batch
        if late > late_before:
            late_j += (late - late_before) * _price_j(group, stages, replica, values)
        place = _first_left(group, replicas, requests)
    return late_j


@compiled
def _price_j(group: Row, stages: Rows, replica: Row, values: Floats) -> float:
    """The price of a miss, joules: that of its replica times the energy of a request at the plan's clocks."""
    request_j = 0.0
    for place in range(group.first_stage, group.last_stage):
        row = pass_row(group, replica, place, stages[place].floor, 1)
        request_j += values[replica.first_pass_s + row] * values[replica.first_pass_w + row]
    return float(replica.price * request_j)


@compiled
def _first_left(group: Row, replicas: Rows, requests: Rows) -> int:
    """The replica of the oldest request that a prediction has not come to; −1 where none is left."""
    best, best_s = -1, np.inf
    for place in range(group.first_replica, group.last_replica):
        if replicas[place].num_left > 0 and requests[replicas[place].next_waiting].arrival_s < best_s:
            best, best_s = place, requests[replicas[place].next_waiting].arrival_s
    return best


@compiled
def _foresee(
    group: Row,
    stages: Rows,
    replica: Row,
    values: Floats,
    now_s: float,
    change_at_s: float,
    level: int,
    batch: int,
) -> float:
    """Take a batch through the stages of a prediction; returns its completion, seconds.

    Passes that begin before ``change_at_s`` are at the present clocks.
    """
    at_s = now_s
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        start_s = max(at_s, stage.foreseen_s)
        clock = stage.clock if start_s < change_at_s else clock_at(group, stage, level)
        at_s = start_s + values[replica.first_pass_s + pass_row(group, replica, place, clock, batch)]
        stage.foreseen_s = at_s
        at_s += values[replica.first_transfer + transfer_row(group, replica, place, batch)]
    return at_s


@compiled
def _next_completion_s(
    group: Row, stages: Rows, replica: Row, values: Floats, now_s: float, level: int
) -> float:
    """When a request that came now would be complete, by itself behind all that is foreseen, seconds."""
    at_s = now_s
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        row = pass_row(group, replica, place, clock_at(group, stage, level), 1)
        at_s = max(at_s, stage.foreseen_s) + values[replica.first_pass_s + row]
        at_s += values[replica.first_transfer + transfer_row(group, replica, place, 1)]
    return at_s


@compiled
def _load(group: Row, stages: Rows, replicas: Rows, values: Floats, level: int) -> tuple[float, float]:
    """Utilisation of the busiest stage at a level by the estimated rates, full batches; its mean pass, s."""
    load, work_s = 0.0, 0.0
    for place in range(group.first_stage, group.last_stage):
        clock, busy, passes_per_s = clock_at(group, stages[place], level), 0.0, 0.0
        for number in range(group.first_replica, group.last_replica):
            replica = replicas[number]
            row = pass_row(group, replica, place, clock, replica.max_batch)
            busy += replica.rate_rps * values[replica.first_pass_s + row] / replica.max_batch
            passes_per_s += replica.rate_rps / replica.max_batch
        if busy > load:
            load, work_s = busy, busy / passes_per_s
    return load, work_s


@compiled
def _power_w(group: Row, stages: Rows, replicas: Rows, values: Floats, level: int) -> float:
    """Expected power of a group at a level by the estimated rates, in batches of one, watts."""
    total_w = 0.0
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        clock = clock_at(group, stage, level)
        loaded_w = values[stage.first_loaded + clock]
        total_w += loaded_w
        for number in range(group.first_replica, group.last_replica):
            replica = replicas[number]
            row = pass_row(group, replica, place, clock, 1)
            above_w = values[replica.first_pass_w + row] - loaded_w
            total_w += replica.rate_rps * values[replica.first_pass_s + row] * above_w
    return total_w
