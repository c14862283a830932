"""Limits on placement: each alone, in the stated model, in the packing, in the moves, end to end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muplan.errors import InputError
from muplan.hardware.catalog import load_device
from muplan.hardware.fleet import Pool
from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.placing.assignment import Sized, assign_gpus
from muplan.planning.placing.rules import Occupancy, PlacementRules, node_of, nodes_of
from muplan.planning.placing.zones import zones_of
from muplan.planning.search.tuning import first_guard, make_model, tightened
from muplan.planning.search.widening import widen
from muplan.planning.solve import Planned, Refused, solve
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem
from muplan.serde import parse_document
from muplan.verify.constraints import check_placement, node_power_cap
from muplan.verify.limits import anti_affinity, min_replicas, pinned
from muplan.workload import Simulation, Workload
from tests.synthetic import forward_problem, forward_profile, forward_service

PEAK_W = 280.0
"""Power of a busy GPU of the synthetic profiles at their highest clock."""


PARKED_W = load_device("v100-sxm2-32gb").parked_w


def problem(
    *,
    num_gpus: int = 8,
    gpus_per_node: int = 2,
    rate_rps: float = 20.0,
    pool: dict[str, Any] | None = None,
    alpha: dict[str, Any] | None = None,
) -> Problem:
    """Two services with a 40-ms pass and 0.4 s to do it in, on V100s; with some limits."""
    services = [
        forward_service(name, profile=forward_profile(name), rate_rps=rate_rps, limit_s=0.4)
        for name in ("alpha", "beta")
    ]
    services[0] = replace(services[0], spec=services[0].spec.model_copy(update=alpha or {}))
    made = forward_problem(
        services, num_gpus=num_gpus, simulation=Simulation(duration_s=120.0, warm_up_s=5.0, replications=3)
    )
    changed = {"num_gpus": num_gpus, "gpus_per_node": gpus_per_node, **(pool or {})}
    fleet = made.workload.fleet
    limited = fleet.model_copy(update={"pools": (fleet.pools[0].model_copy(update=changed),)})
    return replace(made, workload=made.workload.model_copy(update={"fleet": limited}))


def planned(made: Problem) -> Deployment:
    """The deployment of a plan, which keeps every limit as `verify` sees it."""
    result = solve(made, with_baselines=False)
    assert isinstance(result, Planned), result
    deployment = result.deployment
    assert not list(check_placement(made, deployment))
    assert not list(node_power_cap(made, deployment))
    assert not list(anti_affinity(made, deployment))
    assert not list(min_replicas(made, deployment))
    assert not [found for group in deployment.groups for found in pinned(made, group)]
    return deployment


def hosts(deployment: Deployment, service: str) -> list[Group]:
    return [group for group in deployment.groups if any(item.service == service for item in group.replicas)]


def test_without_limits_the_least_power_stands_on_few_gpus() -> None:
    """If it fails, the tests below prove nothing: the limits would hold by themselves."""
    deployment = planned(problem())
    assert len(deployment.groups) <= 3
    assert node_of(deployment.groups[0].gpus[0]) == "v100/0"


def test_reserved_gpus_are_left_alone() -> None:
    """If it fails, a plan takes GPUs that are somebody else's."""
    deployment = planned(problem(pool={"reserved_gpus": ("v100/0/0", "v100/0/1", "v100/1/1")}))
    assert not {"v100/0/0", "v100/0/1", "v100/1/1"} & set(deployment.placed_gpus)


def test_too_many_reserved_gpus_are_named_in_the_refusal() -> None:
    """If it fails, a reserve that leaves too little is not told from a lack of GPUs."""
    reserved = tuple(f"v100/{node}/{gpu}" for node in range(4) for gpu in range(2))[:-1]
    result = solve(problem(rate_rps=40.0, pool={"reserved_gpus": reserved}), with_baselines=False)
    assert isinstance(result, Refused)
    told = [demand.text for item in result.conflict.sets for demand in item.demands]
    assert any("keeps 7 of its GPUs in reserve" in text for text in told), told


