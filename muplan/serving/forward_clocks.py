"""Clocks of forward groups by prediction: which level keeps deadlines, and what it costs; compiled."""

from __future__ import annotations

import numpy as np

from muplan.serving.clock_levels import clock_at, command_level, highest_level, lowest_level, observe
from muplan.serving.clock_policies import moved_level, tail_wait_s
from muplan.serving.compiled import compiled
from muplan.serving.control import FORECAST, next_decision_s
from muplan.serving.forward_stages import pass_row, transfer_row
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import is_late


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
    highest = highest_level(group, stages)
    needed = lowest_level(group, stages)
    while needed < highest and not _keeps_deadlines(
        settings, group, stages, replicas, requests, values, now_s, needed
    ):
        needed += 1
    wanted = needed
    if settings.policy == FORECAST:
        for level in range(needed + 1, highest + 1):
            if _power_w(group, stages, replicas, values, level) < _power_w(
                group, stages, replicas, values, wanted
            ):
                wanted = level
        wanted = moved_level(group.level, needed, wanted, now_s - group.changed_s, settings.dwell_s)
    command_level(settings, group, stages, wanted, now_s, log)


@compiled
def _keeps_deadlines(
    settings: Row,
    group: Row,
    stages: Rows,
    replicas: Rows,
    requests: Rows,
    values: Floats,
    now_s: float,
    level: int,
) -> bool:
    """Whether all that waits would be complete in time at a level; under ``forecast`` what comes next, too.

    What waits is taken in the order of arrival, in batches as large as they can be by now.
    """
    change_at_s = now_s if level == group.level else now_s + group.clock_change_s
    for place in range(group.first_stage, group.last_stage):
        stages[place].foreseen_s = stages[place].free_s
    for place in range(group.first_replica, group.last_replica):
        replicas[place].next_waiting, replicas[place].num_left = replicas[place].head, replicas[place].num_waiting
    place = _first_left(group, replicas, requests)
    while place >= 0:
        replica = replicas[place]
        head = requests[replica.next_waiting]
        batch = min(replica.num_left, replica.max_batch)
        at_s = _foresee(group, stages, replica, values, now_s, change_at_s, level, batch)
        if head.is_hopeless == 0 and is_late(
            head.arrival_s, at_s + settings.overhead_s, replica.latency_limit_s
        ):
            return False
        replica.num_left -= batch
        if replica.num_left > 0:
            for _ in range(batch):
                replica.next_waiting = requests[replica.next_waiting].behind
        place = _first_left(group, replicas, requests)
    if settings.policy != FORECAST:
        return True
    load, work_s = _load(group, stages, replicas, values, level)
    if load >= 1.0:
        return False
    for place in range(group.first_replica, group.last_replica):
        replica = replicas[place]
        reserve_s = replica.caution * (RESERVE_TAIL * tail_wait_s(load, work_s, replica.target) + RESERVE_LEAD * load * (settings.window_s + group.clock_change_s))
        at_s = _next_completion_s(group, stages, replica, values, now_s, level) + reserve_s
        if is_late(now_s, at_s + settings.overhead_s, replica.latency_limit_s):
            return False
    return True

import os
RESERVE_TAIL=float(os.environ.get("RT","1"))
RESERVE_LEAD=float(os.environ.get("RL","0"))


@compiled
def _first_left(group: Row, replicas: Rows, requests: Rows) -> int:
    """The replica of the oldest request that a prediction under way has not come to; −1 where none is left."""
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
    """Utilisation of the busiest stage at a level by the estimated rates, in full batches; its mean work, s."""
    load, work_s = 0.0, 0.0
    for place in range(group.first_stage, group.last_stage):
        clock, busy, rate_rps = clock_at(group, stages[place], level), 0.0, 0.0
        for number in range(group.first_replica, group.last_replica):
            replica = replicas[number]
            row = pass_row(group, replica, place, clock, replica.max_batch)
            busy += replica.rate_rps * values[replica.first_pass_s + row] / replica.max_batch
            rate_rps += replica.rate_rps / replica.max_batch
        if busy > load:
            load, work_s = busy, busy / rate_rps
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
