"""μ-Serve-style planning: place by sensitivity on all GPUs, then lower clocks greedily under simulation.

After μ-Serve ("Power-aware Deep Learning Model Serving with μ-Serve", USENIX ATC 2024): operators of like
sensitivity are grouped and placed model-parallel, and each GPU is clocked as low as the latency
objectives allow, the least sensitive first; no GPU is parked. Its formulas are not public beyond that:
the sensitivity score, the row of services, the occupancies, the shapes tried and the order of the steps
are muplan's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from muplan.plan import Deployment, Group, Reason, Status
from muplan.planning.baselines.sensitivity import SensitivityPlacement, sensitivity
from muplan.planning.estimates.estimate import Shape
from muplan.planning.methods.name import MethodName
from muplan.planning.methods.outcome import Missed, Outcome
from muplan.planning.methods.placed import admit, judge_deployment
from muplan.planning.search.descent import shift_clock
from muplan.planning.search.evaluation import Evaluation
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Tuning, first_guard, merit
from muplan.problem.problem import Problem

_STARTS = 2
"""Placements whose clocks are lowered: those that hold on least power, else those that fall least short."""
_CAUTIONS = (1.0, 2.0, 3.0)
"""As those of `muplan.planning.search.choice`."""
_LOWERED_PER_START = 4
"""Simulations of lowered clocks for each start, in units of what a descent may spend."""

Placed = tuple[Deployment, Evaluation]
Part = tuple[str, int]
"""A stage of a group: a set of GPUs with one clock."""


def choose_mu_serve(search: Search) -> Outcome:
    """The placement and clocks of least power that hold; judged, and with more caution where that fails."""
    tuning = Tuning(last_guard=first_guard(search.problem, search.builder))
    starts = _starts(search)
    if not starts:
        fault = Reason(subject="fleet", text="mu-serve finds no place for every service on the fleet.")
        return Missed(status=Status.INFEASIBLE, tuning=tuning, faults=(fault,))
    outcome: Outcome | None = None
    for caution in _CAUTIONS:
        lowered = [_lowered(search, placed, caution) for placed in starts if placed[1].holds(caution)]
        if not lowered:
            break
        best = min(lowered, key=lambda placed: merit(placed[1], search.goals))
        outcome = judge_deployment(search, MethodName.MU_SERVE, *best, tuning)
        if not isinstance(outcome, Missed):
            return outcome
    safest = min(starts, key=lambda placed: placed[1].shortfall(_CAUTIONS[-1]))
    return judge_deployment(search, MethodName.MU_SERVE, *safest, tuning)


def _starts(search: Search) -> list[Placed]:
    """The best placements at maximum clock on the training traces, over shapes and reach."""
    placement = SensitivityPlacement(search.problem, search.builder)
    found: list[Placed] = []
    for number, form in enumerate(placement.forms, start=1):
        search.tell("placing", number=number, total=len(placement.forms))
        reach, before = 0, None
        while (deployment := placement.place(form, reach)) not in (None, before):
            before, reach = deployment, 2 * reach + 1
            kept = _under_caps(search, deployment)
            found.append((kept, search.judge.evaluate(kept, stop_early=True)))
    found.sort(key=lambda placed: (placed[1].shortfall(), placed[1].power_w))
    starts = found[:_STARTS]
    if search.problem.workload.admits_part:
        return [placed if placed[1].holds() else admit(search, *placed) for placed in starts]
    return starts


def _under_caps(search: Search, deployment: Deployment) -> Deployment:
    """All clocks lowered alike until no cap on power is exceeded, or as far as they go."""
    while {"power_cap", "node_power_cap"} & set(search.builder.rules.broken(deployment)):
        groups = tuple(shift_clock(search.problem, group, -1) for group in deployment.groups)
        if groups == deployment.groups:
            break
        deployment = deployment.model_copy(update={"groups": groups})
    return deployment


def _lowered(search: Search, placed: Placed, caution: float) -> Placed:
    """Clocks lowered step by step while every service holds, the least sensitive stages first.

    All stages are lowered together as long as that holds; then halves of them, quarters, single ones.
    A stage that alone cannot be lowered stays.
    """
    waiting = [_by_sensitivity(search, placed[0])]
    spent, most = 0, _LOWERED_PER_START * search.max_evaluations
    while waiting and spent < most:
        parts = waiting.pop(0)
        trial = _shifted(search, placed[0], parts)
        if trial == placed[0]:
            continue
        spent += 1
        search.tell("lowering", number=spent, total=most)
        found = search.judge.evaluate(trial, stop_early=True)
        if found.holds(caution) and merit(found, search.goals) < merit(placed[1], search.goals):
            placed = trial, found
            waiting.insert(0, parts)
        elif len(parts) > 1:
            middle = len(parts) // 2
            waiting[:0] = [parts[:middle], parts[middle:]]
    return placed


def _by_sensitivity(search: Search, deployment: Deployment) -> list[Part]:
    """All stages, the least sensitive first: the mean over what they host, weighted by its requests."""
    score: dict[Part, float] = {}
    for group in deployment.groups:
        for stage in range(len(group.stages)):
            score[group.name, stage] = _sensitivity(search.problem, group, stage)
    return sorted(score, key=lambda part: (score[part], part))


def _sensitivity(problem: Problem, group: Group, stage: int) -> float:
    shape = Shape(pool=group.pool, tensor_parallel=group.tensor_parallel, num_stages=len(group.stages))
    weighted = total = 0.0
    for replica in group.replicas:
        service = problem.service(replica.service)
        weight = replica.share * service.rate_rps
        weighted += weight * sensitivity(service, shape, replica.stage_clusters[stage])
        total += weight
    return weighted / total


def _shifted(search: Search, deployment: Deployment, parts: Sequence[Part]) -> Deployment:
    """The deployment with the clock of each of these stages one step lower."""
    groups = []
    for group in deployment.groups:
        mine = {stage for name, stage in parts if name == group.name}
        groups.append(shift_clock(search.problem, group, -1, only=mine) if mine else group)
    return deployment.model_copy(update={"groups": tuple(groups)})
