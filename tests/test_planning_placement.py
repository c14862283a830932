"""Placements: AlpaServe's search, and what a placement becomes.

If these fail, plans are held against a weaker rival than AlpaServe, or a search places what does not fit.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from muplan.planning.baselines.alpaserve import alpaserve_rules, search_alpaserve
from muplan.planning.baselines.placement import max_clock_menu, model_parallel_placement
from muplan.planning.baselines.replication import Need, replicate
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.placement import Host, Placement, Site
from muplan.planning.search.scoring import CountingScorer, Training
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem
from muplan.verify.constraints import check_placement
from muplan.workload import Goal, Rejection, Routing, Serving
from tests.synthetic import ClusterShape, forward_problem, forward_profile, forward_service

SHEDDING = Serving(routing=Routing.LEAST_LAST_STAGE, rejection=Rejection.AT_ARRIVAL, max_batch=1)


def bursty_problem(
    num_gpus: int = 4,
    gigabytes: int = 3,
    serving: Serving = SHEDDING,
    tensor_parallel: tuple[int, ...] = (1,),
) -> Problem:
    """Five bursty services of four clusters of so many GB each, on GPUs of 32 GB."""
    shape = ClusterShape(weight_bytes=gigabytes * 10**9)
    services = [
        forward_service(
            f"s{index}",
            profile=forward_profile(f"m{index}", [shape], tensor_parallel=tensor_parallel),
            rate_rps=24.0 / (1 + index) ** 0.5,
            limit_s=0.2,
            cv=4.0,
        )
        for index in range(5)
    ]
    return forward_problem(services, num_gpus=num_gpus, objective=Goal.GOODPUT, serving=serving)


def site_of(problem: Problem) -> Site:
    builder = CandidateBuilder(problem)
    return Site(problem, builder.supplies, max_clock_menu(problem, builder))


def scorer_of(site: Site) -> CountingScorer:
    training = Training(seed=0, num_traces=2, num_requests=4000, admitted={})
    return CountingScorer(site, alpaserve_rules(site.problem.workload.serving), training)


def shapes_of(site: Site, placement: Placement) -> list[tuple[int, int]]:
    shapes = [site.shapes[host.shape] for host in placement]
    return [(shape.tensor_parallel, shape.num_stages) for shape in shapes]


def test_alpaserve_multiplexes_what_one_gpu_cannot_hold() -> None:
    """12 GB each, two to a GPU: pipelines host all five, which bursts ask for (their §3.1)."""
    site = site_of(bursty_problem())
    best = search_alpaserve(site, scorer_of(site))[0]
    assert {stages for _, stages in shapes_of(site, best.placement)} != {1}
    assert all(len(host.services) > 2 for host in best.placement)


def test_alpaserve_takes_the_best_of_all_partitions() -> None:
    """No partition filled by the same heuristic is more often in time; equal inputs give equal placements."""
    site = site_of(bursty_problem())
    scorer = scorer_of(site)
    ranked = search_alpaserve(site, scorer)
    shares = [scorer.score(item.placement, (0,)).share for item in ranked]
    assert shares[0] >= max(shares) - 1e-4  # but for the little that each replica counts
    assert len({tuple(shapes_of(site, item.placement)) for item in ranked}) == 3  # 4 × 1, 2 × 2, 1 × 4
    assert ranked == search_alpaserve(site, scorer_of(site))


@pytest.mark.parametrize("num_gpus", [1, 3, 4, 7, 12])
def test_placements_are_legal(num_gpus: int) -> None:
    """Fleets that no group size divides; every service is hosted, and `verify` finds no fault."""
    problem = bursty_problem(num_gpus, gigabytes=1)
    placed = model_parallel_placement(problem, CandidateBuilder(problem), Judge(problem, seed=0), {})
    assert placed is not None
    deployment = placed[0]
    assert list(check_placement(problem, deployment)) == []
    assert len(set(deployment.placed_gpus)) == num_gpus
    shares = {service.name: 0.0 for service in problem.services}
    for replica in itertools.chain.from_iterable(group.replicas for group in deployment.groups):
        shares[replica.service] += replica.share
    assert all(share == pytest.approx(1.0) for share in shares.values())


def test_a_service_that_fits_nowhere_leaves_no_placement() -> None:
    """Five models of 24 GB on one GPU."""
    problem = bursty_problem(1, gigabytes=6)
    judge = Judge(problem, seed=0)
    assert model_parallel_placement(problem, CandidateBuilder(problem), judge, {}) is None


def test_replication_gives_to_the_neediest_on_the_idlest_group() -> None:
    """Two to a GPU; the need is fixed: the most needed goes to the idlest group, then to the next."""
    site = site_of(bursty_problem(2))
    single = site.shape_number("v100", 1, 1)
    assert single is not None
    needs = Need(services=np.array([1.0, 5.0, 3.0, 2.0, 4.0]), groups=np.array([7.0, 6.0]))
    filled = replicate(site, (Host(single), Host(single)), range(5), lambda _: needs)
    assert [host.services for host in filled] == [(1, 4), (1, 4)]
    assert not site.fits(Host(single, (0, 1, 2)))
