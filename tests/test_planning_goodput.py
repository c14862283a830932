"""Goodput where serving sheds load: the search over placements, and the plans it makes.

If these fail, a plan for goodput serves less than AlpaServe's placement would, or cannot be deployed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from muplan.planning.baselines.alpaserve import search_alpaserve
from muplan.planning.baselines.placement import alpaserve_scorer
from muplan.planning.methods.goodput import search_goodput
from muplan.planning.methods.name import MethodName
from muplan.planning.search.goodput import Scored, best_of, climb
from muplan.planning.search.placement import Host, Placement, Site
from muplan.planning.search.reshaping import MOVES, Draw
from muplan.planning.search.scoring import CountingScorer, Scorer, SimulatingScorer, Training, make_scorer
from muplan.planning.solve import Planned, Refused, solve
from muplan.problem.problem import Problem
from muplan.serving.prediction import interval
from muplan.verify.claims import due_attainment
from muplan.verify.constraints import check_placement, demand_served, power_cap
from muplan.workload import QueueOrder, Rejection, Serving
from tests.test_planning_placement import SHEDDING, bursty_problem, site_of
from validation import alpaserve

OWN_RULES = Serving(queue_order=QueueOrder.EDF, rejection=Rejection.AT_DISPATCH, max_batch=1)
TRAINING = Training(seed=0, num_traces=4, num_requests=1500, admitted={})


def start_of(site: Site, scorer: Scorer) -> Scored:
    ranked = search_alpaserve(site, alpaserve_scorer(site, 0, {}))
    return best_of(scorer, [item.placement for item in ranked], 1)[0]


def climbed(problem: Problem, budget: int = 2_000_000) -> tuple[Site, Scored, Scored]:
    site = site_of(problem)
    scorer = make_scorer(site, TRAINING)
    start = start_of(site, scorer)
    return site, start, climb(site, scorer, start, budget=budget, rng=np.random.default_rng(0))


@pytest.mark.parametrize("serving", [SHEDDING, OWN_RULES])
def test_the_search_never_ends_below_its_start(serving: Serving) -> None:
    """On its own traces; and equal inputs give equal placements."""
    site, start, end = climbed(bursty_problem(8, gigabytes=3, serving=serving))
    assert end.score.share >= start.score.share
    again = climbed(bursty_problem(8, gigabytes=3, serving=serving))[2]
    assert end.placement == again.placement
    assert site.gpus(end.placement) is not None


def test_the_search_repairs_a_poor_start() -> None:
    """Each service on a GPU of its own: the search lets them share, and serves several points more."""
    site = site_of(bursty_problem(5, gigabytes=3))
    single = site.shape_number("v100", 1, 1)
    assert single is not None
    scorer = make_scorer(site, TRAINING)
    poor: Placement = tuple(Host(single, (service,)) for service in range(5))
    start = Scored(placement=poor, score=scorer.score(poor))
    end = climb(site, scorer, start, budget=4_000_000, rng=np.random.default_rng(0))
    assert end.score.share > start.score.share + 0.03


def test_moves_keep_placements_whole() -> None:
    """Whatever is drawn: memory holds, every service stays hosted, and no GPU is won or lost by a move."""
    site = site_of(bursty_problem(8, gigabytes=3, tensor_parallel=(1, 2)))
    rng = np.random.default_rng(1)
    placement = search_alpaserve(site, alpaserve_scorer(site, 0, {}))[0].placement
    made = dict.fromkeys(MOVES, 0)
    for step in range(600):
        move = MOVES[step % len(MOVES)]
        found = move(placement, Draw(site=site, rng=rng, need=rng.random(5) * 100))
        if found is None:
            continue
        made[move] += 1
        assert all(site.fits(host) for host in found)
        assert {service for host in found for service in host.services} == set(range(5))
        assert sum(site.shapes[host.shape].num_gpus for host in found) == 8
        placement = found
    assert min(made.values()) > 0


@pytest.mark.parametrize("serving", [SHEDDING, OWN_RULES])
def test_plans_let_everything_in_and_are_legal(serving: Serving) -> None:
    """No admission shares; every constraint is kept; goodput is at least that of AlpaServe's placement."""
    problem = bursty_problem(4, gigabytes=3, serving=serving)
    plan, rival = (
        solve(problem, solver=name, with_baselines=False) for name in (MethodName.EXACT, MethodName.ALPASERVE)
    )
    assert isinstance(plan, Planned)
    assert isinstance(rival, Planned)
    assert plan.deployment.admitted == {}
    broken = [*check_placement(problem, plan.deployment), *demand_served(problem, plan.deployment)]
    assert broken == []
    assert due_attainment(problem, plan.deployment, "s0") == 0.0
    assert plan.prediction.goodput_rps.high >= rival.prediction.goodput_rps.mean
    assert plan.solution.achieved[0].value <= plan.solution.achieved[0].bound * 1.2


