"""What generate groups must do of a run, as streams of a clairvoyant programme.

A request is prompt tokens and their share of a prefill iteration, output tokens and their share of a decode
iteration, and tokens attended to. All stages of a group do all of it, one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muplan.plan import Group
from muplan.problem.problem import Problem
from muplan.serving.clairvoyant.programme import Part, Stream
from muplan.serving.clairvoyant.residence import longest_stays
from muplan.serving.clairvoyant.slots import Slots
from muplan.serving.generate_tables import generate_tables
from muplan.serving.layout import Floats, Integers, Rows
from muplan.serving.records import Records
from muplan.workload import QueueOrder, Rejection, Serving

PRESENCE_S = 0.25
"""Parts of time over which requests that are present are counted; at least the longest decode iteration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    """Tables of a group; shapes (stages, clocks, batches or knots, 4), (batches,), (knots,), (stages,)."""

    decode: Floats
    decode_transfer_s: Floats
    prefill: Floats
    knots: Floats
    knot_transfer_s: Floats
    idle_w: Floats
    max_batch: int
    kv_tokens: int
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Presence:
    """What may run together: prompt tokens of a request's prefill, sequences in each slot's batch."""

    prefill_tokens: Floats
    batch: Integers


def generate_streams(
    problem: Problem, groups: tuple[Group, ...], serving: Serving, records: Records, slots: Slots
) -> tuple[Stream, ...]:
    """Streams of every generate group."""
    if not groups:
        return ()
    kernel = generate_tables(problem, groups, serving)
    streams: list[Stream] = []
    for number, group in enumerate(groups):
        mine = np.flatnonzero(records.group == records.groups.index(group.name))
        if len(mine):
            tables = _tables(kernel.groups[number], kernel.stages, kernel.values)
            streams += _group_streams(
                tables, kernel.replicas[number], serving, records, mine, slots, group.name
            )
    return tuple(streams)


def _tables(row: Rows, stages: Rows, values: Floats) -> _Tables:
    num_stages, num_clocks = int(row["last_stage"] - row["first_stage"]), int(row["num_clocks"])
    num_knots, max_batch = int(row["num_knots"]), int(row["max_batch"])

    def at(first: int, *shape: int) -> Floats:
        return values[first : first + int(np.prod(shape))].reshape(shape)

    loaded = [int(stage["first_loaded"]) for stage in stages[row["first_stage"] : row["last_stage"]]]
    return _Tables(
        decode=at(int(row["first_decode"]), num_stages, num_clocks, max_batch, 4),
        decode_transfer_s=at(int(row["first_transfer"]), max_batch),
        prefill=at(int(row["first_prefill"]), num_stages, num_clocks, num_knots, 4),
        knots=at(int(row["first_knot"]), num_knots),
        knot_transfer_s=at(int(row["first_knot_transfer"]), num_knots),
        idle_w=np.array([at(first, num_clocks).min() for first in loaded]),
        max_batch=max_batch,
        kv_tokens=int(row["kv_tokens"]),
        budget=int(row["prefill_budget"]),
    )


def _group_streams(
    tables: _Tables,
    replica: Rows,
    serving: Serving,
    records: Records,
    mine: Integers,
    slots: Slots,
    group: str,
) -> list[Stream]:
    arrival_s = records.arrival_s[mine]
    inputs, outputs = records.input_tokens[mine], records.output_tokens[mine]
    first_due_s = arrival_s + float(replica["ttft_limit_s"]) - serving.overhead_s
    decoding_s = float(replica["tpot_limit_s"]) * np.maximum(outputs - 1, 1)
    due_s = np.minimum(
        first_due_s + decoding_s, arrival_s + float(replica["latency_limit_s"]) - serving.overhead_s
    )
    presence = _presence(tables, serving, arrival_s, inputs, outputs, due_s, slots)
    prompt = _prefill_parts(tables, inputs)
    output = _decode_parts(tables, presence.batch)
    fastest_s = np.interp(inputs, tables.knots, tables.prefill[..., 0].min(axis=1).sum(axis=0))
    streams = []
    several = outputs > 1  # others do not decode
    attended = (outputs - 1) * inputs + outputs * (outputs - 1) // 2
    prefill_due_s = np.minimum(first_due_s, due_s)
    for parts, work, release_s, until_s, chosen in (
        (
            prompt[0],
            inputs / presence.prefill_tokens,
            arrival_s,
            prefill_due_s,
            np.ones(len(mine), dtype=np.bool_),
        ),
        (prompt[1], inputs.astype(np.float64), arrival_s, prefill_due_s, np.ones(len(mine), dtype=np.bool_)),
        (output[0], (outputs - 1).astype(np.float64), arrival_s + fastest_s, due_s, several),
        (output[1], attended.astype(np.float64), arrival_s + fastest_s, due_s, several),
    ):
        release, due, inside = slots.window(release_s, until_s, 0.0)
        inside &= chosen & (first_due_s - arrival_s >= fastest_s)
        if inside.any():
            streams.append(
                Stream(
                    resource=slots.resource(group, 0),
                    release=release[inside],
                    due=due[inside],
                    work=work[inside],
                    request=mine[inside],
                    parts=parts,
                )
            )
    return streams


