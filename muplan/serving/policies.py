"""Serving policies: which request is next, which is late, when a batch is ready, who is let in, which clock.

Each is a pure function of numbers, compiled, and written once: the simulator's kernels call them,
and a real-time executor calls the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muplan.serving.compiled import allocating, compiled
from muplan.workload import QueueOrder, Rejection, Routing

FCFS, SJF, SSJF, EDF, SRPT = 0, 1, 2, 3, 4
QUEUE_ORDER_CODE = {
    QueueOrder.FCFS: FCFS,
    QueueOrder.SJF: SJF,
    QueueOrder.SSJF: SSJF,
    QueueOrder.EDF: EDF,
    QueueOrder.SRPT: SRPT,
}

SHORTEST_EXPECTED_COMPLETION, ROUND_ROBIN, LEAST_LAST_STAGE, POWER_OF_TWO = 0, 1, 2, 3
ROUTING_CODE = {
    Routing.SHORTEST_EXPECTED_COMPLETION: SHORTEST_EXPECTED_COMPLETION,
    Routing.ROUND_ROBIN: ROUND_ROBIN,
    Routing.LEAST_LAST_STAGE: LEAST_LAST_STAGE,
    Routing.POWER_OF_TWO: POWER_OF_TWO,
}

ADMIT_ALL, AT_ARRIVAL, AT_DISPATCH = 0, 1, 2
REJECTION_CODE = {
    Rejection.NONE: ADMIT_ALL,
    Rejection.AT_ARRIVAL: AT_ARRIVAL,
    Rejection.AT_DISPATCH: AT_DISPATCH,
}

NO_PROMISES, KEPT, FORETELLING = 0, 1, 2
"""What the stages of forward groups promise: nothing; an end to all that waits, which routing looks at; or
one that also tells of an arriving request when it will be complete."""

LENGTH_ORDERS = (QueueOrder.SJF, QueueOrder.SSJF, QueueOrder.SRPT)
"""Orders that look at the length of requests, so that long ones could starve."""

PREDICTED_ORDERS = (QueueOrder.SSJF, QueueOrder.SRPT)
"""Orders that see predicted lengths of replies."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def plain_order(order: QueueOrder, limits_s: Sequence[float]) -> QueueOrder:
    """The simplest order that is the same: deadlines of equal limits come in the order of arrival."""
    return QueueOrder.FCFS if order is QueueOrder.EDF and len(set(limits_s)) == 1 else order


@compiled
def is_due(now_s: float, queued_s: float, wait_limit_s: float) -> bool:
    """Whether a request has waited so long that it goes before all that are not due.

    `muplan.serving.ageing` makes the limit.
    """
    return now_s - queued_s > wait_limit_s


@compiled
def queue_key(order: int, queued_s: float, work: float, limit_s: float) -> float:
    """Priority of a waiting request, the least first.

    Parameters
    ----------
    order
        ``FCFS``, ``SJF``, ``SSJF``, ``EDF`` or ``SRPT``.
    queued_s
        When the request was queued, seconds.
    work
        What the scheduler knows of the request's length: true under SJF, predicted under SSJF; under SRPT
        what is left of the predicted length.
    limit_s
        Its latency limit (generate: its TTFT limit), which makes its deadline under EDF.
    """
    if order == EDF:
        return queued_s + limit_s
    return queued_s if order == FCFS else work


@compiled
def remaining_work(order: int, work: float, generated: int) -> float:
    """Output tokens that the order looks at: the known length, under SRPT less what is generated."""
    return max(work - generated, 0.0) if order == SRPT else work


@compiled
def is_worth_preempting(remaining: float, redo: float, waiting: float, gain: float) -> bool:
    """Whether a running sequence gives way to a waiting one, by their remaining work in output tokens.

    Only where it needs more than ``gain`` times what the other needs and what is lost: ``redo``, the work
    of computing its tokens anew.
    """
    return remaining > gain * (waiting + redo)


@compiled
def is_late(arrival_s: float, completion_s: float, limit_s: float) -> bool:
    """Whether a request that ends at ``completion_s`` misses its limit."""
    return completion_s - arrival_s > limit_s


@compiled
def batch_ready_s(
    num_waiting: int, max_batch: int, full_since_s: float, oldest_s: float, timeout_s: float
) -> float:
    """When the waiting requests of one service may leave as a batch, seconds.

    As soon as there are ``max_batch`` of them, or the oldest has waited ``timeout_s``; with a
    timeout of zero, at once. The rule is the same for every queue order.
    """
    if num_waiting >= max_batch:
        return min(full_since_s, oldest_s + timeout_s)
    return oldest_s + timeout_s


@compiled
def is_admitted(sequence: int, share: float) -> bool:
    """Whether the ``sequence``-th request of a service is let in when only ``share`` of them is.

    Spread as evenly as possible: among any n successive requests ``share`` · n are let in, give or
    take one.
    """
    return bool(np.floor((sequence + 1) * share + 1e-9) > np.floor(sequence * share + 1e-9))


@allocating
def admitted(service: Integers, shares: Floats) -> NDArray[np.bool_]:
    """Which requests are let in: `is_admitted` for each, every service counted by itself."""
    seen = np.zeros(len(shares), dtype=np.int64)
    let_in = np.zeros(len(service), dtype=np.bool_)
    for request in range(len(service)):
        number = service[request]
        let_in[request] = is_admitted(seen[number], shares[number])
        seen[number] += 1
    return let_in


@compiled
def clock_move(num_completed: int, num_within: int, target: float, hysteresis: float) -> int:
    """What a window's attainment of one service asks of the clock: 1 up, −1 down, 0 leave it.

    Up when the attainment missed the target; down when it reached the target and the hysteresis
    above it (at most 1); a window without completions asks for nothing.
    """
    if num_completed == 0:
        return 0
    attainment = num_within / num_completed
    if attainment < target:
        return 1
    return -1 if attainment >= min(target + hysteresis, 1.0) else 0


@compiled
def moved_clock(
    clocks_mhz: Floats, index: int, floor: int, move: int, increase: float, decrease_mhz: float
) -> int:
    """Index of the clock that multiplicative increase, additive decrease (MIAD) leads to.

    Snapped to the ascending ``clocks_mhz``, away from the present clock, so that a move is at least
    one step; ``floor`` is the lowest index allowed, the end of the list the highest.
    """
    last = len(clocks_mhz) - 1
    if move > 0:
        wanted = clocks_mhz[index] * increase
        target = min(index + 1, last)
        while target < last and clocks_mhz[target] < wanted:
            target += 1
        return target
    if move < 0:
        wanted = clocks_mhz[index] - decrease_mhz
        target = max(index - 1, floor)
        while target > floor and clocks_mhz[target] > wanted:
            target -= 1
        return target
    return index