def test_a_cap_on_the_fleet_lowers_the_clock() -> None:
    """All GPUs at their peak stay below the cap; one that no clock keeps is refused."""
    problem = bursty_problem(4, gigabytes=3)
    fleet = problem.workload.fleet
    for cap_w, is_possible in ((900.0, True), (150.0, False)):
        capped = fleet.model_copy(update={"power_cap_w": cap_w})
        workload = problem.workload.model_copy(update={"fleet": capped})
        limited = Problem(workload=workload, devices=problem.devices, services=problem.services)
        result = solve(limited, with_baselines=False)
        assert isinstance(result, Planned if is_possible else Refused)
        if isinstance(result, Planned):
            assert list(power_cap(limited, result.deployment)) == []
            clocks = {stage.clock_mhz for group in result.deployment.groups for stage in group.stages}
            assert max(clocks) < 1530


def test_rules_that_counts_do_not_follow_are_simulated_in_full() -> None:
    """Another queue order; where both apply, the scores are the same."""
    problem = bursty_problem(4, gigabytes=3, serving=OWN_RULES)
    site = site_of(problem)
    counting, full = CountingScorer(site, OWN_RULES, TRAINING), SimulatingScorer(site, TRAINING)
    placement = search_alpaserve(site, alpaserve_scorer(site, 0, {}))[0].placement
    one, other = counting.score(placement), full.score(placement)
    assert one.in_time.tolist() == other.in_time.tolist()
    assert one.served.tolist() == other.served.tolist()
    assert np.array_equal(one.share_by_trace, other.share_by_trace)
    shortest_first = OWN_RULES.model_copy(update={"queue_order": QueueOrder.SJF})
    other_site = site_of(bursty_problem(4, gigabytes=3, serving=shortest_first))
    assert isinstance(make_scorer(other_site, TRAINING), SimulatingScorer)


def test_the_published_case_is_reproduced() -> None:
    """AlpaServe's code, 8 GPUs × 8 services of bert-1.3b at 40 req/s: 0.920 in time on fresh traces."""
    data = Path(__file__).parent.parent.parent / "shared" / "data"
    if not (data / alpaserve.TABLE).exists():
        pytest.skip(f"{data / alpaserve.TABLE} is not there")
    ground = alpaserve.GROUNDS[0]
    with tempfile.TemporaryDirectory() as folder:
        study = alpaserve.Study(data, Path(folder))
        problem = study.problem(ground, ground.rate_rps, alpaserve.ALPASERVE)
        theirs = alpaserve.find_alpaserve(problem).deployment(alpaserve.ALPASERVE)
        reproduced = interval(alpaserve.shares(problem, theirs)).mean
        searched = search_goodput(alpaserve.site_of(problem), seed=0)
        assert searched is not None
        assert reproduced == pytest.approx(ground.goodput, abs=0.01)
        ours = alpaserve.Found(site=alpaserve.site_of(problem), placement=searched, search_s=0.0)
        assert (
            interval(alpaserve.shares(problem, ours.deployment(alpaserve.ALPASERVE))).mean
            >= reproduced - 1e-9
        )