def _presence(
    tables: _Tables,
    serving: Serving,
    arrival_s: Floats,
    inputs: Integers,
    outputs: Integers,
    due_s: Floats,
    slots: Slots,
) -> _Presence:
    """Bound what runs together, by limits and, first come, first served, by how long a request can stay."""
    slowest = tables.decode[..., :2].max(axis=1).sum(axis=0)  # batches, (a, k)
    iteration_s = np.maximum.accumulate(slowest[:, 0] + tables.decode_transfer_s)
    most = np.maximum(inputs, tables.budget).astype(np.float64)
    stay_s = np.maximum(due_s, arrival_s)
    if serving.queue_order is QueueOrder.FCFS and serving.rejection is Rejection.NONE and _packs_well(tables):
        width_s = max(PRESENCE_S, float(iteration_s[-1] + slowest[:, 1].max() * tables.kv_tokens))
        base_s = (tables.prefill[..., 0] + tables.prefill[..., 1]).max(axis=1).sum(axis=0)
        prefill_s = np.interp(inputs, tables.knots, base_s + tables.knot_transfer_s)
        first_s, end_s, holds = longest_stays(
            arrival_s, prefill_s, inputs, outputs, iteration_s, float(slowest[:, 1].max()),
            tables.max_batch, tables.budget, tables.kv_tokens, width_s, int(slots.edges_s[-1] / width_s) + 2,
        )  # fmt: skip
        if holds:
            stay_s = np.minimum(stay_s, end_s)
            before = np.searchsorted(first_s, arrival_s, side="right")
            after = np.searchsorted(arrival_s, first_s, side="left")
            total = np.concatenate(([0], np.cumsum(inputs)))
            own = np.arange(len(inputs))
            together = total[np.maximum(after, own + 1)] - total[np.minimum(before, own)]
            most = np.minimum(most, together.astype(np.float64))
    return _Presence(prefill_tokens=most, batch=_most_present(arrival_s, stay_s, slots, tables.max_batch))


def _packs_well(tables: _Tables) -> bool:
    """Whether prompts in one iteration take at most as long as one after the other, at every clock."""
    within = tables.knots <= tables.budget
    rate_s = tables.prefill[..., within, 0] / tables.knots[within]
    return bool((np.diff(rate_s, axis=-1) <= 1e-12).all())


def _most_present(arrival_s: Floats, end_s: Floats, slots: Slots, max_batch: int) -> Integers:
    """The most requests present at once in each slot, at least one, at most the batch limit."""
    times_s = np.concatenate([arrival_s, end_s])
    change = np.concatenate([np.ones(len(arrival_s)), -np.ones(len(end_s))])
    order = np.lexsort((-change, times_s))
    present = np.concatenate(([0.0], np.cumsum(change[order])))
    begins = np.searchsorted(times_s[order], slots.edges_s[:-1], side="left")
    most = np.array(
        [
            present[first : last + 1].max()
            for first, last in zip(begins, [*begins[1:], len(times_s)], strict=True)
        ]
    )
    return np.asarray(np.clip(most, 1, max_batch), dtype=np.int64)


def _prefill_parts(tables: _Tables, inputs: Integers) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Costs of a prefill iteration and of a prompt token, stage by stage: a line below the tables.

    A pass of T tokens costs at least α + β T; the line touches the tables near the usual prompt.
    """
    highest = max(float(inputs.max()), float(tables.budget))
    usual = min(float((inputs.astype(np.float64) ** 2).sum() / inputs.sum()), highest)
    tokens = np.append(tables.knots[tables.knots < highest], highest)
    passes, each = [], []
    for stage, idle_w in enumerate(tables.idle_w):
        above_j = tables.prefill[stage, ..., 2] - idle_w * tables.prefill[stage, ..., 0]
        lines = [
            [support_line(tokens, np.interp(tokens, tables.knots, curve), usual) for curve in table]
            for table in (tables.prefill[stage, ..., 0], above_j)
        ]
        seconds, joules = np.array(lines[0]), np.array(lines[1])
        passes.append(Part(unit_s=seconds[None, :, 0], unit_j=joules[None, :, 0]))
        each.append(Part(unit_s=seconds[None, :, 1], unit_j=joules[None, :, 1]))
    return tuple(passes), tuple(each)


def support_line(x: Floats, y: Floats, at: float) -> tuple[float, float]:
    """Intercept and slope, neither negative, of the line below all points that is highest at ``at``."""
    best, line = -np.inf, (0.0, 0.0)
    candidates = [(0.0, float((y / x).min())), (float(y.min()), 0.0)]
    for left in range(len(x)):
        for right in range(left + 1, len(x)):
            slope = float((y[right] - y[left]) / (x[right] - x[left]))
            candidates.append((float(y[left] - slope * x[left]), slope))
    for intercept, slope in candidates:
        is_below = (intercept + slope * x <= y * (1.0 + 1e-12)).all()
        if intercept >= 0.0 and slope >= 0.0 and is_below and intercept + slope * at > best:
            best, line = intercept + slope * at, (intercept, slope)
    return line


def _decode_parts(tables: _Tables, batch: Integers) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Costs of an output token by slot, at the best batch that can be there, and of a token attended to."""
    sizes = np.arange(1, tables.max_batch + 1)
    tokens, attended = [], []
    for stage, idle_w in enumerate(tables.idle_w):
        table = tables.decode[stage]
        above = table[..., 2:] - idle_w * table[..., :2]
        best_s, best_j = (
            np.minimum.accumulate(_from_here_on(values[..., 0]) / sizes, axis=1)[:, batch - 1].T
            for values in (table[..., :2], above)
        )
        tokens.append(Part(unit_s=best_s, unit_j=best_j))
        attended.append(
            Part(
                unit_s=table[:, :, 1].min(axis=1)[None, :],
                unit_j=np.maximum(above[:, :, 1].min(axis=1), 0.0)[None, :],
            )
        )
    return tuple(tokens), tuple(attended)


def _from_here_on(values: Floats) -> Floats:
    """The least value of each batch or a larger one: a batch may hold more that are late."""
    return np.asarray(np.minimum.accumulate(values[:, ::-1], axis=1)[:, ::-1])
