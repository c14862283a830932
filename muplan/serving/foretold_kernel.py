"""The compiled simulator of forward groups where a request's completion is known when it comes.

So it is under first come, first served, batches of one and fixed clocks: nothing that comes later changes
it. Then there are no queues to keep, and a request is served in one step: routed, promised or rejected, and
taken through its stages. The results are those of `muplan.serving.forward_kernel`, completion by completion,
in a fraction of its time; a test holds the two equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from muplan.serving.compiled import compiled, inlined
from muplan.serving.layout import Floats, Integers
from muplan.serving.policies import ADMIT_ALL, LEAST_LAST_STAGE, is_late
from muplan.serving.routing import is_beaten


class Rules(NamedTuple):
    """Routing, rejection and overhead; what is measured, and the samples of power."""

    routing: int
    rejection: int
    overhead_s: float
    warm_up_s: float
    measured_until_s: float
    duration_s: float
    num_samples: int


class Pipelines(NamedTuple):
    """Groups and replicas at their clocks.

    Stages of group g are ``first_stage[g]`` up to ``first_stage[g + 1]``. Replica r takes
    ``pass_s[first_row[r] + k]`` on the k-th of its group's, at ``pass_w``, and ``transfer_s`` to the next.
    ``least_s`` is all that of each replica together. The replicas of service s are
    ``by_service[first_by_service[s]:first_by_service[s + 1]]``, in the order of ``least_s`` where requests go
    to the shortest expected completion; ``limit_s`` is each service's.
    """

    first_stage: Integers
    group: Integers
    first_row: Integers
    pass_s: Floats
    pass_w: Floats
    transfer_s: Floats
    least_s: Floats
    first_by_service: Integers
    by_service: Integers
    limit_s: Floats


class Served(NamedTuple):
    """Filled by the kernel.

    Of each request its replica (−1: rejected), start and completion; of each stage when it is free, and busy
    seconds and joules within the measured period; of each stage and sample of power the same. An edge is
    where a sample, or the measured period, begins or ends: up to its next one (``edge_s``) a stage's seconds
    and joules are in ``open_s`` and ``open_j``, for the sample in row ``open_row``.
    """

    replica: Integers
    start_s: Floats
    completion_s: Floats
    free_s: Floats
    busy_s: Floats
    busy_j: Floats
    sample_s: Floats
    sample_j: Floats
    edge_s: Floats
    open_s: Floats
    open_j: Floats
    open_row: Integers


@compiled
def serve_foretold(
    rules: Rules, pipelines: Pipelines, arrival_s: Floats, service: Integers, served: Served
) -> None:
    """Serve all requests, in the order of arrival."""
    free_s = served.free_s
    for request in range(len(arrival_s)):
        now_s, kind = arrival_s[request], service[request]
        chosen, least_s = -1, np.inf
        first, last = pipelines.first_by_service[kind], pipelines.first_by_service[kind + 1]
        for candidate in range(first, last):
            replica = pipelines.by_service[candidate]
            if rules.routing == LEAST_LAST_STAGE:
                at_s = free_s[pipelines.first_stage[pipelines.group[replica] + 1] - 1]
            else:
                if is_beaten(now_s + pipelines.least_s[replica], replica, least_s, chosen):
                    break  # so are all further candidates
                at_s = _completion_s(pipelines, free_s, replica, now_s)
            if at_s < least_s or (at_s == least_s and replica < chosen) or chosen < 0:
                chosen, least_s = replica, at_s
        if chosen < 0:
            continue
        if rules.rejection != ADMIT_ALL:
            at_s = least_s
            if rules.routing == LEAST_LAST_STAGE:
                at_s = _completion_s(pipelines, free_s, chosen, now_s)
            if is_late(now_s, at_s + rules.overhead_s, pipelines.limit_s[kind]):
                continue
        group = pipelines.group[chosen]
        begin, end = pipelines.first_stage[group], pipelines.first_stage[group + 1]
        row, at_s = pipelines.first_row[chosen] - begin, now_s
        served.replica[request] = chosen
        served.start_s[request] = max(now_s, free_s[begin])
        for stage in range(begin, end):
            start_s = max(at_s, free_s[stage])
            finish_s = start_s + pipelines.pass_s[row + stage]
            _account(rules, served, stage, start_s, finish_s, pipelines.pass_w[row + stage])
            free_s[stage] = finish_s
            at_s = finish_s + pipelines.transfer_s[row + stage]
        served.completion_s[request] = at_s + rules.overhead_s
    for stage in range(len(free_s)):
        _close(rules, served, stage)


@inlined
def _completion_s(pipelines: Pipelines, free_s: Floats, replica: int, now_s: float) -> float:
    """When a request that comes now would be complete on a replica, without overhead, seconds."""
    group = pipelines.group[replica]
    begin, end = pipelines.first_stage[group], pipelines.first_stage[group + 1]
    row, at_s = pipelines.first_row[replica] - begin, now_s
    for stage in range(begin, end):
        at_s = max(at_s, free_s[stage]) + pipelines.pass_s[row + stage]
        at_s += pipelines.transfer_s[row + stage]
    return float(at_s)


@inlined
def _account(rules: Rules, served: Served, stage: int, start_s: float, finish_s: float, watts: float) -> None:
    """Count a pass's seconds and joules, within the measured period and by sample."""
    if finish_s <= served.edge_s[stage]:
        served.open_s[stage] += finish_s - start_s
        served.open_j[stage] += watts * (finish_s - start_s)
    else:
        _close(rules, served, stage)
        _deposit(rules, served, stage, start_s, min(finish_s, rules.duration_s), watts)
        _open(rules, served, stage, finish_s)


