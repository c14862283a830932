"""A sample of random workloads, planned and verified; `python -m validation.random_plans` takes 300."""

from __future__ import annotations

from functools import cache

import pytest

from validation.drawn import draw_workload
from validation.random_plans import Checked, kinds_of, plan_and_verify, solver_of

SEEDS = range(15)


@cache
def checked(seed: int) -> Checked:
    """What became of a workload."""
    return plan_and_verify(draw_workload(seed), solver_of(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_verify_accepts_the_plan_of_a_random_workload(seed: int) -> None:
    """If it fails, planner and verify read a workload differently, or a plan claims what does not hold."""
    assert checked(seed).violations == ()


def test_most_are_planned_and_of_many_kinds() -> None:
    """If it fails, the sample above proves little: refusals are not plans."""
    planned = [checked(seed).workload for seed in SEEDS if checked(seed).is_planned]
    assert len(planned) >= 8
    kinds = set().union(*(kinds_of(workload) for workload in planned))
    assert {"several pools", "batching", "generate services", "cv 4 and more"} <= kinds
