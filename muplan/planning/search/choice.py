"""The choice of a deployment: improve the best starts under simulation, judge the best of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from muplan.plan import Deployment, Prediction
from muplan.planning.baselines.placement import model_parallel_placement
from muplan.planning.baselines.uniform import Uniform
from muplan.planning.search.ascent import ascend
from muplan.planning.search.descent import descend
from muplan.planning.search.evaluation import Evaluation
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Trial, Tuning, merit
from muplan.serving.prediction import t_quantile

_JUDGEMENTS = 3

_KEPT_STARTS = 4
"""Starts that are simulated again on more traces after a judgement, where so many simulations are made."""

_Start = tuple[Trial | None, Deployment, Evaluation]
"""A trial (none for a placement that no solver made), and what was made of its deployment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The deployment that was judged good, and the trial it comes from (none: a placement)."""

    trial: Trial | None
    deployment: Deployment
    evaluation: Evaluation
    prediction: Prediction
    num_judged: int


def choose(search: Search, tuning: Tuning, uniform: Uniform | None) -> Chosen | None:
    """Lower the best starts under simulation and judge the best; None where none holds.

    If the judgement misses a target, the search has seen too little: the choice is made again on more
    training traces and with more caution; at last the safest start is judged as it is.
    """
    starts: list[_Start] = [(trial, trial.deployment, trial.evaluation) for trial in tuning.trials]
    if uniform is not None:
        starts.append((uniform.trial, uniform.deployment, uniform.evaluation))
    judged: list[_Start] = []
    for number in range(1, _JUDGEMENTS + 1):
        caution = _caution(search, number)
        if number > 1:
            search.judge.see_more()
            starts = _seen_again(search, [*judged, *starts], caution)
        starts += _ascents(search, starts, caution)
        if not any(evaluation.holds(caution) for _, _, evaluation in starts):
            starts += _placements(search)
        found = _lowered(search, starts, caution)
        if not found:
            break
        search.tell("judging", number=number, total=_JUDGEMENTS)
        best = min(found, key=lambda item: merit(item[2], search.goals))
        chosen = _judged(search, best, number)
        if chosen is not None:
            return chosen
        judged = [best]
    return _safest(search, starts)


def _caution(search: Search, number: int) -> float:
    """Standard errors above target that training must show before the ``number``-th judgement.

    One more each time. The more services, the more of them a judgement could find short by chance: so many
    that one of all is, where each were just so far above its target; by Student's t, as the errors are
    themselves estimated from few traces.
    """
    part = 1.0 - 1.0 / max(2, len(search.problem.services))
    by_chance = t_quantile(search.judge.num_traces - 1, part)
    return max(1.0, by_chance) + number - 1.0


def _judged(search: Search, start: _Start, number: int) -> Chosen | None:
    """The start as the ``number``-th that was judged; None where it misses a target."""
    trial, deployment, evaluation = start
    prediction = search.judge.predict(deployment)
    if not search.judge.meets_targets(deployment, prediction):
        return None
    return Chosen(
        trial=trial,
        deployment=deployment,
        evaluation=evaluation,
        prediction=prediction,
        num_judged=number,
    )


def _seen_again(search: Search, starts: Sequence[_Start], caution: float) -> list[_Start]:
    """The starts nearest to holding, the cheapest first, on all training traces there are now."""
    near = sorted(starts, key=lambda start: (start[2].shortfall(caution), merit(start[2], search.goals)))
    kept = near[: min(_KEPT_STARTS, search.affordable_evaluations)]
    return [(trial, deployment, search.judge.evaluate(deployment)) for trial, deployment, _ in kept]


def _safest(search: Search, starts: Sequence[_Start]) -> Chosen | None:
    """Where everything cheap misses a target when judged: the safest start as it is, or maximum clock."""
    by_safety = sorted(starts, key=lambda start: start[2].shortfall(_caution(search, _JUDGEMENTS)))[:1]
    for extra, start in enumerate([*by_safety, *_placements(search)], start=1):
        chosen = _judged(search, start, _JUDGEMENTS + extra)
        if chosen is not None:
            return chosen
    return None


def _lowered(search: Search, starts: Sequence[_Start], caution: float) -> list[_Start]:
    """The best two starts that hold, lowered under simulation."""
    holding = sorted(
        (start for start in starts if start[2].holds(caution)),
        key=lambda start: merit(start[2], search.goals),
    )
    budgets = (search.affordable_evaluations, search.affordable_evaluations // 2)
    return [
        (trial, *descend(search, deployment, evaluation, max_evaluations=budget, caution=caution))
        for budget, (trial, deployment, evaluation) in zip(budgets, holding, strict=False)
    ]


def _ascents(search: Search, starts: Sequence[_Start], caution: float) -> list[_Start]:
    """Raise what falls short but is cheaper than all that holds: the start with the least shortfall."""
    holding = [merit(evaluation, search.goals) for _, _, evaluation in starts if evaluation.holds(caution)]
    limit = min(holding, default=(math.inf,))
    cheaper = [
        start for start in starts if not start[2].holds(caution) and merit(start[2], search.goals) < limit
    ]
    near = sorted(cheaper, key=lambda start: start[2].shortfall(caution))[:1]
    return [
        (trial, *ascend(search, deployment, evaluation, caution=caution))
        for trial, deployment, evaluation in near
    ]


def _placements(search: Search) -> list[_Start]:
    """Where no solution holds: the placement at maximum clock that uses the whole fleet."""
    if search.problem.workload.admits_part or not search.affords_more:
        return []
    everything = {service.name: 1.0 for service in search.problem.services}
    found = model_parallel_placement(search.problem, search.builder, search.judge, everything)
    return [] if found is None or not search.builder.rules.allows(found[0]) else [(None, *found)]
