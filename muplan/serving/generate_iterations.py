"""Iterations of generate groups: their times, their energy; compiled."""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled
from muplan.serving.energy import BUSY, LOADED, deposit, deposit_in_changes
from muplan.serving.layout import PLACE, Floats, Integers, Row, Rows


@compiled
def tabulate_iterations(group: Row, stages: Rows, values: Floats) -> None:
    """Fill what follows from the present clocks.

    By batch the coefficients a and k of a decode iteration's time, and the time of a mean reply; by knot the
    time of a prefill by itself; and the work of a mean request at the pace of a full batch.
    """
    context = group.mean_input + group.mean_output / 2.0
    for batch in range(1, group.max_batch + 1):
        intercept_s, slope_s = values[group.first_transfer + batch - 1], 0.0
        for place in range(group.first_stage, group.last_stage):
            row = decode_row(group, stages[place].clock, place, batch)
            intercept_s += values[row]
            slope_s += values[row + 1]
        values[group.first_iteration + 2 * (batch - 1)] = intercept_s
        values[group.first_iteration + 2 * (batch - 1) + 1] = slope_s
        reply_s = group.mean_output * decode_s(group, values, batch, batch * context, 1)
        values[group.first_reply + batch - 1] = reply_s
    for knot in range(group.num_knots):
        alone_s = values[group.first_knot_transfer + knot]
        for place in range(group.first_stage, group.last_stage):
            row = group.first_prefill + 4 * (
                _clock_row(group, stages[place].clock, place) * group.num_knots + knot
            )
            alone_s += values[row] + values[row + 1]
        values[group.first_alone + knot] = alone_s
    full_s = values[group.first_reply + group.max_batch - 1]
    group.work_s = full_s / group.max_batch + prefill_alone_s(group, values, group.mean_input)


@compiled
def prompt_weight(group: Row, values: Floats) -> float:
    """Work of a prompt token, in output tokens of a full batch: of a mean prompt, at the first clocks."""
    context = group.mean_input + group.mean_output / 2.0
    token_s = decode_s(group, values, group.max_batch, group.max_batch * context, 1) / group.max_batch
    return float(prefill_alone_s(group, values, group.mean_input) / group.mean_input / token_s)


@compiled
def _clock_row(group: Row, clock: int, place: int) -> int:
    """Where a stage's clock stands in tables [stage][clock]."""
    return int((place - group.first_stage) * group.num_clocks + clock)


@compiled
def decode_row(group: Row, clock: int, place: int, batch: int) -> int:
    """Where a stage's decode iteration stands in the tables."""
    row = _clock_row(group, clock, place) * group.max_batch + batch - 1
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
def foretell_decode(group: Row, stages: Rows, values: Floats, num_iterations: int) -> None:
    """Note what successive decode iterations will take of each stage."""
    batch = group.num_running
    attended = num_iterations * group.context + 0.5 * batch * num_iterations * (num_iterations - 1.0)
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        row = decode_row(group, stage.clock, place, batch)
        stage.pass_s = num_iterations * values[row] + attended * values[row + 1]
        stage.pass_j = num_iterations * values[row + 2] + attended * values[row + 3]


@compiled
def settle_iteration(
    settings: Row, group: Row, stages: Rows, values: Floats, samples_j: Floats, end_s: float
) -> None:
    """Account for the energy of what was noted of each stage, up to its end; stages wait for each other."""
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        loaded_w = values[stage.first_loaded + stage.clock]
        settle_busy(settings, stage, samples_j, stage.pass_s, stage.pass_j, loaded_w, end_s)


@compiled
def settle_busy(
    settings: Row, stage: Row, samples_j: Floats, busy_s: float, busy_j: float, loaded_w: float, end_s: float
) -> None:
    """Account for a stage that computes for ``busy_s`` between its last account and ``end_s``."""
    begin_s = stage.settled_s
    if end_s <= begin_s:
        return
    share = min(busy_s / (end_s - begin_s), 1.0)  # rounding may carry it past 1
    deposit(settings, stage, samples_j, BUSY, begin_s, end_s, busy_j / (end_s - begin_s), share)
    if share < 1.0:
        deposit(settings, stage, samples_j, LOADED, begin_s, end_s, loaded_w * (1.0 - share), 1.0 - share)
    if settings.is_detailed:
        mean_w = busy_j / (end_s - begin_s) + loaded_w * (1.0 - share)
        deposit_in_changes(settings, stage, samples_j, begin_s, end_s, mean_w)
    stage.settled_s = end_s


