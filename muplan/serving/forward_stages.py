"""Stages of forward groups: passes, what they will take and what is promised; compiled."""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled
from muplan.serving.energy import account_busy
from muplan.serving.layout import Floats, Row, Rows


@compiled
def tabulate_work(group: Row, stages: Rows, replicas: Rows, values: Floats) -> None:
    """Fill the table of each replica's slowest stage, by batch, at the present clocks."""
    for place in range(group.first_replica, group.last_replica):
        replica = replicas[place]
        for batch in range(1, replica.max_batch + 1):
            slowest_s = 0.0
            for stage in range(group.first_stage, group.last_stage):
                row = pass_row(group, replica, stage, stages[stage].clock, batch)
                slowest_s = max(slowest_s, values[replica.first_pass_s + row])
            values[replica.first_work + batch - 1] = slowest_s
    group.backlog_s = np.nan


@compiled
def pass_row(group: Row, replica: Row, stage: int, clock: int, batch: int) -> int:
    """Where a pass stands in the tables [stage][clock][batch − 1] of a replica."""
    return int(((stage - group.first_stage) * group.num_clocks + clock) * replica.max_batch + batch - 1)


@compiled
def transfer_row(group: Row, replica: Row, stage: int, batch: int) -> int:
    """Where a transfer stands in the table [stage][batch − 1] of a replica."""
    return int((stage - group.first_stage) * replica.max_batch + batch - 1)


@compiled
def expected_completion_s(
    group: Row, stages: Rows, replicas: Rows, place: int, values: Floats, now_s: float
) -> float:
    """When a request of replica ``place`` that arrives now would be complete behind all that waits, seconds.

    As if it were dispatched next, and later by the backlog: the time that what waits keeps the slowest
    stage. Requests that wait without hope are not counted.
    """
    backlog_s = 0.0
    if group.num_waiting > 0:
        backlog_s = _backlog_before_s(group, replicas, replicas[place], values)
    return backlog_s + _completion_if_next_s(group, stages, replicas[place], values, now_s)


@compiled
def deadline_completion_s(
    group: Row, stages: Rows, replicas: Rows, place: int, requests: Rows, values: Floats, now_s: float
) -> float:
    """As `expected_completion_s`, behind those alone whose deadlines are not later than its own, seconds."""
    replica = replicas[place]
    deadline_s, backlog_s = now_s + replica.latency_limit_s, 0.0
    if group.num_waiting > 0:
        for other in range(group.first_replica, group.last_replica):
            if other == place:
                backlog_s += _full_batches_s(replica, values, replica.num_hopeful)
            elif replicas[other].num_hopeful > 0:
                sooner = _num_due(replicas[other], requests, deadline_s)
                backlog_s += _full_batches_s(replicas[other], values, sooner)
                backlog_s += _partial_batch_s(replicas[other], values, sooner)
    return backlog_s + _completion_if_next_s(group, stages, replica, values, now_s)


@compiled
def _num_due(replica: Row, requests: Rows, deadline_s: float) -> int:
    """How many of those that wait at a replica hopefully are due up to a deadline."""
    if requests[replica.tail].arrival_s + replica.latency_limit_s <= deadline_s:
        return int(replica.num_hopeful)
    count, place = 0, replica.head
    while requests[place].arrival_s + replica.latency_limit_s <= deadline_s:
        count += 1 - requests[place].is_hopeless
        place = requests[place].behind
    return count


@compiled
def _completion_if_next_s(group: Row, stages: Rows, replica: Row, values: Floats, now_s: float) -> float:
    """When a request that arrives now would be complete in the batch it joins, if that went next, seconds."""
    batch = replica.num_hopeful + 1
    if batch > replica.max_batch:
        batch = replica.num_hopeful % replica.max_batch + 1
    at_s = now_s
    for stage in range(group.first_stage, group.last_stage):
        row = pass_row(group, replica, stage, stages[stage].clock, batch)
        at_s = max(at_s, stages[stage].free_s) + values[replica.first_pass_s + row]
        at_s += values[replica.first_transfer + transfer_row(group, replica, stage, batch)]
    return at_s


@compiled
def _backlog_before_s(group: Row, replicas: Rows, replica: Row, values: Floats) -> float:
    """Time that what waits keeps a group's slowest stage before a request that now comes to ``replica``.

    A partial batch that the request joins is left out.
    """
    if replica.num_waiting == group.num_waiting:
        return _full_batches_s(replica, values, replica.num_hopeful)
    if np.isnan(group.backlog_s):
        total_s = 0.0
        for place in range(group.first_replica, group.last_replica):
            count = replicas[place].num_hopeful
            if count > 0:
                total_s += _full_batches_s(replicas[place], values, count)
                total_s += _partial_batch_s(replicas[place], values, count)
        group.backlog_s = total_s
    return float(group.backlog_s - _partial_batch_s(replica, values, replica.num_hopeful))


