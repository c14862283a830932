"""The serving policies by themselves. A real-time executor calls the same functions as the simulator.

If these fail, queues starve, batches wait for nothing, or clocks drift off the objective.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.serving import compiled as compilation
from muplan.serving.policies import (
    EDF,
    FCFS,
    SJF,
    SRPT,
    admitted,
    batch_ready_s,
    clock_move,
    is_admitted,
    is_due,
    is_worth_preempting,
    moved_clock,
    queue_key,
    remaining_work,
)

CLOCKS_MHZ = np.array([810.0, 945.0, 1080.0, 1200.0, 1305.0, 1410.0, 1530.0])


def test_queue_keys() -> None:
    assert queue_key(FCFS, 3.0, 99.0, 0.5) == 3.0
    assert queue_key(SJF, 3.0, 99.0, 0.5) == 99.0
    assert queue_key(EDF, 3.0, 99.0, 0.5) == 3.5


def test_a_request_is_due_beyond_the_limit() -> None:
    assert not is_due(10.0, 0.0, 10.0)
    assert is_due(10.1, 0.0, 10.0)
    assert not is_due(1e9, 0.0, math.inf)


def test_remaining_work_and_preemption() -> None:
    """SRPT looks at what is left; a reply gives way only for a clear gain, its recomputation counted."""
    assert remaining_work(SJF, 100.0, 40) == 100.0
    assert remaining_work(SRPT, 100.0, 40) == 60.0
    assert remaining_work(SRPT, 100.0, 140) == 0.0  # longer than predicted: it should end any time
    assert is_worth_preempting(61.0, 10.0, 20.0, 2.0)
    assert not is_worth_preempting(60.0, 10.0, 20.0, 2.0)


@pytest.mark.parametrize(
    ("num_waiting", "full_since_s", "timeout_s", "ready_s"),
    [
        (1, math.inf, 0.0, 5.0),  # no timeout: what is there may leave
        (1, math.inf, 0.5, 5.5),  # the oldest has waited long enough
        (4, 5.2, 0.5, 5.2),  # full before that
        (4, 5.9, 0.5, 5.5),
    ],
)
def test_batch_ready(num_waiting: int, full_since_s: float, timeout_s: float, ready_s: float) -> None:
    assert batch_ready_s(num_waiting, 4, full_since_s, 5.0, timeout_s) == ready_s


@settings(deadline=None)  # the first call compiles
@given(share=st.floats(0.0, 1.0), start=st.integers(0, 1000), length=st.integers(1, 200))
def test_admission_is_spread_evenly(share: float, start: int, length: int) -> None:
    """Of any run of requests the share is let in, give or take one."""
    let_in = sum(is_admitted(number, share) for number in range(start, start + length))
    assert abs(let_in - share * length) <= 1.0 + 1e-6


def test_admission_counts_each_service_by_itself() -> None:
    service = np.array([0, 0, 1, 0, 1, 0], dtype=np.int64)
    assert admitted(service, np.array([0.5, 1.0])).tolist() == [False, True, True, False, True, True]


@pytest.mark.parametrize(
    ("completed", "within", "move"),
    [(0, 0, 0), (1000, 989, 1), (1000, 990, 0), (1000, 994, 0), (1000, 995, -1), (10, 10, -1)],
)
def test_clock_move(completed: int, within: int, move: int) -> None:
    """Below the target up; down only from hysteresis above it; in between, or without evidence, nothing."""
    assert clock_move(completed, within, 0.99, 0.005) == move


def test_hysteresis_never_asks_for_more_than_all() -> None:
    assert clock_move(10, 10, 0.999, 0.005) == -1


@pytest.mark.parametrize(
    ("index", "move", "after"),
    [
        (0, 1, 945.0),  # 810 × 1.15 = 931.5
        (1, 1, 1200.0),  # 945 × 1.15 = 1,086.75
        (5, 1, 1530.0),  # 1,410 × 1.15 is above the ceiling
        (6, 1, 1530.0),
        (6, -1, 1410.0),  # at least a step
        (3, -1, 1080.0),
        (0, -1, 810.0),
        (4, 0, 1305.0),
    ],
)
def test_multiplicative_increase_additive_decrease(index: int, move: int, after: float) -> None:
    assert CLOCKS_MHZ[moved_clock(CLOCKS_MHZ, index, 0, move, 1.15, 30.0)] == after


def test_a_large_decrease_goes_down_to_the_clock_at_or_below_it() -> None:
    assert CLOCKS_MHZ[moved_clock(CLOCKS_MHZ, 6, 0, -1, 1.15, 250.0)] == 1200.0


def test_the_floor_holds() -> None:
    assert CLOCKS_MHZ[moved_clock(CLOCKS_MHZ, 6, 4, -1, 1.15, 400.0)] == 1305.0
    assert CLOCKS_MHZ[moved_clock(CLOCKS_MHZ, 4, 4, -1, 1.15, 30.0)] == 1305.0


def test_an_edited_policy_is_compiled_anew(tmp_path: Path) -> None:
    """The stamp of compiled code on disk covers every file of compiled functions, not the caller's alone."""
    source = tmp_path / "policies.py"
    source.write_text("@compiled\ndef f(): ...\n")
    (tmp_path / "metrics.py").write_text("plain = 1\n")
    before = compilation._sources_stamp.__wrapped__(tmp_path)
    (tmp_path / "metrics.py").write_text("plain = 2\n")
    assert compilation._sources_stamp.__wrapped__(tmp_path) == before
    source.write_text("@compiled\ndef f(): return 1\n")
    assert compilation._sources_stamp.__wrapped__(tmp_path) != before
