"""Ascent under simulation: raise clocks and add groups until every service is at its target.

Where the guard was too hopeful the shortfall is often small and in few services. Each step simulates
what would help the service that falls shortest and takes the move that makes up most for its power.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from muplan.plan import Deployment, Group, Stage
from muplan.planning.placing.rules import PlacementRules
from muplan.planning.search.descent import shift_clock
from muplan.planning.search.evaluation import Evaluation
from muplan.planning.search.search import Search
from muplan.planning.search.widening import widen
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem

_LEAST_COST_W = 0.5
_KINDS_PER_STEP = 3
_SEVERAL = 4
"""Services that may fall short before one move is for all of them."""
_LEAST_SPENT = 8
"""Simulations to spend where their requests afford fewer: without them there may be no plan."""
_LONGEST_STEP = 8
"""Groups and clocks of a step, at most."""


def ascend(
    search: Search,
    deployment: Deployment,
    evaluation: Evaluation,
    *,
    caution: float = 1.0,
) -> tuple[Deployment, Evaluation]:
    """Improve a deployment that falls short; the result may still.

    Parameters
    ----------
    caution
        As `Evaluation.holds`.
    """
    is_scarce = search.judge.affordable(_LEAST_SPENT, least=0) < _LEAST_SPENT
    most = _LEAST_SPENT if is_scarce else search.affordable_evaluations
    spent, step = 0, 1
    while not evaluation.holds(caution) and spent < most:
        best: tuple[float, Deployment, Evaluation] | None = None
        for trial in _trials(search, deployment, evaluation, caution, step, for_all=is_scarce):
            spent += 1
            search.tell("raising", number=spent, total=most)
            found = search.judge.evaluate(trial)
            made_up = evaluation.shortfall(caution) - found.shortfall(caution)
            worth = made_up / max(found.power_w - evaluation.power_w, _LEAST_COST_W)
            if made_up > 0 and (best is None or worth > best[0]):
                best = worth, trial, found
            if is_scarce and found.holds(caution):
                break
        if best is None:
            break
        _, deployment, evaluation = best
        step = min(2 * step, _LONGEST_STEP)
    return deployment, evaluation


def _trials(
    search: Search,
    deployment: Deployment,
    evaluation: Evaluation,
    caution: float,
    step: int,
    *,
    for_all: bool,
) -> Iterator[Deployment]:
    """What to try next: moves for the service that falls shortest, or for all that do, if these are many.

    ``step`` groups or clocks at a time; ``for_all`` in any case.
    """
    problem, builder = search.problem, search.builder
    short = [name for name in evaluation.margins if evaluation.shortfall_of(name, caution) > 0]
    shortest = max(short, key=lambda name: evaluation.shortfall_of(name, caution))
    one_by_one = len(short) <= _SEVERAL and not for_all
    named = [shortest] if one_by_one else short
    larger = relieved(builder.rules, deployment, named, step)
    if larger is not deployment and builder.rules.allows(larger):
        yield larger
    if one_by_one:
        yield from _moves(problem, builder, deployment, shortest)
        return
    wider = deployment
    for service in short:
        wider = widen(problem, builder, wider, service) or wider
    if wider is not deployment:
        yield wider
    hosts = {
        group.name
        for group in deployment.groups
        if any(replica.service in short for replica in group.replicas)
    }
    yield from _raised(problem, builder, deployment, hosts, step)


def relieved(
    rules: PlacementRules, deployment: Deployment, short: Collection[str], number: int
) -> Deployment:
    """The deployment with ``number`` more groups for each of some services, which host these alone.

    Each is like the smallest group that hosts the service, and takes half of what that carries.
    """
    for service in (name for name in short for _ in range(number)):
        shares = {
            group: item.share
            for group in deployment.groups
            for item in group.replicas
            if item.service == service
        }
        smallest = min(shares, key=lambda group: (len(group.gpus), -shares[group]), default=None)
        gpus = None if smallest is None else next(_free_gpus(rules, deployment, smallest), None)
        if smallest is not None and gpus is not None:
            deployment = _with_clone(deployment, smallest, gpus, short)
    return deployment


def _raised(
    problem: Problem,
    builder: CandidateBuilder,
    deployment: Deployment,
    names: Collection[str],
    steps: int = 1,
) -> Iterator[Deployment]:
    """The deployment with the named groups some clocks higher, where there are any and the rules allow it."""
    groups = tuple(
        shift_clock(problem, group, steps) if group.name in names else group for group in deployment.groups
    )
    raised = deployment.model_copy(update={"groups": groups})
    if groups != deployment.groups and builder.rules.allows(raised):
        yield raised


def _moves(
    problem: Problem, builder: CandidateBuilder, deployment: Deployment, service: str
) -> Iterator[Deployment]:
    """Deployments that do more for a service: more hosts, higher clocks, or one more group like its own.

    All keep the rules of placement.
    """
    wider = widen(problem, builder, deployment, service)
    if wider is not None:
        yield wider
    hosts = [group for group in deployment.groups if any(item.service == service for item in group.replicas)]
    by_share = sorted(
        hosts, key=lambda group: -sum(item.share for item in group.replicas if item.service == service)
    )
    kinds: dict[tuple[object, ...], list[Group]] = {}
    for group in by_share:
        kind = (group.pool, group.tensor_parallel, tuple(stage.clock_mhz for stage in group.stages))
        kinds.setdefault(kind, []).append(group)
    parts = [hosts, *kinds.values()] if len(kinds) > 1 else list(kinds.values())
    for part in parts[: 1 + _KINDS_PER_STEP]:
        yield from _raised(problem, builder, deployment, {group.name for group in part})
    for alike in list(kinds.values())[:_KINDS_PER_STEP]:
        clones = (
            _with_clone(deployment, alike[0], gpus)
            for gpus in _free_gpus(builder.rules, deployment, alike[0])
        )
        allowed = next((clone for clone in clones if builder.rules.allows(clone)), None)
        if allowed is not None:
            yield allowed


def _free_gpus(rules: PlacementRules, deployment: Deployment, group: Group) -> Iterator[tuple[str, ...]]:
    """Parked GPUs of one node for another group of the same size, from the fullest node on."""
    placed, need = set(deployment.placed_gpus), len(group.gpus)
    nodes = [
        [gpu for gpu in node.gpus if gpu not in placed]
        for node in rules.nodes.values()
        if node.pool == group.pool
    ]
    for free in sorted((free for free in nodes if len(free) >= need), key=len):
        yield tuple(free[:need])


def _with_clone(
    deployment: Deployment, group: Group, gpus: tuple[str, ...], only: Collection[str] | None = None
) -> Deployment:
    """The deployment with a second group like ``group``, the two sharing its demand.

    The second hosts only some of the services where ``only`` names them.
    """
    width = group.tensor_parallel
    taken = {item.name for item in deployment.groups}
    name = next(f"group-{number}" for number in range(len(taken) + 1) if f"group-{number}" not in taken)
    halves = {
        replica.service: replica.model_copy(update={"share": replica.share / 2})
        for replica in group.replicas
        if only is None or replica.service in only
    }
    stages = tuple(
        Stage(gpus=gpus[index * width : (index + 1) * width], clock_mhz=stage.clock_mhz)
        for index, stage in enumerate(group.stages)
    )
    clone = Group(name=name, pool=group.pool, stages=stages, replicas=tuple(halves.values()))
    kept = tuple(halves.get(replica.service, replica) for replica in group.replicas)
    groups = [
        item.model_copy(update={"replicas": kept}) if item.name == group.name else item
        for item in deployment.groups
    ]
    return deployment.model_copy(update={"groups": (*groups, clone)})
