"""Counting requests in time without the rest of the simulation: the same counts as the full simulator.

If these fail, a search for goodput optimises something else than what plans are judged by.
"""

from __future__ import annotations

import numpy as np
import pytest

from muplan.plan import Group
from muplan.problem.problem import Problem
from muplan.serving.in_time import PassBook, is_countable
from muplan.serving.metrics import measure
from muplan.serving.simulator import simulate
from muplan.workload import Controller, QueueOrder, Rejection, Routing, Serving
from tests import serving_cases as cases

ARRIVAL = Serving(
    routing=Routing.LEAST_LAST_STAGE, rejection=Rejection.AT_ARRIVAL, overhead_s=0.011, stage_overhead=0.009
)
DISPATCH = Serving(rejection=Rejection.AT_DISPATCH, overhead_s=0.003)
RULES = {
    "at-arrival": ARRIVAL,
    "at-arrival-shortest": ARRIVAL.model_copy(update={"routing": Routing.SHORTEST_EXPECTED_COMPLETION}),
    "at-dispatch": DISPATCH,
    "at-dispatch-least-last": DISPATCH.model_copy(update={"routing": Routing.LEAST_LAST_STAGE}),
    "at-dispatch-edf": DISPATCH.model_copy(update={"queue_order": QueueOrder.EDF}),
}
CUTS = ([4], [1, 3], [2, 1, 1], [1, 1, 1, 1])


def kinds_of_groups(rng: np.random.Generator) -> tuple[Problem, list[dict[int, Group]]]:
    """Five services, with transfers between stages, and groups of one to four stages that host one each."""
    services = []
    for index, own_s in enumerate(rng.uniform(0.01, 0.06, 5)):
        limit_s = float(rng.uniform(1.5, 6)) * 4 * own_s
        services.append(
            cases.forward_service(f"s{index}", lambda *_, s=own_s: s, num_clusters=4, limit_s=limit_s)
        )
    kinds = []
    for sizes in CUTS:
        ends = np.cumsum(sizes).tolist()
        clusters = [[(end - size, end)] for size, end in zip(sizes, ends, strict=True)]
        kinds.append(
            {
                number: cases.group("g", range(len(sizes)), [service.name], clusters=clusters)
                for number, service in enumerate(services)
            }
        )
    return cases.problem(services, num_gpus=24), kinds


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("seed", range(6))
def test_counts_are_those_of_the_full_simulator(rules: str, seed: int) -> None:
    """Random placements under bursty overload: requests in time by service, and served by group."""
    rng, serving = np.random.default_rng(seed), RULES[rules]
    problem, kinds = kinds_of_groups(rng)
    chosen = rng.integers(0, len(kinds), 5).tolist()
    hosted = [sorted({*rng.choice(5, 2).tolist(), place % 4}) for place in range(5)]
    groups = []
    for place, (kind, services) in enumerate(zip(chosen, hosted, strict=True)):
        size, one = len(CUTS[kind]), next(iter(kinds[kind].values()))
        clusters = [list(ranges) for ranges in one.replicas[0].stage_clusters]
        names = [f"s{number}" for number in services]
        gpus = range(4 * place, 4 * place + size)  # on one node, as the kinds
        groups.append(cases.group(f"g{place}", gpus, names, clusters=clusters))
    arrivals = np.cumsum(rng.gamma(1 / 16, 16 / rng.uniform(40, 160), 3000))
    trace = cases.trace(
        list(problem.services), arrivals, rng.integers(0, 5, 3000), duration_s=float(arrivals[-1]) + 1
    )
    book = PassBook(problem, kinds, serving)
    offered = book.offered(trace, trace.service.astype(np.int64), 1.0, 2.0)
    counts = book.count(book.placed(chosen, hosted), offered)
    records = simulate(
        problem,
        cases.deployment(groups, serving),
        trace,
        rng=np.random.default_rng(0),
        warm_up_s=1.0,
        cool_down_s=2.0,
    )
    assert counts.in_time.tolist() == [one.num_within for one in measure(records, problem).services]
    served = np.bincount(records.group[~records.rejected], minlength=len(groups))
    assert counts.served.tolist() == served.tolist()
    assert 0.02 < records.rejected.mean() < 0.98


def test_only_rules_that_are_followed_are_counted() -> None:
    """Rules that the counts do not follow are refused, so that the full simulator is used."""
    assert is_countable(ARRIVAL)
    assert is_countable(DISPATCH)
    for changed in (
        {"rejection": Rejection.NONE},
        {"routing": Routing.ROUND_ROBIN},
        {"queue_order": QueueOrder.SJF},
        {"batch_timeout_s": 0.01},
        {"controller": Controller(policy="miad")},
    ):
        assert not is_countable(DISPATCH.model_copy(update=changed))
        assert not is_countable(ARRIVAL.model_copy(update=changed))
    assert not is_countable(ARRIVAL.model_copy(update={"queue_order": QueueOrder.EDF}))
