"""The timeline of a run in the trace-event format of Chrome, which Perfetto (ui.perfetto.dev) opens.

One process for each group, with a thread for each stage (forward services: every pass) or with its
requests as they wait, are read and answered (generate services); one for the queues; one for the fleet's
power and every stage's clock. Times are in microseconds from the beginning of the run, as the format asks.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np

from muplan.plan import Deployment, Group
from muplan.problem.problem import Problem
from muplan.serving.forward_tables import forward_tables
from muplan.serving.groups import clock_grid, group_kind
from muplan.serving.records import Records

Event = dict[str, Any]

MOST_REQUESTS = 50_000
"""Requests that a timeline shows, from the first on: Perfetto becomes slow with many more."""
_FLEET, _QUEUES, _FIRST_GROUP = 1, 2, 10
"""Numbers of processes."""
_US_PER_S = 1e6


def timeline_json(records: Records, problem: Problem, deployment: Deployment) -> str:
    """Return the first `MOST_REQUESTS` requests of a run, its power and its clocks as trace events."""
    until_s = covered_s(records)
    events = [
        *_named(_FLEET, "fleet"),
        *_power(records, until_s),
        *_clocks(records, problem, deployment, until_s),
        *_named(_QUEUES, "queues"),
        *_waiting(records, until_s),
    ]
    for number, group in enumerate(deployment.groups):
        process = _FIRST_GROUP + number
        hosted = ", ".join(replica.service for replica in group.replicas)
        events += _named(process, f"{group.name} on {group.pool}: {hosted}")
        if group_kind(problem, group) == "forward":
            events += _passes(records, problem, deployment, group, process, until_s)
        else:
            events += _answers(records, number, process, until_s)
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False)


def covered_s(records: Records) -> float:
    """Until when a timeline shows a run, seconds."""
    if len(records) <= MOST_REQUESTS:
        return records.duration_s
    return float(records.arrival_s[MOST_REQUESTS])


def _named(process: int, name: str, threads: tuple[str, ...] = ()) -> Iterator[Event]:
    yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
    for thread, text in enumerate(threads):
        yield {"ph": "M", "pid": process, "tid": thread, "name": "thread_name", "args": {"name": text}}


def _counter(process: int, name: str, time_s: float, **values: float) -> Event:
    return {"ph": "C", "pid": process, "name": name, "ts": time_s * _US_PER_S, "args": values}


def _power(records: Records, until_s: float) -> Iterator[Event]:
    """Mean power of the fleet over every sample, by what the GPUs do."""
    samples = records.samples
    for place, (busy_w, loaded_w) in enumerate(zip(samples.busy_w, samples.loaded_w, strict=True)):
        if place * samples.width_s < until_s:
            yield _counter(
                _FLEET,
                "power (W)",
                place * samples.width_s,
                parked=samples.parked_w,
                loaded=float(loaded_w),
                busy=float(busy_w),
            )


def _clocks(records: Records, problem: Problem, deployment: Deployment, until_s: float) -> Iterator[Event]:
    """The clock of every stage, from when it takes effect."""
    for group in deployment.groups:
        for number, stage in enumerate(group.stages):
            name = f"clock (MHz) {group.name} stage {number}"
            for time_s, clock_mhz in _clock_history(records, problem, group, number, stage.clock_mhz):
                if time_s < until_s:
                    yield _counter(_FLEET, name, time_s, MHz=clock_mhz)


def _clock_history(
    records: Records, problem: Problem, group: Group, stage: int, first_mhz: int
) -> list[tuple[float, int]]:
    change_s = problem.devices[group.pool].clock_change_s
    changes = [
        (change.time_s + change_s, change.to_mhz)
        for change in records.clock_changes
        if (change.group, change.stage) == (group.name, stage)
    ]
    return [(0.0, first_mhz), *changes]


def _waiting(records: Records, until_s: float) -> Iterator[Event]:
    """How many requests of each service wait, at every change."""
    for number, service in enumerate(records.services):
        served = (records.service == number) & ~records.rejected
        arrival_s, start_s = records.arrival_s[served], records.start_s[served]
        times_s = np.concatenate([arrival_s, start_s])
        steps = np.concatenate([np.ones(len(arrival_s)), -np.ones(len(start_s))])
        order = np.argsort(times_s, kind="stable")
        for time_s, waiting in zip(times_s[order], np.cumsum(steps[order]), strict=True):
            if time_s < until_s:
                yield _counter(_QUEUES, f"waiting {service}", float(time_s), requests=float(waiting))


def _passes(
    records: Records,
    problem: Problem,
    deployment: Deployment,
    group: Group,
    process: int,
    until_s: float,
) -> Iterator[Event]:
    """Every pass of a forward group's batches through its stages, first in, first out."""
    threads = tuple(f"stage {number}: {', '.join(stage.gpus)}" for number, stage in enumerate(group.stages))
    yield from _named(process, f"{group.name} on {group.pool}", threads)
    tables, clocks_mhz = forward_tables(problem, [group], deployment.serving), clock_grid(problem, group)
    rows = {problem.services[row["service"]].name: row for row in tables.replicas}
    histories = [
        _clock_history(records, problem, group, number, stage.clock_mhz)
        for number, stage in enumerate(group.stages)
    ]
    free_s = np.zeros(len(group.stages))
    for start_s, service, batch in _batches(records, records.groups.index(group.name)):
        row, at_s = rows[service], start_s
        for stage, history in enumerate(histories):
            begin_s = max(at_s, float(free_s[stage]))
            clock_mhz = history[bisect_right(history, begin_s, key=lambda item: item[0]) - 1][1]
            cell = (stage * len(clocks_mhz) + clocks_mhz.index(clock_mhz)) * int(row["max_batch"]) + batch - 1
            pass_s = float(tables.values[row["first_pass_s"] + cell])
            onward = stage * int(row["max_batch"]) + batch - 1
            free_s[stage] = begin_s + pass_s
            at_s = begin_s + pass_s + float(tables.values[row["first_transfer"] + onward])
            if begin_s < until_s:
                yield {
                    "ph": "X",
                    "pid": process,
                    "tid": stage,
                    "name": service,
                    "ts": begin_s * _US_PER_S,
                    "dur": pass_s * _US_PER_S,
                    "args": {"batch": batch, "clock_mhz": clock_mhz},
                }


