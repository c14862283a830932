"""Moves of descent and ascent, and the placement of groups on GPUs: what they must leave intact."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from muplan.plan import Deployment, Status
from muplan.planning.deploy import deploy, parked_gpus
from muplan.planning.placing.rules import PlacementRules
from muplan.planning.search.ascent import relieved
from muplan.planning.search.descent import shift_clock, without_group
from muplan.planning.search.widening import widen
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import Configuration, Hosting, Solution, Use
from muplan.problem.problem import Problem
from tests.synthetic import CLOCKS_MHZ, ClusterShape, forward_problem, forward_profile, forward_service


def problem(num_gpus: int = 16, weight_bytes: int = 1_000_000_000) -> Problem:
    """Two services with a 40-ms pass and 0.4 s to do it in."""
    shape = ClusterShape(weight_bytes=weight_bytes)
    services = [
        forward_service(name, profile=forward_profile(name, (shape,)), rate_rps=10.0, limit_s=0.4)
        for name in ("alpha", "beta")
    ]
    return forward_problem(services, num_gpus=num_gpus)


def use(service: str, *, count: int, rate_rps: float, stages: int = 1, clock_mhz: int = 1200) -> Use:
    """Some groups that host one service."""
    edges = [round(4 * stage / stages) for stage in range(stages + 1)]
    hosting = Hosting(
        service=service,
        max_batch=1,
        stage_clusters=tuple(((a, b),) for a, b in pairwise(edges)),
        occupancy_s=0.04 / stages,
        energy_j=5.0,
        latency_s=0.04,
        weight_bytes=(1e9,) * stages,
        working_bytes=(1e6,) * stages,
        peak_w=(200.0,) * stages,
    )
    configuration = Configuration(
        pool="v100",
        tensor_parallel=1,
        clocks_mhz=(clock_mhz,) * stages,
        hostings=(hosting,),
        utilisation=0.8,
        standing_w=10.0 * stages,
        peak_w=200.0 * stages,
    )
    return Use(configuration=configuration, count=count, rates_rps=(rate_rps,))


def deployed(*uses: Use, num_gpus: int = 16) -> Deployment:
    """A solution made of ``uses``, deployed."""
    solution = Solution(solver="test", status=Status.FEASIBLE, achieved=(), power_w=0.0, uses=uses, seed=0)
    roomy = problem(num_gpus)
    deployment = deploy(roomy, solution, PlacementRules(roomy))
    assert deployment is not None
    return deployment


def shares(deployment: Deployment) -> Counter[str]:
    """Sum of the shares of every service."""
    found: Counter[str] = Counter()
    for group in deployment.groups:
        for replica in group.replicas:
            found[replica.service] += replica.share  # type: ignore[assignment]
    return found


def test_groups_of_at_most_a_node_stay_on_one_node() -> None:
    """If it fails, a pipeline or tensor-parallel set is torn over two nodes without need."""
    deployment = deployed(
        use("alpha", count=5, rate_rps=10.0, stages=1),
        use("beta", count=2, rate_rps=10.0, stages=4),
    )
    for group in deployment.groups:
        assert len({gpu.rsplit("/", 1)[0] for gpu in group.gpus}) == 1
    placed = deployment.placed_gpus
    assert len(placed) == len(set(placed)) == 13
    assert len(parked_gpus(problem(), deployment)) == 3


def test_what_cannot_be_placed_is_told() -> None:
    """If it fails, GPUs are used twice when a solution asks for more than there are."""
    solution = Solution(
        solver="test",
        status=Status.FEASIBLE,
        achieved=(),
        power_w=0.0,
        uses=(use("alpha", count=5, rate_rps=10.0, stages=4),),
        seed=0,
    )
    assert deploy(problem(), solution, PlacementRules(problem())) is None


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shares_make_up_the_demand(count: int) -> None:
    """If it fails, the shares of a service do not sum to what is admitted of it."""
    found = shares(deployed(use("alpha", count=count, rate_rps=10.0), use("beta", count=1, rate_rps=10.0)))
    assert found["alpha"] == pytest.approx(1.0)
    assert found["beta"] == pytest.approx(1.0)


def test_parking_a_group_hands_its_share_to_the_others() -> None:
    """If it fails, demand is lost when a group is parked."""
    deployment = deployed(use("alpha", count=3, rate_rps=10.0), use("beta", count=1, rate_rps=10.0))
    alpha = [group.name for group in deployment.groups if group.replicas[0].service == "alpha"]
    beta = next(group.name for group in deployment.groups if group.replicas[0].service == "beta")
    fewer = without_group(deployment, alpha[0])
    assert fewer is not None
    assert shares(fewer)["alpha"] == pytest.approx(1.0)
    assert without_group(deployment, beta) is None


def test_clocks_shift_on_the_profiles_grid_and_stop_at_its_ends() -> None:
    """If it fails, a descent leaves the clocks that were profiled."""
    deployment = deployed(use("alpha", count=1, rate_rps=10.0), use("beta", count=1, rate_rps=10.0))
    group = deployment.groups[0]
    assert shift_clock(problem(), group, -1).stages[0].clock_mhz == CLOCKS_MHZ[0]
    assert shift_clock(problem(), group, 1).stages[0].clock_mhz == CLOCKS_MHZ[2]
    assert shift_clock(problem(), group, -5).stages[0].clock_mhz == CLOCKS_MHZ[0]


def test_widening_hosts_wherever_memory_allows_and_shares_evenly() -> None:
    """If it fails, replicas that cost nothing are not made, or shares no longer add up."""
    deployment = deployed(use("alpha", count=3, rate_rps=10.0), use("beta", count=1, rate_rps=10.0))
    roomy = problem()
    wider = widen(roomy, CandidateBuilder(roomy), deployment, "beta")
    assert wider is not None
    hosts = [
        replica.share for group in wider.groups for replica in group.replicas if replica.service == "beta"
    ]
    np.testing.assert_allclose(hosts, 0.25)
    assert widen(roomy, CandidateBuilder(roomy), wider, "beta") is None


def test_widening_stops_at_the_memory() -> None:
    """If it fails, a group is given more weights than its GPUs hold."""
    deployment = deployed(use("alpha", count=2, rate_rps=10.0), use("beta", count=1, rate_rps=10.0))
    full = problem(weight_bytes=6_000_000_000)  # two models of four such clusters exceed 32 GB
    assert widen(full, CandidateBuilder(full), deployment, "beta") is None


def test_relief_is_of_groups_that_host_what_falls_short_alone() -> None:
    """If it fails, a service that shares all its groups cannot be helped without helping the others."""
    deployment = deployed(use("alpha", count=2, rate_rps=10.0), use("beta", count=2, rate_rps=10.0, stages=2))
    roomy = problem()
    shared = widen(roomy, CandidateBuilder(roomy), deployment, "beta")
    assert shared is not None
    larger = relieved(PlacementRules(roomy), shared, ["beta"], 3)
    added = larger.groups[len(shared.groups) :]
    assert [[replica.service for replica in group.replicas] for group in added] == [["beta"]] * 3
    assert {len(group.gpus) for group in added} == {1}  # like the smallest group that hosts it
    gpus = larger.placed_gpus
    assert len(set(gpus)) == len(gpus)
    assert shares(larger) == pytest.approx(shares(shared))


def test_relief_ends_where_no_gpu_is_left() -> None:
    """If it fails, a GPU is given to two groups."""
    deployment = deployed(use("alpha", count=3, rate_rps=10.0), num_gpus=4)
    assert len(relieved(PlacementRules(problem(4)), deployment, ["alpha"], 5).placed_gpus) == 4