def test_clocks_stay_within_what_a_pool_allows() -> None:
    """If it fails, a clock is used that the pool's owner ruled out."""
    low = planned(problem(pool={"max_clock_mhz": 1000}))
    high = planned(problem(pool={"min_clock_mhz": 1500}))
    assert {stage.clock_mhz for group in low.groups for stage in group.stages} == {945}
    assert {stage.clock_mhz for group in high.groups for stage in group.stages} == {1530}


def test_a_pinned_service_stands_on_its_nodes_alone() -> None:
    """If it fails, a service runs where its data may not go."""
    deployment = planned(problem(alpha={"pinned_to": ("v100/3",)}))
    assert {node for group in hosts(deployment, "alpha") for node in nodes_of(group)} == {"v100/3"}


def test_zones_bound_what_a_pinned_service_gets() -> None:
    """If it fails, the stated model gives a pinned service GPUs of nodes that it may not use."""
    made = problem(rate_rps=60.0, alpha={"pinned_to": ("v100/3",)})
    builder = CandidateBuilder(made)
    assert [(zone.name, sorted(zone.services)) for zone in builder.zones] == [
        ("v100/0", ["beta"]),
        ("v100/3", ["alpha", "beta"]),
    ]
    model = make_model(made, builder, first_guard(made, builder))
    assert sum(pool.num_gpus for pool in model.pools) == 8
    assert not solve_exact(model, time_limit_s=60, seed=0).found  # two GPUs carry less than 60 requests/s
    free = problem(rate_rps=60.0)
    wide = CandidateBuilder(free)
    assert solve_exact(make_model(free, wide, first_guard(free, wide)), time_limit_s=60, seed=0).found


def test_replicas_that_must_stand_apart_do() -> None:
    """If it fails, one node's failure takes every replica along."""
    deployment = planned(problem(rate_rps=35.0, alpha={"anti_affinity": True, "min_replicas": 3}))
    nodes = Counter(node for group in hosts(deployment, "alpha") for node in nodes_of(group))
    assert len(nodes) >= 3
    assert set(nodes.values()) == {1}


def test_at_least_as_many_replicas_as_asked_for() -> None:
    """If it fails, a service is left with fewer replicas than its owner wants."""
    deployment = planned(problem(rate_rps=5.0, alpha={"min_replicas": 3}))
    found = hosts(deployment, "alpha")
    assert len(found) >= 3
    share = sum(item.share for group in found for item in group.replicas if item.service == "alpha")
    assert share == pytest.approx(1.0)


@pytest.mark.parametrize("cap_w", [330.0, 420.0])
def test_every_node_keeps_its_own_cap(cap_w: float) -> None:
    """If it fails, the sum of all nodes is within the caps and one node is not."""
    made = problem(rate_rps=30.0, pool={"node_power_cap_w": cap_w})
    deployment = planned(made)
    rules = PlacementRules(made)
    drawn = Counter[str]()
    for group in deployment.groups:
        drawn.update(rules.above_parked_w(group))
    assert all(rules.nodes[node].parked_w + above_w <= cap_w for node, above_w in drawn.items())


def test_a_cap_on_nodes_counts_whole_groups_in_the_stated_model() -> None:
    """If it fails, the stated model lets a group stand half on one node and half on another."""
    made = problem(
        num_gpus=8, gpus_per_node=4, pool={"node_power_cap_w": 4 * PARKED_W + 2.6 * (PEAK_W - PARKED_W)}
    )
    builder = CandidateBuilder(made)
    model = make_model(made, builder, first_guard(made, builder))
    (pool,) = model.pools
    assert pool.spare_node_power_w / (PEAK_W - pool.parked_w) == pytest.approx(5.2, rel=0.02)
    assert pool.is_heavy(PEAK_W - pool.parked_w, 1, 1, 2)
    assert not pool.is_heavy(PEAK_W - pool.parked_w, 1, 1, 1)


def replica(service: str) -> Replica:
    return Replica(service=service, share=0.25, max_batch=1, stage_clusters=(((0, 4),),))


def sized(service: str, clock_mhz: int) -> Sized:
    return Sized(tensor_parallel=1, clocks_mhz=(clock_mhz,), replicas=(replica(service),))