def _batches(records: Records, number: int) -> Iterator[tuple[float, str, int]]:
    """The batches of a group in the order in which they were dispatched: when, of which service, how many."""
    mine = np.flatnonzero(records.group == number)
    order = mine[np.argsort(records.start_s[mine], kind="stable")]
    seen: dict[tuple[float, int], int] = {}
    for request in order.tolist():
        seen.setdefault((float(records.start_s[request]), int(records.service[request])), request)
    for (start_s, service), request in seen.items():
        yield start_s, records.services[service], int(records.batch[request])


def _answers(records: Records, number: int, process: int, until_s: float) -> Iterator[Event]:
    """Every request of a generate group: it waits, is read (to its first token), and is answered."""
    mine = np.flatnonzero((records.group == number) & (records.arrival_s < until_s))
    identity = count(1)
    for request in mine.tolist():
        name, key = records.services[records.service[request]], next(identity)
        moments = (records.arrival_s, records.start_s, records.first_token_s, records.completion_s)
        parts = zip(("wait", "prefill", "decode"), moments, moments[1:], strict=False)
        for part, begin_s, end_s in parts:
            for phase, times_s in (("b", begin_s), ("e", end_s)):
                yield {
                    "ph": phase,
                    "pid": process,
                    "cat": name,
                    "id": key,
                    "name": part,
                    "ts": float(times_s[request]) * _US_PER_S,
                    "args": {
                        "input_tokens": int(records.input_tokens[request]),
                        "output_tokens": int(records.output_tokens[request]),
                    }
                    if phase == "b"
                    else {},
                }