@compiled
def _close(rules: Rules, served: Served, stage: int) -> None:
    """Put what is open of a stage where it belongs."""
    row = served.open_row[stage]
    served.sample_s[row] += served.open_s[stage]
    served.sample_j[row] += served.open_j[stage]
    if rules.warm_up_s < served.edge_s[stage] <= rules.measured_until_s:
        served.busy_s[stage] += served.open_s[stage]
        served.busy_j[stage] += served.open_j[stage]
    served.open_s[stage] = served.open_j[stage] = 0.0


@compiled
def _open(rules: Rules, served: Served, stage: int, now_s: float) -> None:
    """Find the first edge after ``now_s``; the end of the trace is the last."""
    width_s = rules.duration_s / rules.num_samples
    sample = min(int(now_s / width_s), rules.num_samples - 1)
    edge_s = rules.duration_s if sample == rules.num_samples - 1 else (sample + 1) * width_s
    if now_s < rules.warm_up_s:
        edge_s = min(edge_s, rules.warm_up_s)
    elif now_s < rules.measured_until_s:
        edge_s = min(edge_s, rules.measured_until_s)
    served.edge_s[stage], served.open_row[stage] = edge_s, stage * rules.num_samples + sample


@compiled
def _deposit(rules: Rules, served: Served, stage: int, start_s: float, finish_s: float, watts: float) -> None:
    """Count what a pass that meets an edge does on each side of it."""
    if finish_s <= start_s:
        return
    inside_s = min(finish_s, rules.measured_until_s) - max(start_s, rules.warm_up_s)
    if inside_s > 0.0:
        served.busy_s[stage] += inside_s
        served.busy_j[stage] += watts * inside_s
    width_s, origin = rules.duration_s / rules.num_samples, stage * rules.num_samples
    first = min(int(start_s / width_s), rules.num_samples - 1)
    last = min(int(finish_s / width_s), rules.num_samples - 1)
    for sample in range(first, last + 1):
        until_s = finish_s if sample == last else (sample + 1) * width_s
        part_s = until_s - max(start_s, sample * width_s)
        served.sample_s[origin + sample] += part_s
        served.sample_j[origin + sample] += watts * part_s
