"""Iterations of generate groups: their times, their energy; compiled."""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled
from muplan.serving.energy import BUSY, LOADED, deposit
from muplan.serving.layout import Floats, Row, Rows


@compiled
def tabulate_iterations(group: Row, stages: Rows, values: Floats) -> None:
    """Fill the coefficients a and k of a decode iteration's time, by batch, at the present clocks."""
    for batch in range(1, group.max_batch + 1):
        intercept_s, slope_s = values[group.first_transfer + batch - 1], 0.0
        for place in range(group.first_stage, group.last_stage):
            row = decode_row(group, stages[place].clock, place, batch)
            intercept_s += values[row]
            slope_s += values[row + 1]
        values[group.first_iteration + 2 * (batch - 1)] = intercept_s
        values[group.first_iteration + 2 * (batch - 1) + 1] = slope_s


@compiled
def decode_row(group: Row, clock: int, place: int, batch: int) -> int:
    """Where a stage's decode iteration stands in the tables."""
    row = ((place - group.first_stage) * group.num_clocks + clock) * group.max_batch + batch - 1
    return int(group.first_decode + 4 * row)


@compiled
def decode_s(group: Row, values: Floats, batch: int, context: float, num_iterations: int) -> float:
    """Time of successive decode iterations of ``batch`` sequences that at first attend to ``context`` tokens.

    Iteration i takes a + k · (context + i · batch): n of them a sum that is quadratic in n.
    """
    intercept_s = values[group.first_iteration + 2 * (batch - 1)]
    slope_s = values[group.first_iteration + 2 * (batch - 1) + 1]
    pairs = 0.5 * num_iterations * (num_iterations - 1.0)
    return float(num_iterations * (intercept_s + slope_s * context) + slope_s * batch * pairs)


@compiled
def iterations_until(
    group: Row, values: Floats, batch: int, context: float, period_s: float, most: int
) -> int:
    """The fewest decode iterations, 1 to ``most``, that take at least ``period_s``."""
    if decode_s(group, values, batch, context, most) < period_s:
        return most
    intercept_s = values[group.first_iteration + 2 * (batch - 1)]
    slope_s = values[group.first_iteration + 2 * (batch - 1) + 1]
    square = 0.5 * slope_s * batch
    linear = intercept_s + slope_s * context - square
    # the root of square · n² + linear · n = period, in the form that does not cancel
    root = 2.0 * period_s / (linear + np.sqrt(linear * linear + 4.0 * square * period_s))
    count = min(max(int(np.ceil(root)), 1), most)
    while count > 1 and decode_s(group, values, batch, context, count - 1) >= period_s:
        count -= 1
    while count < most and decode_s(group, values, batch, context, count) < period_s:
        count += 1
    return count


@compiled
def settle_decode(
    settings: Row,
    group: Row,
    stages: Rows,
    values: Floats,
    samples_j: Floats,
    num_iterations: int,
    end_s: float,
) -> None:
    """Account for the energy of successive decode iterations that end at ``end_s``."""
    batch = group.num_running
    attended = num_iterations * group.context + 0.5 * batch * num_iterations * (num_iterations - 1.0)
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        row = decode_row(group, stage.clock, place, batch)
        busy_s = num_iterations * values[row] + attended * values[row + 1]
        busy_j = num_iterations * values[row + 2] + attended * values[row + 3]
        _settle_busy(settings, stage, values, samples_j, busy_s, busy_j, end_s)


@compiled
def _settle_busy(
    settings: Row, stage: Row, values: Floats, samples_j: Floats, busy_s: float, busy_j: float, end_s: float
) -> None:
    """Account for a stage that computes for ``busy_s`` between its last account and ``end_s``."""
    begin_s = stage.settled_s
    if end_s <= begin_s:
        return
    share = min(busy_s / (end_s - begin_s), 1.0)  # rounding may carry it past 1
    deposit(settings, stage, samples_j, BUSY, begin_s, end_s, busy_j / (end_s - begin_s), share)
    loaded_w = values[stage.first_loaded + stage.clock]
    deposit(settings, stage, samples_j, LOADED, begin_s, end_s, loaded_w * (1.0 - share), 1.0 - share)
    stage.settled_s = end_s


