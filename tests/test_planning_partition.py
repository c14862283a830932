"""Partitions against enumeration of every cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from muplan.planning.estimates.partition import crossings, grouped_partitions, pareto_cuts


def every_cut(times: np.ndarray, transfers: np.ndarray, stages: int) -> list[tuple[float, float]]:
    """(transfer, bottleneck) of every contiguous partition."""
    points = []
    for inner in itertools.combinations(range(1, len(times)), stages - 1):
        edges = (0, *inner, len(times))
        bottleneck = max(times[a:b].sum() for a, b in itertools.pairwise(edges))
        points.append((float(sum(transfers[cut - 1] for cut in inner)), float(bottleneck)))
    return points


@pytest.mark.parametrize("seed", range(30))
def test_pareto_cuts_equal_enumeration(seed: int) -> None:
    """If it fails, a partition is missed that is better in transfer time or bottleneck."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(4, 9))
    stages = int(rng.integers(2, min(num, 4) + 1))
    times = rng.uniform(0.5, 2.0, num)
    transfers = rng.choice([0.1, 0.2, 0.4], num)
    found = {
        (round(cut.transfer_s, 9), round(cut.bottleneck_s, 9))
        for cut in pareto_cuts(times, transfers, stages)
    }
    points = every_cut(times, transfers, stages)
    front = {
        (round(t, 9), round(b, 9))
        for t, b in points
        if not any(
            (u <= t + 1e-12 and c < b - 1e-12) or (u < t - 1e-12 and c <= b + 1e-12) for u, c in points
        )
    }
    assert found == front
    for cut in pareto_cuts(times, transfers, stages):
        sums = [times[a:b].sum() for ranges in cut.stage_clusters for a, b in ranges]
        assert max(sums) == pytest.approx(cut.bottleneck_s)


def test_least_bottleneck_comes_first() -> None:
    """If it fails, the planner takes a cut with a longer bottleneck than it must."""
    cuts = pareto_cuts(np.array([1.0, 1.0, 1.0, 3.0]), np.array([0.0, 0.5, 0.5, 0.0]), 2)
    assert cuts[0].bottleneck_s == min(cut.bottleneck_s for cut in cuts)


def test_too_few_clusters_have_no_partition() -> None:
    """If it fails, a stage without clusters is planned."""
    assert pareto_cuts(np.ones(3), np.zeros(3), 4) == ()


def test_grouped_partition_separates_by_sensitivity_and_counts_crossings() -> None:
    """If it fails, clusters of like sensitivity are split, or a transfer goes unpaid."""
    (partition,) = grouped_partitions(np.array([0.2, 0.9, 0.2, 0.9, 0.2]))
    assert partition == (((0, 1), (2, 3), (4, 5)), ((1, 2), (3, 4)))
    assert crossings(partition) == ((0, 0, 1), (1, 1, 0), (2, 0, 1), (3, 1, 0))


def test_equal_sensitivities_leave_nothing_to_group() -> None:
    """If it fails, a grouped partition is offered that separates nothing."""
    assert grouped_partitions(np.array([0.5, 0.5, 0.5])) == ()