def assigned(made: Problem, groups: list[Sized]) -> list[tuple[str, ...]] | None:
    rules = PlacementRules(made)
    (zone,) = zones_of(rules)
    found = assign_gpus(rules, zone, groups)
    if found is not None:
        deployment = Deployment(
            groups=tuple(
                Group(
                    name=f"group-{number}",
                    pool="v100",
                    stages=(Stage(gpus=gpus, clock_mhz=group.clocks_mhz[0]),),
                    replicas=group.replicas,
                )
                for number, (group, gpus) in enumerate(zip(groups, found, strict=True))
            ),
            serving=made.workload.serving,
        )
        assert set(rules.broken(deployment)) <= {"min_replicas"}
    return found


def test_assignment_finds_what_first_fit_does_not() -> None:
    """If it fails, groups that two nodes could have between them are said to find no place.

    One after the other, each where most power is left, the two hungry groups part, and the third of the
    others fits nowhere; together the two fill one node, and the three the other.
    """
    bare = problem(num_gpus=8, gpus_per_node=4)
    parked_w = bare.devices["v100"].parked_w
    peak = PlacementRules(bare).peak
    hungry, modest = (
        peak.of_stages("v100", 1, (clock,), (replica("beta"),))[0] - parked_w for clock in (1530, 1200)
    )
    spare_w = max(2 * hungry, 3 * modest)
    assert hungry + 2 * modest > spare_w + 1.0
    groups = [sized("beta", clock) for clock in (1530, 1530, 1200, 1200, 1200)]

    def capped(cap_w: float) -> Problem:
        return problem(num_gpus=8, gpus_per_node=4, pool={"node_power_cap_w": cap_w})

    found = assigned(capped(4 * parked_w + spare_w + 0.1), groups)
    assert found is not None
    clocks = {(node_of(gpus[0]), group.clocks_mhz[0]) for gpus, group in zip(found, groups, strict=True)}
    assert len(clocks) == 2
    assert assigned(capped(4 * parked_w + spare_w - 0.1), groups) is None


def test_more_replicas_apart_than_nodes_find_no_place() -> None:
    """If it fails, replicas that must stand apart share a node, or are said to fit."""
    made = problem(alpha={"anti_affinity": True})
    assert assigned(made, [sized("alpha", 945)] * 4) is not None
    assert assigned(made, [sized("alpha", 945)] * 5) is None


def test_what_finds_no_place_is_solved_again_with_less() -> None:
    """If it fails, a solution without an assignment is met again and again."""
    made = problem(pool={"node_power_cap_w": 330.0})
    builder = CandidateBuilder(made)
    model = make_model(made, builder, first_guard(made, builder))
    (pool,) = model.pools
    taken = tightened(tightened(model)).taken
    assert taken == {"node_power_cap_v100": pytest.approx(0.1 * pool.spare_node_power_w)}


def test_widening_keeps_replicas_apart() -> None:
    """If it fails, hosting a service more widely breaks what its owner asked for."""
    made = problem(alpha={"anti_affinity": True})
    groups = tuple(
        Group(
            name=f"group-{gpu}",
            pool="v100",
            stages=(Stage(gpus=(f"v100/0/{gpu}",), clock_mhz=1200),),
            replicas=(replica(service),),
        )
        for gpu, service in enumerate(("alpha", "beta"))
    )
    deployment = Deployment(groups=groups, serving=made.workload.serving)
    free = problem()
    assert widen(free, CandidateBuilder(free), deployment, "alpha") is not None
    assert widen(made, CandidateBuilder(made), deployment, "alpha") is None


def test_an_exchange_that_breaks_a_rule_leaves_all_as_it_was() -> None:
    """If it fails, a refused replica counts against the next one."""
    made = problem(pool={"node_power_cap_w": 270.0})
    rules = PlacementRules(made)

    def group(clock_mhz: int) -> Group:
        stage = Stage(gpus=("v100/0/0",), clock_mhz=clock_mhz)
        return Group(name="group", pool="v100", stages=(stage,), replicas=(replica("alpha"),))

    occupancy = Occupancy(rules, [group(945)])
    assert not occupancy.exchange(group(945), group(1530))
    assert not occupancy.broken(rules.nodes)
    assert occupancy.exchange(group(945), group(1200))


# --- pools -------------------------------------------------------------------------------------

