"""Partitions and clocks of stages against enumeration of all there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from muplan.hardware.catalog import load_device
from muplan.planning.estimates.choices import (
    offered_pipelines,
    one_clock_fronts,
    sensitivity_partitions,
    two_stage_cuts,
)
from muplan.planning.estimates.clocking import least_bottleneck, thriftiest
from muplan.planning.estimates.cuts import cut_fronts
from muplan.planning.estimates.dominance import TOLERANCE, covered
from muplan.planning.estimates.estimate import Shape
from muplan.planning.estimates.forward_costs import ForwardCosts, forward_costs
from muplan.planning.estimates.grouping import grouping_worth
from muplan.planning.estimates.pairs import all_pairs
from muplan.planning.estimates.partition import contiguous_partition, crossings, grouped_partitions
from muplan.planning.estimates.pipelines import make_pipelines
from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.solvers.master import relax
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PoolSupply
from tests.synthetic import DEVICE, ClusterShape, forward_problem, forward_profile, forward_service


def every_cut(num: int, stages: int) -> Iterator[tuple[int, ...]]:
    """The stops of every contiguous partition."""
    for inner in itertools.combinations(range(1, num), stages - 1):
        yield (*inner, num)


def stage_totals(values: np.ndarray, stops: tuple[int, ...]) -> np.ndarray:
    """Sum over the clusters of every stage."""
    return np.array([values[start:stop].sum(axis=0) for start, stop in itertools.pairwise((0, *stops))])


def costs_of(
    shapes: list[ClusterShape], *, repeat: int, num_gpus: int = 16, gpus_per_node: int = 8
) -> ForwardCosts:
    """Costs of a synthetic model on one GPU a stage."""
    supply = PoolSupply(
        name="v100",
        num_gpus=num_gpus,
        gpus_per_node=gpus_per_node,
        free_per_node=(gpus_per_node,) * (num_gpus // gpus_per_node),
        parked_w=25.0,
        clocks_mhz=load_device("v100-sxm2-32gb").usable_clocks_mhz,
    )
    return forward_costs(
        forward_profile("model", shapes, repeat=repeat),
        load_device(DEVICE),
        supply,
        tensor_parallel=1,
        input_tokens=512.0,
        max_batch=4,
        cap_w=300.0,
    )


MIXED = [
    ClusterShape(latency_s=0.004, sensitivity=0.2, power_w=150.0, weight_bytes=2_000_000_000),
    ClusterShape(latency_s=0.007, sensitivity=0.9, weight_bytes=1_000_000_000),
    ClusterShape(latency_s=0.002, sensitivity=0.6, power_w=220.0, output_bytes_per_token=65536.0),
]


@pytest.mark.parametrize("seed", range(40))
def test_fronts_are_all_undominated_cuts(seed: int) -> None:
    """If it fails, a cut is missed that is better in transfers, bottleneck or memory."""
    rng = np.random.default_rng(seed)
    num, most = int(rng.integers(3, 10)), int(rng.integers(1, 6))
    times, weights = rng.choice([0.5, 0.7, 1.1, 2.0], num), rng.choice([0.1, 1.0, 3.0], num)
    handover = rng.choice([0.0, 0.1, 0.2, 0.4], (most - 1, num))
    fronts = cut_fronts(times, handover, weights)
    assert len(fronts) == most
    for stages, front in enumerate(fronts, start=1):
        points = {
            (
                round(sum(handover[stage, stop - 1] for stage, stop in enumerate(stops[:-1])), 9),
                round(stage_totals(times, stops).max(), 9),
                round(stage_totals(weights, stops).max(), 9),
            )
            for stops in every_cut(num, stages)
        }
        undominated = {
            point
            for point in points
            if not any(all(np.less_equal(other, point)) for other in points - {point})
        }
        found = [
            (round(cut.transfer_s, 9), round(cut.bottleneck_s, 9), round(cut.weight_bytes, 9))
            for cut in front
        ]
        assert sorted(found) == sorted(undominated)
        assert [cut.bottleneck_s for cut in front] == sorted(cut.bottleneck_s for cut in front)
        for cut in front:
            assert stage_totals(times, cut.stops).max() == pytest.approx(cut.bottleneck_s)
            assert len(cut.stops) == stages


def test_fronts_differ_by_clock() -> None:
    """If it fails, cuts are chosen at one clock for all: a clock-bound stage weighs more at a low one."""
    shapes = [
        ClusterShape(latency_s=0.010, sensitivity=0.0, output_bytes_per_token=8.0),
        ClusterShape(latency_s=0.009, sensitivity=1.0, output_bytes_per_token=8.0),
        ClusterShape(latency_s=0.010, sensitivity=1.0, output_bytes_per_token=8.0),
    ]
    fronts = one_clock_fronts(costs_of(shapes, repeat=1))
    assert fronts[0][1][0].stops == (2, 3)  # at 945 MHz the second takes 14.6 ms, the third 16.2 ms
    assert fronts[-1][1][0].stops == (1, 3) or fronts[-1][1][0].bottleneck_s < 0.0195


@pytest.mark.parametrize("seed", range(25))
def test_thriftiest_is_the_least_power_of_all_cuts_and_clocks(seed: int) -> None:
    """If it fails, a pipeline with clocks of its own draws more than it must at its pace."""
    rng = np.random.default_rng(seed)
    num, stages, clocks = int(rng.integers(3, 7)), int(rng.integers(1, 4)), 3
    slowdown = 1.0 + rng.uniform(0, 1, num)[:, None] * np.array([0.6, 0.3, 0.0])[None, :]
    latency = rng.uniform(0.5, 2.0, num)[:, None] * slowdown
    energy = rng.uniform(50, 150, num)[:, None] * np.array([0.7, 0.8, 1.0])[None, :]
    loaded = np.array([40.0, 50.0, 65.0])
    limit = max(min(stage_totals(latency, stops)[:, 2].max() for stops in every_cut(num, stages)), 2.5)

    def cost(stops: tuple[int, ...], chosen: tuple[int, ...]) -> float:
        places = np.arange(stages), np.array(chosen)
        if stage_totals(latency, stops)[places].max() > limit * (1 + 1e-9):
            return np.inf
        return float(loaded[list(chosen)].sum() * limit + stage_totals(energy, stops)[places].sum())

    least = min(
        cost(stops, chosen)
        for stops in every_cut(num, stages)
        for chosen in itertools.product(range(clocks), repeat=stages)
    )
    found = thriftiest(latency, energy, loaded, limit_s=limit, num_stages=stages)
    assert cost(found.stops, found.clocks) == pytest.approx(least)


@pytest.mark.parametrize("seed", range(10))
def test_least_bottleneck_at_given_clocks(seed: int) -> None:
    """If it fails, a service joins a group in a worse cut than it must."""
    rng = np.random.default_rng(seed)
    latency = rng.uniform(0.5, 2.0, (7, 3))
    clocks = tuple(rng.integers(0, 3, 3).tolist())
    worst = {
        stops: max(stage_totals(latency, stops)[stage, clock] for stage, clock in enumerate(clocks))
        for stops in every_cut(7, 3)
    }
    assert worst[least_bottleneck(latency, clocks)] == pytest.approx(min(worst.values()))


def test_a_service_can_join_a_group_at_clocks_that_it_is_not_offered() -> None:
    """If it fails, groups with clocks of their own can never be shared more widely under simulation."""
    profile = forward_profile("model", MIXED, repeat=3)
    service = forward_service("solo", profile=profile, rate_rps=10.0, limit_s=0.5)
    builder = CandidateBuilder(forward_problem([service], num_gpus=8))
    offered = {(item.shape, item.clocks_mhz) for item in builder.forward_estimates}
    shape, clocks_mhz = Shape(pool="v100", tensor_parallel=1, num_stages=3), (1530, 945, 945)
    assert (shape, clocks_mhz) not in offered
    joined = builder.forward_estimate(shape, clocks_mhz, "solo")
    assert joined is not None
    assert joined.clocks_mhz == clocks_mhz
    assert builder.forward_estimate(shape, (1530, 945, 946), "solo") is None


def test_every_two_stage_pipeline_is_covered() -> None:
    """If it fails, a cut or pair of clocks is left out that no offered one comes near."""
    costs = costs_of(MIXED, repeat=4)
    shape = Shape(pool="v100", tensor_parallel=1, num_stages=2)
    offered = np.concatenate([item.figures for item in offered_pipelines(costs, [shape])])
    everything = all_pairs(costs, shape, [*two_stage_cuts(costs), *sensitivity_partitions(costs)])
    assert covered(everything.figures, offered, costs.usable_bytes, TOLERANCE * (1 + 1e-9)).all()
    assert len(offered) < len(everything.figures) / 4


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_every_cut_under_one_clock_is_covered_at_that_clock(stages: int) -> None:
    """If it fails, services that share a group, and so its clock, lack a cut that they need there."""
    costs = costs_of(MIXED, repeat=3)
    shape = Shape(pool="v100", tensor_parallel=1, num_stages=stages)
    offered = offered_pipelines(costs, [shape])
    for clock, clock_mhz in enumerate(costs.clocks_mhz):
        choices = [
            (contiguous_partition(stops), (clock,) * stages)
            for stops in every_cut(costs.num_clusters, stages)
        ]
        here = np.concatenate(
            [item.figures[[set(mhz) == {clock_mhz} for mhz in item.clocks_mhz]] for item in offered]
        )
        figures = make_pipelines(costs, shape, choices).figures
        assert covered(figures, here, costs.usable_bytes, TOLERANCE * (1 + 1e-9)).all()
        assert here[:, 3].min() <= figures[:, 3].min() * (1 + 1e-9)


def test_pairs_agree_with_pipelines() -> None:
    """If it fails, pairs are chosen by other figures than they are planned with."""
    costs = costs_of(MIXED, repeat=2)
    shape = Shape(pool="v100", tensor_parallel=1, num_stages=2)
    pairs = all_pairs(costs, shape, [*two_stage_cuts(costs), *sensitivity_partitions(costs)])
    pipelines = make_pipelines(costs, shape, pairs.choices(range(len(pairs.figures))))
    np.testing.assert_allclose(pairs.figures, pipelines.figures, rtol=1e-12)
    np.testing.assert_allclose(pairs.full_use_j, pipelines.full_use_j, rtol=1e-12)
    np.testing.assert_allclose(pairs.moved_s, pipelines.moved_s, rtol=1e-12)


def test_a_stage_that_is_no_bottleneck_gets_a_lower_clock() -> None:
    """If it fails, stages that wait for others run as fast as these."""
    shapes = [ClusterShape(latency_s=latency_s) for latency_s in (0.010, 0.006, 0.010)]
    costs = costs_of(shapes, repeat=1)
    shape = Shape(pool="v100", tensor_parallel=1, num_stages=3)
    found = {clocks for item in offered_pipelines(costs, [shape]) for clocks in item.clocks_mhz}
    assert (1530, 945, 1530) in found


def test_stages_on_other_nodes_pay_the_network() -> None:
    """If it fails, a pipeline across nodes is planned as if it were on one, or the other way round."""
    shape = Shape(pool="v100", tensor_parallel=1, num_stages=3)
    partition = contiguous_partition((2, 4, 6))
    moved = [
        make_pipelines(costs, shape, [(partition, (0, 0, 0))]).moved_s[0]
        for costs in (costs_of(MIXED, repeat=2, gpus_per_node=nodes) for nodes in (8, 2, 1))
    ]
    costs = costs_of(MIXED, repeat=2)
    near, far = costs.near_s[0, [1, 3]], costs.far_s[0, [1, 3]]
    np.testing.assert_allclose(moved, [near.sum(), near[0] + far[1], far.sum()])
    assert (far > near).all()


def has_at_most(stages: int, clocks_mhz: tuple[int, ...]) -> bool:
    """Whether a group has no more stages, each with a clock."""
    return len(clocks_mhz) <= stages


def test_more_stages_never_cost_power() -> None:
    """If it fails, a longer pipeline takes away what a shorter one offers: the relaxation's optimum rises."""
    profile = forward_profile("model", MIXED, repeat=3)
    services = [
        forward_service(f"service-{number}", profile=profile, rate_rps=rate, limit_s=limit)
        for number, (rate, limit) in enumerate([(30.0, 0.3), (8.0, 0.12)])
    ]
    problem = forward_problem(services, num_gpus=16)
    builder = CandidateBuilder(problem)
    guard = first_guard(problem, builder)
    bounds = []
    for most in (1, 2, 3, 5, 8):
        model = make_model(problem, builder, guard, partial(has_at_most, most))
        bounds.append(relax(model, Pricer(model)).bound)
    assert {len(item.form.clocks_mhz) for item in model.group_types} == set(range(1, 9))
    for fewer, more in itertools.pairwise(bounds):
        assert more <= fewer * (1 + 1e-6)


