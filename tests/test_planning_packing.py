"""Packing: groups of any size on nodes of any size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.plan import Group, Replica, Stage
from muplan.planning.deploy import deploy
from muplan.planning.search.tuning import first_guard, make_model
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PoolSupply
from muplan.planning.stated.packing import FreeGpus
from muplan.problem.problem import Problem
from muplan.profile import Phase
from muplan.serving.passes import transfer_s
from muplan.verify.constraints import check_placement
from tests.synthetic import ClusterShape, forward_problem, forward_profile, forward_service


def pool_of(free_per_node: tuple[int, ...], gpus_per_node: int) -> PoolSupply:
    return PoolSupply(
        name="pool",
        num_gpus=len(free_per_node) * gpus_per_node,
        gpus_per_node=gpus_per_node,
        free_per_node=free_per_node,
        parked_w=25.0,
    )


def names(supply: PoolSupply) -> list[list[str]]:
    return [[f"pool/{node}/{gpu}" for gpu in range(free)] for node, free in enumerate(supply.free_per_node)]


def fits(supply: PoolSupply, groups: list[tuple[int, int]]) -> bool:
    """Whether groups of (tensor parallelism, stages) keep every row of ``gpus_available``."""
    return all(
        sum(supply.slots_taken(width * stages, width, slot) for width, stages in groups)
        <= supply.num_slots(slot)
        for slot in supply.slot_widths
    )


@settings(max_examples=300, deadline=None)
@given(
    gpus_per_node=st.sampled_from([1, 2, 3, 4, 6, 8, 10, 16]),
    reserved=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    shapes=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 8)), min_size=1, max_size=30),
)
def test_groups_that_keep_the_rows_are_packed(
    gpus_per_node: int, reserved: list[int], shapes: list[tuple[int, int]]
) -> None:
    """If it fails, a solution is found that no deployment can carry out, or a stage leaves its node."""
    supply = pool_of(tuple(max(0, gpus_per_node - taken) for taken in reserved), gpus_per_node)
    groups: list[tuple[int, int]] = []
    for shape in shapes:
        if shape[0] <= supply.node_gpus and fits(supply, [*groups, shape]):
            groups.append(shape)
    demands = [supply.parts(width * stages, width) for width, stages in groups]
    packed = FreeGpus(supply, names(supply)).pack(demands)
    taken = [gpu for gpus in packed for gpu in gpus]
    assert len(taken) == len(set(taken)) == sum(width * stages for width, stages in groups)
    for (width, stages), gpus in zip(groups, packed, strict=True):
        nodes = [gpu.split("/")[1] for gpu in gpus]
        homes = [nodes[stage * width : (stage + 1) * width] for stage in range(stages)]
        assert all(len(set(home)) == 1 for home in homes)
        per_node = supply.stages_per_node(width)
        for stage in range(stages):
            for other in range(stages):
                together = stage // per_node == other // per_node
                assert (homes[stage] == homes[other]) == together


def test_a_part_leaves_the_rest_of_its_slot_to_smaller_ones() -> None:
    """If it fails, GPUs beside a group of 3, 5, 6 or 7 are wasted, though the rows count them as free."""
    supply = pool_of((8,), 8)
    groups = [(1, 3), (1, 1), (1, 3), (1, 1)]
    assert fits(supply, groups)
    packed = FreeGpus(supply, names(supply)).pack([supply.parts(size, 1) for _, size in groups])
    assert sorted(gpu for gpus in packed for gpu in gpus) == names(supply)[0]


def test_a_group_that_finds_no_place_takes_nothing() -> None:
    """If it fails, half a group holds GPUs that another could use."""
    supply = pool_of((8, 4), 8)
    first, second, third = FreeGpus(supply, names(supply)).pack([(8, 8), (4,), (8,)])
    assert (len(first), len(second), len(third)) == (0, 4, 0)
    assert FreeGpus(supply, names(supply)).pack([(8, 4)])[0] == tuple(np.concatenate(names(supply)))


@pytest.mark.parametrize(
    ("num_gpus", "tensor_parallel", "parts"),
    [(8, 1, (8,)), (12, 2, (8, 4)), (12, 4, (8, 4)), (9, 1, (8, 1)), (24, 8, (8, 8, 8)), (3, 1, (3,))],
)
def test_parts_fill_nodes_with_whole_stages(
    num_gpus: int, tensor_parallel: int, parts: tuple[int, ...]
) -> None:
    """If it fails, a pipeline is cut elsewhere than its transfers are paid for."""
    assert pool_of((8, 8, 8), 8).parts(num_gpus, tensor_parallel) == parts


def test_nodes_of_six_hold_one_stage_of_four() -> None:
    """If it fails, a tensor-parallel set straddles nodes whose size it does not divide."""
    assert pool_of((6, 6), 6).parts(8, 4) == (4, 4)


def large_models(gpus_per_node: int, num_gpus: int) -> Problem:
    """Two services of 72 GB each, which take three GPUs, on nodes of any size."""
    profile = forward_profile("large", [ClusterShape(weight_bytes=6_000_000_000)], repeat=12)
    services = [
        forward_service(name, profile=profile, rate_rps=2.0, limit_s=1.5) for name in ("alpha", "beta")
    ]
    problem = forward_problem(services, num_gpus=num_gpus)
    fleet = problem.workload.fleet
    pools = tuple(pool.model_copy(update={"gpus_per_node": gpus_per_node}) for pool in fleet.pools)
    workload = problem.workload.model_copy(update={"fleet": fleet.model_copy(update={"pools": pools})})
    return replace(problem, workload=workload)


@pytest.mark.parametrize(("gpus_per_node", "num_gpus"), [(1, 6), (2, 6), (3, 6), (4, 8), (8, 8)])
def test_groups_of_three_are_planned_on_any_nodes(gpus_per_node: int, num_gpus: int) -> None:
    """If it fails, a pipeline across nodes is solved for and then cannot be deployed or verified."""
    problem = large_models(gpus_per_node, num_gpus)
    builder = CandidateBuilder(problem)
    model = make_model(problem, builder, first_guard(problem, builder))
    solution = solve_exact(model, time_limit_s=20.0, seed=0)
    assert solution.found
    deployment = deploy(problem, solution, builder.rules)
    assert deployment is not None
    assert {len(group.stages) for group in deployment.groups} & {3, 5, 6, 7}
    assert list(check_placement(problem, deployment)) == []
    placed = [gpu for group in deployment.groups for gpu in group.gpus]
    assert len(placed) == len(set(placed))


@pytest.mark.parametrize("gpus_per_node", [1, 2, 3, 4, 8])
def test_transfers_are_planned_as_they_are_simulated(gpus_per_node: int) -> None:
    """If it fails, a pipeline is planned on NVLink where its deployment uses the network, or the reverse."""
    problem = large_models(gpus_per_node, 24)
    builder = CandidateBuilder(problem)
    (supply,) = builder.supplies
    ids = problem.pool("v100").gpu_ids()
    nodes = [ids[start : start + gpus_per_node] for start in range(0, len(ids), gpus_per_node)]
    device = problem.devices["v100"]
    profile = problem.services[0].profiles["v100"]
    at_highest = [
        item
        for item in builder.forward_estimates
        if item.service == "alpha" and set(item.clocks_mhz) == {1530} and not item.is_grouped
    ]
    assert len({item.shape.num_stages for item in at_highest}) == 6  # 3 to 8
    for item in at_highest:
        (gpus,) = FreeGpus(supply, nodes).pack([supply.parts(item.shape.num_gpus, 1)])
        group = Group(
            name="group",
            pool="v100",
            stages=tuple(Stage(gpus=(gpu,), clock_mhz=1530) for gpu in gpus),
            replicas=(Replica(service="alpha", share=1.0, max_batch=1, stage_clusters=item.stage_clusters),),
        )
        moved_s = transfer_s(device, group, group.replicas[0], profile, num_tokens=512.0).sum()
        computed_s = profile.latency_s(Phase.FORWARD, tensor_parallel=1, batch=1, tokens=512.0)[:, -1]
        total_s = computed_s[profile.cluster_type_index].sum() + moved_s
        assert item.latency_s == pytest.approx(total_s, rel=1e-12)
