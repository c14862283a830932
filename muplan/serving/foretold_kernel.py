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

    Of each request its replica (−1: rejected), start and completion; of each stage busy seconds and joules
    within the measured period; of each stage and sample of power the same.
    """

    replica: Integers
    start_s: Floats
    completion_s: Floats
    busy_s: Floats
    busy_j: Floats
    sample_s: Floats
    sample_j: Floats


@compiled
def serve_foretold(
    rules: Rules, pipelines: Pipelines, arrival_s: Floats, service: Integers, served: Served
) -> None:
    """Serve all requests, in the order of arrival."""
    free_s = np.zeros(pipelines.first_stage[-1])
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
    finish_s = min(finish_s, rules.duration_s)
    if finish_s <= start_s:
        return
    inside_s = min(finish_s, rules.measured_until_s) - max(start_s, rules.warm_up_s)
    if inside_s > 0.0:
        served.busy_s[stage] += inside_s
        served.busy_j[stage] += watts * inside_s
    width_s = rules.duration_s / rules.num_samples
    first = stage * rules.num_samples + min(int(start_s / width_s), rules.num_samples - 1)
    last = stage * rules.num_samples + min(int(finish_s / width_s), rules.num_samples - 1)
    if first == last:
        served.sample_s[first] += finish_s - start_s
        served.sample_j[first] += watts * (finish_s - start_s)
        return
    origin = stage * rules.num_samples
    for sample in range(first, last + 1):
        low_s = max(start_s, (sample - origin) * width_s)
        part_s = min(finish_s, (sample - origin + 1) * width_s) - low_s
        served.sample_s[sample] += part_s
        served.sample_j[sample] += watts * part_s