def test_grouped_partition_separates_by_sensitivity_and_counts_crossings() -> None:
    """If it fails, clusters of like sensitivity are split, or a transfer goes unpaid."""
    (partition,) = grouped_partitions(np.array([0.2, 0.9, 0.2, 0.9, 0.2]))
    assert partition == (((0, 1), (2, 3), (4, 5)), ((1, 2), (3, 4)))
    assert crossings(partition) == ((0, 0, 1), (1, 1, 0), (2, 0, 1), (3, 1, 0))


def test_equal_sensitivities_leave_nothing_to_group() -> None:
    """If it fails, a grouped partition is offered that separates nothing."""
    assert grouped_partitions(np.array([0.5, 0.5, 0.5])) == ()


def test_grouping_is_held_against_the_best_cut_at_its_own_clocks() -> None:
    """If it fails, grouping is credited with what clocks of their own would save without it."""
    profile = forward_profile("model", MIXED[:2], repeat=1)
    service = forward_service("solo", profile=profile, rate_rps=1.0, limit_s=1.0)
    worth = grouping_worth(service, costs_of(MIXED[:2], repeat=1))
    assert worth.is_tie  # two clusters: grouped and cut are one and the same partition
    alternating = grouping_worth(service, costs_of(MIXED[:2], repeat=6))
    assert "cut contiguously at" in alternating.text
