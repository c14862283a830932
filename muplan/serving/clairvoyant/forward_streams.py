"""What forward groups must do of a run, as streams of a clairvoyant programme."""

from __future__ import annotations

import numpy as np

from muplan.plan import Group
from muplan.problem.problem import Problem
from muplan.serving.clairvoyant.programme import Part, Stream
from muplan.serving.clairvoyant.slots import Slots
from muplan.serving.forward_tables import forward_tables
from muplan.serving.layout import Floats, Integers
from muplan.serving.records import Records
from muplan.workload import Serving


def forward_streams(
    problem: Problem, groups: tuple[Group, ...], serving: Serving, records: Records, slots: Slots
) -> tuple[Stream, ...]:
    """Streams of every stage of forward groups: one for each service and size of batch it can have had.

    A stage has all the time between a request's arrival and its limit that the other stages leave at their
    fastest; passes may be split and interrupted.
    """
    if not groups:
        return ()
    tables = forward_tables(problem, groups, serving)
    streams: list[Stream] = []
    for row in tables.replicas:
        group = tables.groups[row["group"]]
        number = records.groups.index(groups[row["group"]].name)
        mine = np.flatnonzero((records.group == number) & (records.service == row["service"]))
        num_stages, max_batch = int(group["last_stage"] - group["first_stage"]), int(row["max_batch"])
        shape = (num_stages, int(group["num_clocks"]), max_batch)
        pass_s = tables.values[row["first_pass_s"] :][: np.prod(shape)].reshape(shape)
        pass_w = tables.values[row["first_pass_w"] :][: np.prod(shape)].reshape(shape)
        transfer_s = tables.values[row["first_transfer"] :][: num_stages * max_batch].reshape(num_stages, -1)
        fastest_s = pass_s.min(axis=(1, 2)) + transfer_s.min(axis=1)
        allowed_s = float(row["latency_limit_s"]) - serving.overhead_s
        arrival_s = records.arrival_s[mine]
        batch = largest_batches(arrival_s, allowed_s - float(fastest_s.sum()), max_batch)
        for stage in range(num_stages):
            first = tables.stages[group["first_stage"] + stage]["first_loaded"]
            idle_w = tables.values[first : first + shape[1]].min()
            release_s = arrival_s + fastest_s[:stage].sum()
            # the stage's own transfer and all that follows come after its pass
            due_s = arrival_s + allowed_s - fastest_s[stage + 1 :].sum() - transfer_s[stage].min()
            for size in np.unique(batch):
                release, due, inside = slots.window(release_s, due_s, float(pass_s[stage].min()))
                inside &= batch == size
                if not inside.any():
                    continue
                streams.append(
                    Stream(
                        resource=slots.resource(groups[row["group"]].name, stage),
                        release=release[inside],
                        due=due[inside],
                        work=np.ones(int(inside.sum())),
                        request=mine[inside],
                        parts=(_part(pass_s[stage], pass_w[stage], float(idle_w), int(size)),),
                    )
                )
    return tuple(streams)


def largest_batches(arrival_s: Floats, span_s: float, max_batch: int) -> Integers:
    """The most requests that can have shared a batch with each, all in time; rounded up to a power of two.

    The first and the last of a batch come at most ``span_s`` apart, or the first would be late.
    """
    count = len(arrival_s)
    together = np.searchsorted(arrival_s, arrival_s + max(span_s, 0.0), side="right") - np.arange(count)
    together = np.minimum(together, max_batch)
    most = np.ones(count, dtype=np.int64)
    for back in range(min(max_batch, count)):
        reaches = arrival_s[back:] - arrival_s[: count - back] <= span_s
        most[back:] = np.maximum(most[back:], np.where(reaches, together[: count - back], 1))
    rounded = 2 ** np.ceil(np.log2(most)).astype(np.int64)
    return np.asarray(np.minimum(rounded, max_batch))


def _part(pass_s: Floats, pass_w: Floats, idle_w: float, size: int) -> Part:
    """Least seconds and joules above idling of a request in batches of up to ``size``; by clock.

    A batch of b in time may hold more that are late: it costs at least what the cheapest of b or more does.
    """
    pass_j = pass_s * (pass_w - idle_w)
    return Part(unit_s=_least(pass_s, size)[None, :], unit_j=_least(pass_j, size)[None, :])


def _least(values: Floats, size: int) -> Floats:
    """Least value a request in batches of up to ``size``; values by clock and batch."""
    from_here_on = np.minimum.accumulate(values[:, ::-1], axis=1)[:, ::-1]
    return np.asarray((from_here_on / np.arange(1, values.shape[1] + 1))[:, :size].min(axis=1))