@compiled
def _knot(group: Row, values: Floats, tokens: float) -> tuple[int, float]:
    """The knot at or below ``tokens`` and how far on to the next it is; flat below the first."""
    low, high = 0, group.num_knots - 1
    if high == 0 or tokens <= values[group.first_knot]:
        return 0, 0.0
    while high - low > 1:
        middle = (low + high) // 2
        if values[group.first_knot + middle] <= tokens:
            low = middle
        else:
            high = middle
    below, above = values[group.first_knot + low], values[group.first_knot + high]
    return low, (tokens - below) / (above - below)


@compiled
def _at_knot(values: Floats, row: int, stride: int, weight: float) -> float:
    """Between a table's entry at a knot and its entry at the next."""
    if weight == 0.0:
        return float(values[row])
    return float(values[row] * (1.0 - weight) + values[row + stride] * weight)


@compiled
def prefill_stage(group: Row, clock: int, place: int, values: Floats, tokens: float, column: int) -> float:
    """A stage's part of a prefill: base (0) or extra (1) of time, base (2) or extra (3) of energy."""
    knot, weight = _knot(group, values, tokens)
    row = ((place - group.first_stage) * group.num_clocks + clock) * group.num_knots + knot
    return _at_knot(values, group.first_prefill + 4 * row + column, 4, weight)


@compiled
def prefill_transfer_s(group: Row, values: Floats, tokens: float) -> float:
    """Time of the transfers of a prefill."""
    knot, weight = _knot(group, values, tokens)
    return _at_knot(values, group.first_knot_transfer + knot, 1, weight)


@compiled
def prefill_alone_s(group: Row, stages: Rows, values: Floats, tokens: float) -> float:
    """Time of the prefill of a single prompt."""
    seconds = prefill_transfer_s(group, values, tokens)
    for place in range(group.first_stage, group.last_stage):
        seconds += prefill_stage(group, stages[place].clock, place, values, tokens, 0)
        seconds += prefill_stage(group, stages[place].clock, place, values, tokens, 1)
    return seconds


@compiled
def run_prefill(
    settings: Row,
    group: Row,
    stages: Rows,
    requests: Rows,
    running: Rows,
    values: Floats,
    samples_j: Floats,
    num_before: int,
    tokens: float,
    now_s: float,
) -> float:
    """Prefill the sequences admitted after the first ``num_before``, with ``tokens`` in all; returns its end.

    A stage computes while the others wait.
    """
    total_s = prefill_transfer_s(group, values, tokens)
    for place in range(group.first_stage, group.last_stage):
        total_s += _prefill_sum(group, stages[place], place, requests, running, values, num_before, tokens, 0)
    end_s = now_s + total_s
    for place in range(group.first_stage, group.last_stage):
        busy_s = _prefill_sum(group, stages[place], place, requests, running, values, num_before, tokens, 0)
        busy_j = _prefill_sum(group, stages[place], place, requests, running, values, num_before, tokens, 2)
        _settle_busy(settings, stages[place], values, samples_j, busy_s, busy_j, end_s)
    return end_s


@compiled
def _prefill_sum(
    group: Row,
    stage: Row,
    place: int,
    requests: Rows,
    running: Rows,
    values: Floats,
    num_before: int,
    tokens: float,
    column: int,
) -> float:
    """Base of all tokens and extra of each prompt, of time (column 0) or energy (2)."""
    total = prefill_stage(group, stage.clock, place, values, tokens, column)
    for slot in range(num_before, group.num_running):
        request = requests[running[group.first_running + slot]]
        own = float(request.input_tokens + request.generated)
        total += prefill_stage(group, stage.clock, place, values, own, column + 1)
    return total
