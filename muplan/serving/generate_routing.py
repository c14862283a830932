"""Routing of generate requests to groups; compiled."""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled, inlined
from muplan.serving.generate_iterations import at_knot, knot_of
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import POWER_OF_TWO, ROUND_ROBIN
from muplan.serving.routing import drawn_pair, smooth_round_robin


@compiled
def route(
    settings: Row,
    groups: Rows,
    replicas: Rows,
    candidate_replica: Integers,
    values: Floats,
    requests: Rows,
    first: int,
    last: int,
    number: int,
) -> int:
    """The replica (and so the group) that an arriving request goes to; all groups are up to its time."""
    if settings.routing == ROUND_ROBIN:
        return smooth_round_robin(replicas, candidate_replica, first, last)
    step = 1
    if settings.routing == POWER_OF_TWO:
        first, last = drawn_pair(settings.routing_seed, number, first, last)
        last, step = last + 1, last - first
    best, best_s, tokens = candidate_replica[first], np.inf, float(requests[number].input_tokens)
    knots, low, weight = -1, 0, 0.0
    for candidate in range(first, last, step):
        place = candidate_replica[candidate]
        group = groups[place]
        if group.first_knot != knots:  # groups alike have one table of knots
            knots, (low, weight) = group.first_knot, knot_of(group, values, tokens)
        needed_s = _expected_s(group, values, at_knot(values, group.first_alone + low, 1, weight))
        if needed_s < best_s:
            best, best_s = place, needed_s
    return int(best)


@inlined
def _expected_s(group: Row, values: Floats, prefill_s: float) -> float:
    """How long an arriving request would take at a group, seconds, from mean lengths.

    The backlog is the work of those that wait and half the work of those that run, at the pace of
    a full batch; the request's own time is its prefill and a mean reply at the batch it will meet.
    """
    batch = min(group.num_waiting + group.num_running + 1, group.max_batch)
    backlog_s = group.work_s * (group.num_waiting + 0.5 * group.num_running)
    return float(backlog_s + (values[group.first_reply + batch - 1] + prefill_s))