MIXED = """\
kind: workload
schema_version: 1
name: mixed-pools
fleet:
  pools:
    - {name: v100, device: v100-sxm2-32gb, num_gpus: 2, gpus_per_node: 2}
    - {name: a100, device: a100-sxm4-80gb, num_gpus: 2, gpus_per_node: 2, max_clock_mhz: 1200}
services:
  - {name: search, model: bert-1.3b, slo: {scale: 5}, demand: {rate_rps: 24}, min_replicas: 3}
  - {name: photos, model: vit-large, slo: {scale: 5}, demand: {rate_rps: 20}, pinned_to: [a100]}
simulation: {duration_s: 120, warm_up_s: 10, replications: 3}
"""


def mixed(**changes: str) -> Problem:
    text = MIXED
    for old, new in changes.items():
        text = text.replace(old, new)
    return load_problem(parse_document(text, Workload, file="f"), directory=Path())


def test_a_service_has_replicas_on_two_kinds_of_gpus() -> None:
    """If it fails, a fleet that mixes device types cannot be planned, or its limits are not kept."""
    made = mixed()
    result = solve(made)
    assert isinstance(result, Planned), result
    deployment = result.deployment
    assert {group.pool for group in hosts(deployment, "search")} == {"v100", "a100"}
    assert {group.pool for group in hosts(deployment, "photos")} == {"a100"}
    assert all(item.attainment.mean >= item.target for item in result.prediction.services)
    assert not list(check_placement(made, deployment))
    for row in result.baselines:
        for group in row.deployment.groups if row.deployment is not None else ():
            assert not list(pinned(made, group)), row.name


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "message"),
    [
        ("gpus_per_node: 2, max", "reserved_gpus: [a100/0/7], gpus_per_node: 2, max",
         "fleet.pools[1].reserved_gpus[0]", "the pool has no GPU 'a100/0/7'; its GPUs are a100/0/0"),
        ("gpus_per_node: 2, max", "reserved_gpus: [a100/0/1, a100/0/1], gpus_per_node: 2, max",
         "fleet.pools[1].reserved_gpus[1]", "'a100/0/1' stands twice; name each GPU once"),
        ("max_clock_mhz: 1200", "max_clock_mhz: 100", "fleet.pools[1].max_clock_mhz",
         "no usable clock of a100-sxm4-80gb lies between"),
        ("max_clock_mhz: 1200", "min_clock_mhz: 1125, max_clock_mhz: 1200", "fleet.pools[1].max_clock_mhz",
         "has no clock between 1125 and 1200 MHz; it has 510"),
        ("pinned_to: [a100]", "pinned_to: [a100, h100, v100/4]", "services[1].pinned_to[1]",
         "'h100' is no pool or node of the fleet; it has v100 and its nodes v100/0, a100 and its"),
        ("pinned_to: [a100]", "pinned_to: [v100/4]", "services[1].pinned_to[0]", "'v100/4' is no"),
    ],
)  # fmt: skip
def test_limits_that_name_nothing_are_told(old: str, new: str, key: str, message: str) -> None:
    """If it fails, a misspelt limit is silently none."""
    with pytest.raises(InputError) as caught:
        mixed(**{old: new})
    found = {fault.key: fault.message for fault in caught.value.faults}
    assert message in found[key], found


def test_faults_of_limits_come_all_at_once() -> None:
    """If it fails, a user with two mistakes has to solve twice to see them."""
    with pytest.raises(InputError) as caught:
        mixed(**{"pinned_to: [a100]": "pinned_to: [h100]", "max_clock_mhz: 1200": "max_clock_mhz: 100"})
    assert {fault.key for fault in caught.value.faults} == {
        "fleet.pools[1].max_clock_mhz",
        "services[1].pinned_to[0]",
    }


def test_a_pool_names_its_nodes_and_free_gpus() -> None:
    """If it fails, limits and verification speak of different nodes."""
    pool = Pool(name="p", device="d", num_gpus=5, gpus_per_node=2, reserved_gpus=("p/0/1", "p/2/0"))
    assert pool.node_ids() == ("p/0", "p/1", "p/2")
    assert pool.free_gpus() == (("p/0/0",), ("p/1/0", "p/1/1"), ())