@compiled
def _full_batches_s(replica: Row, values: Floats, count: int) -> float:
    """Time that the full batches of so many requests keep a replica's slowest stage."""
    num_full = count // replica.max_batch
    return float(num_full * values[replica.first_work + replica.max_batch - 1]) if num_full > 0 else 0.0


@compiled
def _partial_batch_s(replica: Row, values: Floats, count: int) -> float:
    """Time that the last, partial batch of so many requests keeps a replica's slowest stage."""
    rest = count % replica.max_batch
    return float(values[replica.first_work + rest - 1]) if rest > 0 else 0.0


@compiled
def promise(group: Row, stages: Rows, replica: Row, values: Floats, now_s: float, keep: bool) -> float:
    """When a request of a replica that arrives now would be complete behind all that waits, seconds.

    Every stage has promised the passes of all waiting requests, in the order of arrival; the request
    opens a batch of its own behind them, or makes the batch that it joins longer. Exact for first
    come, first served, batches of one and fixed clocks. ``keep`` adds the request to the promises.
    """
    joined = replica.num_waiting % replica.max_batch
    at_s, longer_s = now_s, 0.0
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        row = replica.first_pass_s + pass_row(group, replica, place, stage.clock, joined + 1)
        onward = replica.first_transfer + transfer_row(group, replica, place, joined + 1)
        free_s = max(stage.promised_s, stage.free_s)
        if joined == 0:
            at_s = max(at_s, free_s) + values[row]
        else:
            # What a batch is delayed by on all stages so far is the most that it ends later here.
            longer_s += values[row] - values[row - 1]
            at_s = max(now_s, free_s) + longer_s
            longer_s += values[onward] - values[onward - 1]
        if keep:
            stage.promised_s = at_s
        at_s += values[onward]
    return float(at_s)


@compiled
def last_stage_promised_s(group: Row, stages: Rows) -> float:
    """When the last stage of a group will be free of all that was dispatched or waits, seconds."""
    last = stages[group.last_stage - 1]
    return float(max(last.promised_s, last.free_s))


@compiled
def pass_completion_s(
    group: Row, stages: Rows, replica: Row, values: Floats, batch: int, now_s: float
) -> float:
    """When a batch that is dispatched now would be complete, seconds; what `run_pass` would return."""
    at_s = now_s
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        start_s = max(at_s, stage.free_s)
        row = pass_row(group, replica, place, _clock_at(group, stage, start_s), batch)
        at_s = start_s + values[replica.first_pass_s + row]
        at_s += values[replica.first_transfer + transfer_row(group, replica, place, batch)]
    return float(at_s)


@compiled
def _clock_at(group: Row, stage: Row, start_s: float) -> int:
    """The clock of a pass that begins at ``start_s``, which it keeps to its end."""
    return int(stage.next_clock if start_s >= group.change_at_s else stage.clock)


@compiled
def run_pass(
    settings: Row,
    group: Row,
    stages: Rows,
    replica: Row,
    values: Floats,
    samples_j: Floats,
    batch: int,
    now_s: float,
) -> float:
    """Take a batch through the stages, first in, first out; returns its completion, seconds."""
    at_s = now_s
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        start_s = max(at_s, stage.free_s)
        row = pass_row(group, replica, place, _clock_at(group, stage, start_s), batch)
        finish_s = start_s + values[replica.first_pass_s + row]
        watts = values[replica.first_pass_w + row]
        account_busy(settings, group, stage, values, samples_j, start_s, finish_s, watts)
        if settings.is_detailed:
            measured_s = min(finish_s, settings.measured_until_s) - max(start_s, settings.warm_up_s)
            replica.busy_s += max(measured_s, 0.0)
            replica.busy_j += watts * max(measured_s, 0.0)
        stage.free_s = finish_s
        at_s = finish_s + values[replica.first_transfer + transfer_row(group, replica, place, batch)]
    return at_s


@compiled
def foretell_pass(
    group: Row, stages: Rows, replica: Row, values: Floats, batch: int, now_s: float, foretold: Floats
) -> None:
    """Fill in what a batch that is dispatched now asks of each stage, as `run_pass` would have it.

    Seconds of computing, of transfer after it, and watts; shape (3 · stages,), a stage after the other.
    """
    at_s = now_s
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        start_s = max(at_s, stage.free_s)
        row = pass_row(group, replica, place, _clock_at(group, stage, start_s), batch)
        first = 3 * (place - group.first_stage)
        foretold[first] = values[replica.first_pass_s + row]
        foretold[first + 1] = values[replica.first_transfer + transfer_row(group, replica, place, batch)]
        foretold[first + 2] = values[replica.first_pass_w + row]
        at_s = start_s + foretold[first] + foretold[first + 1]
