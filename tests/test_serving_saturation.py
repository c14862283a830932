"""Whether a queue keeps up: verdicts on queues whose state is known.

If these fail, an overloaded fleet is called stable, or the reverse.
"""

from __future__ import annotations

import numpy as np
import pytest

from muplan.serving.saturation import Saturation, saturation_of

FloatArray = np.ndarray[tuple[int], np.dtype[np.float64]]


def starts(arrival_s: FloatArray, service_s: float) -> FloatArray:
    """First come, first served by one server (Lindley)."""
    began, free_s = np.empty(len(arrival_s)), 0.0
    for request, arrived_s in enumerate(arrival_s):
        began[request] = max(arrived_s, free_s)
        free_s = began[request] + service_s
    return began


def verdicts(load: float, num_seeds: int = 40) -> list[Saturation]:
    """Of M/D/1 queues with service times of one second, over 20,000 of them."""
    found = []
    for seed in range(num_seeds):
        rng = np.random.default_rng(seed)
        arrival_s = np.sort(rng.uniform(0, 20_000, rng.poisson(20_000 * load)))
        found.append(saturation_of(arrival_s, starts(arrival_s, 1.0), begin_s=1000, end_s=20_000))
    return found


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_stable_queues_are_stable(load: float) -> None:
    """Chance makes few of them look as if they grew."""
    assert verdicts(load).count(Saturation.STABLE) >= 39


@pytest.mark.parametrize("load", [1.05, 1.2, 2.0])
def test_overload_is_seen(load: float) -> None:
    assert set(verdicts(load)) == {Saturation.OVERLOADED}


def test_a_standing_queue_is_a_backlog() -> None:
    """Twenty come at once, then one a second to a server of one second: the queue stays as it is."""
    arrival_s = np.concatenate([np.zeros(20), np.arange(1.0, 5000.0)])
    found = saturation_of(arrival_s, starts(arrival_s, 1.0), begin_s=100, end_s=5000)
    assert found is Saturation.BACKLOGGED


def test_a_backlog_that_drains_is_no_overload() -> None:
    """Many at first, then few: the queue falls until it is empty."""
    arrival_s = np.concatenate([np.zeros(1000), np.arange(1.0, 5000.0, 4.0)])
    found = saturation_of(arrival_s, starts(arrival_s, 1.0), begin_s=0, end_s=5000)
    assert found is Saturation.STABLE


def test_nobody_is_a_stable_queue() -> None:
    nobody = np.empty(0)
    assert saturation_of(nobody, nobody, begin_s=0.0, end_s=1.0) is Saturation.STABLE


def test_a_few_that_never_wait() -> None:
    """One request in the middle: before it and after it nobody waits."""
    one = np.array([5.0])
    assert saturation_of(one, one, begin_s=0.0, end_s=10.0) is Saturation.STABLE
