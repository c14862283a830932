"""Bounded waiting by itself: the foretold waits, the limit read from them, and who may wait beyond it.

If these fail, long requests starve, or the order by length gains nothing. The kernels' use of it is held
against plain Python in test_serving_forward.py and test_serving_generate.py.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.serving import ageing
from muplan.serving.layout import GROUP, VIRTUAL_REQUEST, Floats, Rows
from tests.reference_ageing import Ageing

CAP = 1.5


def empty_group(num_requests: int) -> tuple[Rows, Floats, Rows]:
    """A group's row, the counts it points into, and requests of unit work."""
    groups, requests = np.zeros(1, dtype=GROUP), np.zeros(num_requests, dtype=VIRTUAL_REQUEST)
    requests["weight"] = 1.0
    groups["first_waits"], groups["oldest"], groups["newest"] = ageing.NUM_BINS, -1, -1
    return groups, np.zeros(2 * ageing.NUM_BINS), requests


def come(groups: Rows, values: Floats, requests: Rows, place: int, at_s: float) -> None:
    requests[place]["queued_s"] = at_s
    ageing.note_queued(CAP, groups[0], values, requests, place)
    groups["num_waiting"] += 1


def begin(groups: Rows, values: Floats, requests: Rows, place: int, at_s: float) -> None:
    groups["num_waiting"] -= 1
    ageing.note_begun(groups[0], values, requests, place, at_s)


@settings(deadline=None)
@given(st.floats(1e-6, 1e6))
def test_a_bin_stands_for_its_waits_within_one_per_cent(wait_s: float) -> None:
    number = ageing.bin_of(wait_s)
    if wait_s > ageing.LEAST_WAIT_S:
        assert ageing.bin_wait_s(number) == pytest.approx(wait_s, rel=0.0101)
    else:
        assert ageing.bin_wait_s(number) == 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_limit_and_leave_equal_plain_python(seed: int) -> None:
    """Any sequence of arrivals and beginnings gives the reference's limit."""
    rng, count = np.random.default_rng(seed), 300
    groups, values, requests = empty_group(count)
    requests["weight"] = rng.integers(1, 9, count)
    plain, next_one, now_s = Ageing(CAP), 0, 0.0
    waiting: list[int] = []
    while next_one < count:
        now_s += rng.exponential()
        if waiting and rng.random() < 0.45:
            place = waiting.pop(int(rng.integers(len(waiting))))
            begin(groups, values, requests, place, now_s)
            plain.begin(place, now_s)
        else:
            come(groups, values, requests, next_one, now_s)
            plain.come(next_one, now_s, float(requests[next_one]["weight"]))
            waiting.append(next_one)
            next_one += 1
        assert groups["wait_limit_s"][0] == pytest.approx(plain.limit_s(), rel=1e-12)
    beyond = sum(one > ageing.bin_of(plain.limit_s()) for one in plain.waits)
    assert groups["num_beyond"][0] == pytest.approx(beyond)
    assert groups["num_waits"][0] == len(plain.waits)


def test_the_wait_of_a_steady_queue_is_foretold() -> None:
    """Ten always wait, each served in 2 s, in the order of arrival or the reverse: some 20 s either way."""
    for newest_first in (False, True):
        groups, values, requests = empty_group(2500)
        waiting = list(range(10))
        for place in waiting:
            come(groups, values, requests, place, 0.0)
        for step in range(1, 2480):
            place = waiting.pop(-1 if newest_first else 0)
            begin(groups, values, requests, place, 2.0 * step)
            come(groups, values, requests, 9 + step, 2.0 * step + 0.01)
            waiting.append(9 + step)
        foretold_s = groups["waiting_work"][0] * groups["paced_s"][0] / groups["paced_work"][0]
        assert foretold_s == pytest.approx(20.0, rel=0.15)
        assert groups["wait_limit_s"][0] == pytest.approx(CAP * 20.0, rel=0.2)


def test_few_may_wait_on() -> None:
    """Of a thousand requests nine; each that has waited or waits beyond the limit counts."""
    groups, values, requests = empty_group(1)
    groups["num_waits"], groups["num_waiting"] = 900.0, 100
    let = 0
    while ageing.may_wait_on(groups[0]):
        groups["num_spared"] += 1
        let += 1
    assert let == math.floor(ageing.SPARED * 1000)
    groups["num_spared"] -= 1
    assert ageing.may_wait_on(groups[0])
    begin(groups, values, requests, 0, 1e9)
    assert not ageing.may_wait_on(groups[0])


def test_old_waits_are_forgotten() -> None:
    """After twice as many short waits as it remembers, the limit follows them."""
    groups, values, requests = empty_group(2)
    requests["weight"] = 0.0
    groups["paced_s"], groups["paced_work"], groups["num_waiting"] = 1.0, 1.0, 1
    for wait_s in (100.0, 1.0):
        for _ in range(4 * int(ageing.MEMORY)):
            groups["oldest"], groups["waiting_work"] = -1, wait_s
            ageing.note_queued(CAP, groups[0], values, requests, 0)
        assert groups["wait_limit_s"][0] == pytest.approx(CAP * wait_s, rel=0.0101)
    assert groups["num_predicted"][0] <= ageing.MEMORY
    assert (values >= 0.0).all()
