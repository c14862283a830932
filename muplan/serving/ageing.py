"""Bounded waiting under the orders by length: a request that has waited too long goes first; compiled.

The limit is ``wait_cap`` times the wait that 1 % of the requests would exceed first come, first served.
No scheduler sees that wait, but it can tell it: in the order of arrival a request would begin when the
group has begun as much work as waited when it came. So each group keeps a *virtual queue*, its requests in
the order of arrival, and moves on in it with the work that is begun, in whatever order. A request's wait is
foretold when it comes, from the work that it meets and from how long such work took lately; the foretold
waits are counted in bins, and the limit is read from these.

The bound is for 99 % of the requests, so not all that are due need go first: as long as few have waited
beyond the limit, one more may, up to `LAST_MULTIPLE` times the limit.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled
from muplan.serving.layout import Floats, Row, Rows

NUM_BINS = 1200
"""Bins of waits: the first up to `LEAST_WAIT_S`, each further one `BIN_WIDTH` of the logarithm wide."""
LEAST_WAIT_S, BIN_WIDTH = 0.001, 0.02

BEYOND = 0.01
"""Share of the waits, first come, first served, that are longer than the wait the limit is a multiple of."""
SPARED = 0.009
"""Share of the requests that may wait beyond the limit: somewhat less than `BEYOND`."""
LAST_MULTIPLE = 5.0
"""No request is let wait longer than this multiple of the limit."""
MEMORY = 100_000.0
"""When so many waits are counted, the counts are halved, so that they follow the demand."""
PACE_MEMORY = 0.99
"""How much of the pace of work is kept at each request that passes the virtual queue."""


@compiled
def bin_of(wait_s: float) -> int:
    """The bin of a wait."""
    if wait_s <= LEAST_WAIT_S:
        return 0
    return min(int(np.log(wait_s / LEAST_WAIT_S) / BIN_WIDTH) + 1, NUM_BINS - 1)


@compiled
def bin_wait_s(number: int) -> float:
    """The wait that stands for a bin, seconds: its (geometric) middle; none for the first."""
    return LEAST_WAIT_S * np.exp(BIN_WIDTH * (number - 0.5)) if number > 0 else 0.0


@compiled
def note_queued(wait_cap: float, group: Row, values: Floats, virtual: Rows, place: int) -> None:
    """A request comes: foretell its wait first come, first served, and set the group's limit by it."""
    request = virtual[place]
    if group.num_waiting == 0:  # so nothing does in the virtual queue
        group.oldest, group.waiting_work = -1, 0.0
    request.met_work, request.after = group.waiting_work, -1
    if group.oldest < 0:
        group.oldest, group.ahead_work = place, group.waiting_work
    else:
        virtual[group.newest].after = place
    group.newest = place
    foretold_s = 0.0
    if group.paced_work > 0.0:
        foretold_s = group.waiting_work * group.paced_s / group.paced_work
    group.waiting_work += request.weight
    _count_foretold(wait_cap, group, values, bin_of(foretold_s))


@compiled
def note_begun(group: Row, values: Floats, virtual: Rows, place: int, now_s: float) -> None:
    """A request leaves the queue for the first time: the virtual queue moves on by its work."""
    while group.oldest >= 0 and group.ahead_work <= 1e-6:  # no work is so small; rounding errors are
        first = virtual[group.oldest]
        begun = first.met_work - group.ahead_work  # since it came; a little more than what it met
        group.paced_s = PACE_MEMORY * group.paced_s + begun * (now_s - first.queued_s)
        group.paced_work = PACE_MEMORY * group.paced_work + begun * begun
        group.ahead_work += first.weight
        group.oldest = first.after
    request = virtual[place]
    group.waiting_work -= request.weight
    group.ahead_work -= request.weight
    number = bin_of(now_s - request.queued_s)
    values[group.first_waits + number] += 1.0
    group.num_waits += 1.0
    if number > group.limit_bin:
        group.num_beyond += 1.0


@compiled
def note_returned(group: Row, values: Floats, virtual: Rows, place: int, begun_s: float) -> None:
    """A request that began is queued again, its pass lost: take back what `note_begun` noted of it.

    The virtual queue has moved on with what was begun; what has returned is work ahead of it again.
    """
    request = virtual[place]
    group.waiting_work += request.weight
    group.ahead_work += request.weight
    number = bin_of(begun_s - request.queued_s)
    values[group.first_waits + number] -= 1.0
    group.num_waits -= 1.0
    if number > group.limit_bin:
        group.num_beyond -= 1.0


@compiled
def may_wait_on(group: Row) -> bool:
    """Whether one more request that is due may go on waiting: few have waited beyond the limit, or do."""
    beyond = group.num_beyond + group.num_spared
    return bool(beyond + 1.0 <= SPARED * (group.num_waits + group.num_waiting))


@compiled
def _count_foretold(wait_cap: float, group: Row, values: Floats, number: int) -> None:
    """Count a foretold wait; the limit follows the bin that `BEYOND` of them lie above."""
    first = group.first_predicted
    values[first + number] += 1.0
    group.num_predicted += 1.0
    if number > group.reference_bin:
        group.num_above += 1.0
    if group.num_predicted >= MEMORY:
        _halve(group, values)
    reference = group.reference_bin
    while group.num_above > BEYOND * group.num_predicted and group.reference_bin < NUM_BINS - 1:
        group.reference_bin += 1
        group.num_above -= values[first + group.reference_bin]
    while (
        group.reference_bin > 0
        and group.num_above + values[first + group.reference_bin] <= BEYOND * group.num_predicted
    ):
        group.num_above += values[first + group.reference_bin]
        group.reference_bin -= 1
    if group.reference_bin != reference:
        _set_limit(group, values, wait_cap * bin_wait_s(group.reference_bin))


@compiled
def _set_limit(group: Row, values: Floats, wait_limit_s: float) -> None:
    """Set the limit, and count anew how many waits were beyond it, and foretold to be."""
    group.wait_limit_s = wait_limit_s
    limit_bin = bin_of(wait_limit_s)
    while group.limit_bin < limit_bin:
        group.limit_bin += 1
        group.num_beyond -= values[group.first_waits + group.limit_bin]
    while group.limit_bin > limit_bin:
        group.num_beyond += values[group.first_waits + group.limit_bin]
        group.limit_bin -= 1


@compiled
def _halve(group: Row, values: Floats) -> None:
    """Halve all counts."""
    for number in range(NUM_BINS):
        values[group.first_predicted + number] *= 0.5
        values[group.first_waits + number] *= 0.5
    group.num_predicted *= 0.5
    group.num_above *= 0.5
    group.num_waits *= 0.5
    group.num_beyond *= 0.5
