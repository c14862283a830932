"""The method for goodput where late requests are rejected: placements searched under simulation.

The stated model knows no rejection: it admits part of the demand beforehand. Where serving sheds what would
be late, that would only turn requests away that there may be time for. So all is let in, and the placement
with most requests in time is searched, from those of AlpaServe's search on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from muplan.plan import Reason, Status
from muplan.planning.baselines.alpaserve import cuts, search_alpaserve
from muplan.planning.baselines.placement import alpaserve_scorer, capped_menu
from muplan.planning.baselines.replication import replicate, simulated_need
from muplan.planning.baselines.uniform import Uniform
from muplan.planning.methods.limits import limit_faults
from muplan.planning.methods.name import GOODPUT_SEARCH
from muplan.planning.methods.outcome import Found, Missed, Outcome, simulated_summary
from muplan.planning.search.goodput import best_of, climb_by_halves
from muplan.planning.search.placement import Placement, Site
from muplan.planning.search.scoring import CountingScorer, Scorer, Training, make_scorer
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Tuning, first_guard, make_model

_NUM_TRACES, _REQUESTS = 16, 8_000
"""Traces of a search, and as many again that decide whether what it found is better than where it began."""
_ERRORS = 2.0
"""Standard errors by which it must be."""
_NUM_STARTS = 8
_BUDGET, _MOST_GPUS = 230_000, 64
"""Requests to be simulated for every GPU of the fleet, up to so many, and every pair of kinds.

Services of equal times and limits are of one kind: which of them shares a group with which matters little.
"""


def unless_shedding(choose: Callable[[Search], Outcome]) -> Callable[[Search], Outcome]:
    """The method of a stated model, which gives way where serving sheds load."""

    def chosen(search: Search) -> Outcome:
        return choose_goodput(search) if search.problem.workload.sheds_load else choose(search)

    return chosen


def choose_goodput(search: Search) -> Outcome:
    """The placement with most requests in time, judged."""
    problem = search.problem
    tuning = Tuning(last_guard=first_guard(problem, search.builder))
    search.tell("placing")
    menu = capped_menu(problem, search.builder)
    site = Site(problem, search.builder.supplies, menu)
    found = search_goodput(site, seed=search.seed) if menu else None
    deployment = None if found is None else site.deployment(found, {}, problem.workload.serving)
    if deployment is None:
        fault = Reason(subject="fleet", text="has no placement of every service at one clock under the caps.")
        return Missed(status=Status.INFEASIBLE, tuning=tuning, faults=(fault,))
    faults = limit_faults(search.builder.rules, deployment)
    if faults:
        return Missed(status=Status.INFEASIBLE, tuning=tuning, faults=faults)
    evaluation = search.judge.evaluate(deployment)
    search.tell("judging")
    clock_mhz = max(stage.clock_mhz for group in deployment.groups for stage in group.stages)
    return Found(
        deployment=deployment,
        evaluation=evaluation,
        prediction=search.judge.predict(deployment),
        model=make_model(problem, search.builder, tuning.last_guard),
        summary=simulated_summary(search, GOODPUT_SEARCH, evaluation),
        uniform=Uniform(clock_mhz=clock_mhz, trial=None, deployment=deployment, evaluation=evaluation),
    )


def search_goodput(site: Site, *, seed: int) -> Placement | None:
    """The best placement found under the workload's rules; None where no placement hosts every service.

    On traces that the search has not seen, what it found must be ahead of where it began, and that of
    AlpaServe's own choice, by more than chance would have it.
    """
    training = Training(seed=seed, num_traces=_NUM_TRACES, num_requests=_REQUESTS, admitted={})
    scorer = make_scorer(site, training)
    unseen = scorer.on(replace(training, first=_NUM_TRACES))
    placements = _placements(site, scorer, seed)
    starts = best_of(scorer, placements, _NUM_STARTS)
    if not starts:
        return None
    num_gpus = min(sum(supply.num_free for supply in site.supplies), _MOST_GPUS)
    kinds = _num_kinds(site)
    budget = _BUDGET * num_gpus * kinds * (kinds + 1) // 2
    found = climb_by_halves(site, scorer, starts, budget=budget, rng=np.random.default_rng(seed))
    standing, shares = placements[0], unseen.score(placements[0]).share_by_trace
    for rival in (starts[0].placement, found.placement):
        rivals = unseen.score(rival).share_by_trace
        if (rivals - shares).mean() > _ERRORS * (rivals - shares).std(ddof=1) / _NUM_TRACES**0.5:
            standing, shares = rival, rivals
    return standing


def _placements(site: Site, scorer: Scorer, seed: int) -> list[Placement]:
    """What AlpaServe's search makes; and its replication on the same cuts under the workload's rules."""
    made = [item.placement for item in search_alpaserve(site, alpaserve_scorer(site, seed, {}))]
    if isinstance(scorer, CountingScorer):  # the full simulator would take too long
        services = tuple(range(site.num_services))
        gpus = tuple(supply.num_free for supply in site.supplies)
        filled = [
            replicate(site, cut, services, simulated_need(site, scorer)) for cut in cuts(site, services, gpus)
        ]
        made += [placement for placement in filled if site.is_whole(placement)]
    return made


def _num_kinds(site: Site) -> int:
    """Kinds of services: equal in their times on every shape, and in their limits."""
    return len(
        {
            (
                site.problem.services[service].limits,
                tuple(each[service].bottleneck_s if service in each else None for each in site.estimates),
            )
            for service in range(site.num_services)
        }
    )
