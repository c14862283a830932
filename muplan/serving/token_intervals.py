"""Times between successive tokens of replies (ITL), counted by length while they are simulated.

A reply of n tokens has n − 1 intervals. Most span an iteration, longer ones what stalls the batch as well:
prefills of others, or (after a preemption) waiting and being computed anew. They are counted in bins whose
bounds grow by a constant factor, as of DDSketch (Masson, Rim and Lee, VLDB 2019, §2), so that a quantile is
known to `ERROR`, relative. Iterations that follow one another grow evenly, and are counted in one step for
all of the batch. The mean is exact.
"""

from __future__ import annotations

import math

import numpy as np

from muplan.serving.compiled import compiled
from muplan.serving.generate_iterations import decode_s
from muplan.serving.layout import FINISH, PLACE, Floats, Integers, Row, Rows

ERROR = 0.0025
"""Relative error of a quantile, at most, of intervals from `SHORTEST_S` to `LONGEST_S`."""
SHORTEST_S, LONGEST_S = 1e-6, 1e5
_GROWTH = math.log((1.0 + ERROR) / (1.0 - ERROR))
"""Logarithm of the ratio of a bin's bounds."""
NUM_BINS = math.ceil(math.log(LONGEST_S / SHORTEST_S) / _GROWTH)
NUM_COLUMNS = NUM_BINS + 1
"""Counts by bin; the last column is the sum of all intervals, seconds."""


def quantiles_s(counts: Floats, probabilities: tuple[float, ...]) -> Floats:
    """Quantiles of the intervals of a service, by nearest rank, within `ERROR`; shape (probabilities,).

    Parameters
    ----------
    counts
        Of a service that has intervals; shape (columns,).
    """
    upto = np.cumsum(counts[:-1])
    ranks = np.maximum(np.ceil(np.asarray(probabilities) * upto[-1] - 1e-9), 1.0)
    bins = np.searchsorted(upto, ranks)
    return np.asarray(SHORTEST_S * np.exp(_GROWTH * bins) * (1.0 + ERROR))  # equally far from both bounds


@compiled
def _bin_of(interval_s: float) -> int:
    place = int(np.log(max(interval_s, SHORTEST_S) / SHORTEST_S) / _GROWTH)
    return int(min(place, NUM_BINS - 1))


@compiled
def note_tokens(
    settings: Row,
    group: Row,
    requests: Rows,
    running: Integers,
    values: Floats,
    account: Floats,
    num_before: int,
    num_iterations: int,
    begin_s: float,
) -> None:
    """Note the tokens of a group since ``begin_s``: of successive decode iterations, of prefills.

    Parameters
    ----------
    account
        As `open_account` makes it, with the time of each request's last token: NaN where not counted.
    num_before
        Sequences that decoded already; each has a token of every iteration. Those that decode from now on
        have one at the boundary.
    num_iterations
        Decode iterations; 0 for a prefill by itself.
    """
    row = settings.first_interval + NUM_COLUMNS * requests[running[PLACE, group.first_running]].service
    counts, token_s = account[row : row + NUM_COLUMNS], account[settings.first_token :]
    for slot in range(group.first_running + num_before, group.first_running + group.num_decoding):
        place = running[PLACE, slot]
        interval_s = group.boundary_s - token_s[place]
        if np.isnan(interval_s):
            continue
        if requests[place].generated > 1:  # computed anew
            _count_run(counts, interval_s, 0.0, 1, 1)
        token_s[place] = group.boundary_s
    if num_iterations > 0 and num_before > 0:
        _note_decoded(
            settings, group, requests, running, values, counts, token_s, num_before, num_iterations, begin_s
        )


@compiled
def _note_decoded(
    settings: Row,
    group: Row,
    requests: Rows,
    running: Integers,
    values: Floats,
    counts: Floats,
    token_s: Floats,
    batch: int,
    num_iterations: int,
    begin_s: float,
) -> None:
    """Note a token of each iteration for the sequences that decoded already.

    The padding of a dynamic batch, until its longest reply is complete, is no token.
    """
    first_s, next_s, step_s = group.boundary_s, 0.0, 0.0
    if num_iterations > 1:
        context = float(group.context - num_iterations * batch)
        first_s = begin_s + decode_s(group, values, batch, context, 1)
        next_s = decode_s(group, values, batch, context + batch, 1)
        step_s = values[group.first_iteration + 2 * (batch - 1) + 1] * batch
    longest = _longest(group, requests, running) if settings.is_dynamic else 0
    known_s, place, num_whole = -1.0, 0, 0  # neighbours mostly have the same interval
    for slot in range(group.first_running, group.first_running + batch):
        request, own = running[PLACE, slot], num_iterations
        interval_s = first_s - token_s[request]
        if settings.is_dynamic:
            left = requests[request].output_tokens - longest + running[FINISH, slot] - group.iteration
            own = min(left + num_iterations, num_iterations)
        if np.isnan(interval_s) or own <= 0:
            continue
        if interval_s != known_s:
            known_s, place = interval_s, _bin_of(interval_s)
        counts[place] += 1.0
        counts[NUM_BINS] += interval_s
        token_s[request] = group.boundary_s
        num_whole += own == num_iterations
        if own < num_iterations:
            _count_run(counts, next_s, step_s, own - 1, 1)
    _count_run(counts, next_s, step_s, num_iterations - 1, num_whole)


@compiled
def _longest(group: Row, requests: Rows, running: Integers) -> int:
    """Tokens of the longest reply of the batch."""
    longest = 0
    for slot in range(group.first_running, group.first_running + group.num_running):
        longest = max(longest, requests[running[PLACE, slot]].output_tokens)
    return longest


@compiled
def _count_run(counts: Floats, first_s: float, step_s: float, num_intervals: int, times: int) -> None:
    """Count intervals that grow evenly from ``first_s`` on, each of them so many times."""
    pairs = 0.5 * num_intervals * (num_intervals - 1.0)
    counts[NUM_BINS] += times * (num_intervals * first_s + step_s * pairs)
    done = 0
    while done < num_intervals and times > 0:
        place = _bin_of(first_s + done * step_s)
        below = num_intervals
        if step_s > 0.0 and place < NUM_BINS - 1:
            bound_s = SHORTEST_S * np.exp(_GROWTH * (place + 1))
            below = min(max(int(np.ceil((bound_s - first_s) / step_s)), done + 1), num_intervals)
        counts[place] += times * (below - done)
        done = below
