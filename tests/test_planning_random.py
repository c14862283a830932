"""A sample of random workloads, planned and verified; `python -m validation.random_plans` takes 300."""

from __future__ import annotations

import pytest

from validation.drawn import draw_workload
from validation.random_plans import kinds_of, plan_and_verify, solver_of

SEEDS = (4, 7, 9, 13)
"""Workloads that have a plan."""


@pytest.mark.parametrize("seed", SEEDS)
def test_verify_accepts_the_plan_of_a_random_workload(seed: int) -> None:
    """If it fails, planner and verify read a workload differently, or a plan claims what does not hold."""
    checked = plan_and_verify(draw_workload(seed), solver_of(seed))
    assert checked.is_planned
    assert checked.violations == ()


def test_they_are_of_many_kinds() -> None:
    """If it fails, the sample above proves little."""
    kinds = set().union(*(kinds_of(draw_workload(seed)) for seed in SEEDS))
    wanted = {"several pools", "batching", "generate services", "cv 4 and more", "limits on placement"}
    assert wanted | {"order edf", "order sjf", "routing round-robin"} <= kinds
