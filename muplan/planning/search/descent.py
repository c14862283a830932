"""Descent under simulation: lower clocks and park groups while every service stays at its target.

The guard is an estimate, so a solution may leave room that only simulation sees. Nearly every move
lowers what the fleet can do; a move that fails once is therefore not tried again.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.search.evaluation import Evaluation
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import merit
from muplan.problem.problem import Problem
from muplan.serving.groups import clock_grid

_PARKED_PER_KIND = 4

Move = tuple[str, tuple[str, ...]]
"""What to do (``park``, ``park-and-raise`` all others, ``lower``), and the names of the groups."""


def descend(
    search: Search,
    deployment: Deployment,
    evaluation: Evaluation,
    *,
    max_evaluations: int,
    caution: float = 1.0,
    lower_clocks: bool = True,
) -> tuple[Deployment, Evaluation]:
    """Improve a deployment that holds, move by move; the result holds too.

    Parameters
    ----------
    max_evaluations
        Simulations to spend.
    caution
        As `Evaluation.holds`.
    lower_clocks
        Whether clocks may be lowered; if not, groups are only parked.
    """
    failed: set[Move] = set()
    spent = 0
    progress = True
    while progress and spent < max_evaluations:
        progress = False
        for move in list(_moves(deployment, lower_clocks)):
            trial = None if move in failed else _apply(search.problem, deployment, move)
            if trial is None or not search.builder.rules.allows(trial):
                continue
            if spent >= max_evaluations:
                break
            spent += 1
            search.tell("lowering", number=spent, total=max_evaluations)
            found = search.judge.evaluate(trial, stop_early=True)
            if found.holds(caution) and merit(found, search.goals) < merit(evaluation, search.goals):
                deployment, evaluation, progress = trial, found, True
                break
            failed.add(move)
    return deployment, evaluation


def _moves(deployment: Deployment, lower_clocks: bool) -> Iterator[Move]:
    """Lower all clocks; park a group of each kind; lower kinds, halves of them, quarters … single groups.

    Of groups alike only the first and the last few are tried: where these fail, the others would.
    """
    if lower_clocks:
        yield "lower", tuple(group.name for group in deployment.groups)
    kinds = _kinds(deployment)
    for names in kinds:
        for name in names[:_PARKED_PER_KIND]:
            yield "park", (name,)
    if not lower_clocks:
        return
    for names in kinds:
        yield "park-and-raise", (names[0],)
    for names in kinds:
        size = len(names)
        while size >= 1:
            yield "lower", tuple(names[:size])
            yield "lower", tuple(names[-size:])
            size //= 2


def _kinds(deployment: Deployment) -> list[list[str]]:
    """Names of groups alike in pool, shape and clocks; those with the least shares first."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for group in sorted(deployment.groups, key=lambda item: sum(replica.share for replica in item.replicas)):
        key = (group.pool, tuple(stage.clock_mhz for stage in group.stages), group.tensor_parallel)
        alike.setdefault(key, []).append(group.name)
    return list(alike.values())


def _apply(problem: Problem, deployment: Deployment, move: Move) -> Deployment | None:
    kind, names = move
    if kind == "lower":
        groups = [
            shift_clock(problem, group, -1) if group.name in names else group for group in deployment.groups
        ]
        return (
            None
            if groups == list(deployment.groups)
            else deployment.model_copy(update={"groups": tuple(groups)})
        )
    parked = without_group(deployment, names[0])
    if kind == "park" or parked is None:
        return parked
    raised = tuple(shift_clock(problem, group, 1) for group in parked.groups)
    return parked.model_copy(update={"groups": raised})


def shift_clock(problem: Problem, group: Group, steps: int, only: Container[int] | None = None) -> Group:
    """The group with every stage ``steps`` clocks higher on the grid of its clocks, as far as that goes.

    ``only`` names the stages to shift.
    """
    clocks = _clocks(problem, group)
    stages = tuple(
        _shifted(stage, clocks, steps) if only is None or index in only else stage
        for index, stage in enumerate(group.stages)
    )
    return group.model_copy(update={"stages": stages})


def _clocks(problem: Problem, group: Group) -> list[int]:
    usable = problem.clocks_mhz(group.pool)
    return [clock for clock in clock_grid(problem, group) if clock in usable]


def _shifted(stage: Stage, clocks: Sequence[int], steps: int) -> Stage:
    if stage.clock_mhz not in clocks:
        return stage
    index = min(max(clocks.index(stage.clock_mhz) + steps, 0), len(clocks) - 1)
    return stage.model_copy(update={"clock_mhz": clocks[index]})


def without_group(deployment: Deployment, name: str) -> Deployment | None:
    """The deployment without a group, its demand on the others; None where a service has no other."""
    gone = next(group for group in deployment.groups if group.name == name)
    rest = [group for group in deployment.groups if group.name != name]
    for replica in gone.replicas:
        shares = [
            other.share for group in rest for other in group.replicas if other.service == replica.service
        ]
        if not shares:
            return None
        factor = 1.0 + replica.share / sum(shares)
        rest = [_scaled(group, replica.service, factor) for group in rest]
    return deployment.model_copy(update={"groups": tuple(rest)})


def _scaled(group: Group, service: str, factor: float) -> Group:
    replicas: tuple[Replica, ...] = tuple(
        replica.model_copy(update={"share": min(replica.share * factor, 1.0)})
        if replica.service == service
        else replica
        for replica in group.replicas
    )
    return group.model_copy(update={"replicas": replicas})