@compiled
def knot_of(group: Row, values: Floats, tokens: float) -> tuple[int, float]:
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
def at_knot(values: Floats, row: int, stride: int, weight: float) -> float:
    """Between a table's entry at a knot and its entry at the next."""
    if weight == 0.0:
        return float(values[row])
    return float(values[row] * (1.0 - weight) + values[row + stride] * weight)


@compiled
def prefill_stage(group: Row, clock: int, place: int, values: Floats, tokens: float, column: int) -> float:
    """A stage's part of a prefill: base (0) or extra (1) of time, base (2) or extra (3) of energy."""
    knot, weight = knot_of(group, values, tokens)
    row = _clock_row(group, clock, place) * group.num_knots + knot
    return at_knot(values, group.first_prefill + 4 * row + column, 4, weight)


@compiled
def prefill_transfer_s(group: Row, values: Floats, tokens: float) -> float:
    """Time of the transfers of a prefill."""
    knot, weight = knot_of(group, values, tokens)
    return at_knot(values, group.first_knot_transfer + knot, 1, weight)


@compiled
def prefill_alone_s(group: Row, values: Floats, tokens: float) -> float:
    """Time of the prefill of a single prompt."""
    knot, weight = knot_of(group, values, tokens)
    return at_knot(values, group.first_alone + knot, 1, weight)


@compiled
def foretell_prefill(
    group: Row, stages: Rows, requests: Rows, running: Integers, values: Floats, tokens: float
) -> float:
    """Note what a prefill of the sequences that do not decode yet will take of each stage.

    They have ``tokens`` in all; returns how long it takes. A stage computes while the others wait.
    """
    total_s = prefill_transfer_s(group, values, tokens)
    first, last = group.first_running + group.num_decoding, group.first_running + group.num_running
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        stage.pass_s = stage.pass_j = 0.0
        _add_prefill(group, stage, place, values, tokens, 0)
        for slot in range(first, last):
            request = requests[running[PLACE, slot]]
            _add_prefill(group, stage, place, values, float(request.input_tokens + request.generated), 1)
        total_s += stage.pass_s
    return total_s


@compiled
def _add_prefill(group: Row, stage: Row, place: int, values: Floats, tokens: float, column: int) -> None:
    """Add the base of all tokens (column 0) or the extra of a prompt (1) to a stage's pass."""
    knot, weight = knot_of(group, values, tokens)
    row = group.first_prefill + 4 * (_clock_row(group, stage.clock, place) * group.num_knots + knot) + column
    stage.pass_s += at_knot(values, row, 4, weight)
    stage.pass_j += at_knot(values, row + 2, 4, weight)


@compiled
def chunk_part(request: Row, left: int) -> int:
    """How many of a chunk's ``left`` tokens are a request's that is being prefilled."""
    return int(min(left, request.input_tokens + request.generated - request.prefilled))


@compiled
def foretell_chunk(
    settings: Row, group: Row, stages: Rows, requests: Rows, running: Integers, values: Floats
) -> float:
    """Note what an iteration that prefills the next chunk, and decodes what decodes, will take of each stage.

    All their tokens pass the layers together, as a prefill of so many tokens does, though in no less than a
    decode iteration; the decoding sequences attend to their context besides. Returns how long it takes.
    """
    batch, tokens = group.num_decoding, min(settings.prefill_chunk_tokens, group.pending_tokens)
    total_s = prefill_transfer_s(group, values, float(tokens + batch))
    if batch > 0:
        total_s = max(total_s, values[group.first_transfer + batch - 1])
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        stage.pass_s = _chunk_sum(group, stage, place, requests, running, values, tokens, 0)
        stage.pass_j = _chunk_sum(group, stage, place, requests, running, values, tokens, 2)
        total_s += stage.pass_s
    return total_s


@compiled
def _chunk_sum(
    group: Row,
    stage: Row,
    place: int,
    requests: Rows,
    running: Integers,
    values: Floats,
    tokens: int,
    column: int,
) -> float:
    """A stage's part of an iteration with a chunk, of time (column 0) or energy (2).

    Base of all tokens, what the chunks add to their prompts' extra, and attention of what decodes.
    """
    batch = group.num_decoding
    total = prefill_stage(group, stage.clock, place, values, float(tokens + batch), column)
    if batch > 0:
        row = decode_row(group, stage.clock, place, batch) + column
        attended = float(group.context - group.prefill_context)
        total = max(total, values[row]) + values[row + 1] * attended
    left = tokens
    for slot in range(batch, group.num_running):
        request = requests[running[PLACE, group.first_running + slot]]
        part = chunk_part(request, left)
        begin, end = float(request.prefilled), float(request.prefilled + part)
        total += prefill_stage(group, stage.clock, place, values, end, column + 1)
        total -= prefill_stage(group, stage.clock, place, values, begin, column + 1)
        left -= part
    return total
