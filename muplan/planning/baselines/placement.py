"""Placements at maximum clock that use the whole fleet: AlpaServe-style, and selective replication.

The fleet is cut into groups of one shape; then, again and again, the service with the most load on
each of its replicas gets one more, on the group with the least load that has memory for it. This is
the fast heuristic of AlpaServe (Li et al., OSDI'23, §4.2), which searches the shapes by simulation
and knows neither clocks nor parking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.search.evaluation import Evaluation, Judge
from muplan.planning.stated.candidates import CandidateBuilder, memory_fits
from muplan.planning.stated.model import PoolSupply
from muplan.problem.problem import Problem

Menu = Mapping[Shape, Mapping[str, Estimate]]


def model_parallel_placement(
    problem: Problem, builder: CandidateBuilder, judge: Judge, admitted: Mapping[str, float]
) -> tuple[Deployment, Evaluation] | None:
    """Groups of the shape that attains most on the training traces, at maximum clock, on all GPUs."""
    menu = max_clock_menu(problem, builder)
    forms = sorted({(shape.tensor_parallel, shape.num_stages) for shape in menu})
    return _best(problem, builder.supplies, judge, menu, forms, admitted)


def selective_replication(
    problem: Problem, builder: CandidateBuilder, judge: Judge, admitted: Mapping[str, float]
) -> tuple[Deployment, Evaluation] | None:
    """Replicas on single GPUs (or the fewest that hold a model), at maximum clock, on all GPUs."""
    menu = max_clock_menu(problem, builder)
    return _best(problem, builder.supplies, judge, menu, [(1, 1)], admitted)


def fewest_gpus_placement(
    problem: Problem, builder: CandidateBuilder, judge: Judge, clock_mhz: int
) -> tuple[Deployment, Evaluation] | None:
    """The same heuristic at one clock on the fewest GPUs that hold every target; None where none do.

    Bisection: fewer GPUs of the same placement attain less. Groups are single GPUs; where
    there are generate services, pairs are tried too.
    """
    everything = {service.name: 1.0 for service in problem.services}
    menu = {
        shape: {item.service: item for item in items if set(item.clocks_mhz) == {clock_mhz}}
        for shape, items in _by_shape(problem, builder).items()
    }
    best: tuple[Deployment, Evaluation] | None = None
    generates = any(service.request_kind == "generate" for service in problem.services)
    for form in ((1, 1), (2, 1)) if generates else ((1, 1),):
        low, high = 0, problem.workload.fleet.num_gpus + 1
        while high - low > 1:
            middle = (low + high) // 2 if low or high <= problem.workload.fleet.num_gpus else high - 1
            deployment = _place(problem, _part(builder.supplies, middle), menu, form, everything)
            evaluation = None if deployment is None else judge.evaluate(deployment, stop_early=True)
            if deployment is None or evaluation is None or not evaluation.holds():
                low = middle
                continue
            high = middle
            if best is None or evaluation.power_w < best[1].power_w:
                best = deployment, evaluation
    return best


def _part(supplies: Sequence[PoolSupply], num_gpus: int) -> list[PoolSupply]:
    """``num_gpus`` of the fleet, of every pool in proportion (rounded up)."""
    total = sum(supply.num_gpus for supply in supplies)
    return [replace(supply, num_gpus=-(-supply.num_gpus * num_gpus // total)) for supply in supplies]


def _by_shape(problem: Problem, builder: CandidateBuilder) -> dict[Shape, list[Estimate]]:
    """Estimates under one clock, contiguous partitions, by shape."""
    pooled = {service.name: float(problem.workload.fleet.num_gpus) for service in problem.services}
    found: dict[Shape, list[Estimate]] = {}
    for estimate in (*builder.forward_estimates, *builder.generate_estimates(pooled)):
        if len(set(estimate.clocks_mhz)) == 1 and not estimate.is_grouped:
            found.setdefault(estimate.shape, []).append(estimate)
    return found


def max_clock_menu(problem: Problem, builder: CandidateBuilder) -> Menu:
    """Estimates of every service on every shape, all stages at the highest clock that it can have."""
    return {
        shape: {
            name: max(
                (item for item in items if item.service == name),
                key=lambda item: (item.clocks_mhz[0], -item.bottleneck_s),
            )
            for name in sorted({item.service for item in items})
        }
        for shape, items in _by_shape(problem, builder).items()
    }


def _best(
    problem: Problem,
    supplies: Sequence[PoolSupply],
    judge: Judge,
    menu: Menu,
    forms: Sequence[tuple[int, int]],
    admitted: Mapping[str, float],
) -> tuple[Deployment, Evaluation] | None:
    best: tuple[Deployment, Evaluation] | None = None
    for form in forms:
        deployment = _place(problem, supplies, menu, form, admitted)
        if deployment is None:
            continue
        evaluation = judge.evaluate(deployment)
        if best is None or (evaluation.worst, -evaluation.power_w) > (best[1].worst, -best[1].power_w):
            best = deployment, evaluation
    return best


@dataclass(slots=True)
class _Slot:
    """A group under construction."""

    shape: Shape
    gpus: tuple[str, ...]
    hosted: list[Estimate] = field(default_factory=list)


def _place(
    problem: Problem,
    supplies: Sequence[PoolSupply],
    menu: Menu,
    form: tuple[int, int],
    admitted: Mapping[str, float],
) -> Deployment | None:
    """Cut the fleet into groups of ``form`` and fill them; None where a service finds no place."""
    slots = [slot for supply in supplies for slot in _cut(problem, supply, menu, form)]
    kinds = {service.name: service.request_kind for service in problem.services}
    demand = {
        service.name: service.rate_rps * admitted.get(service.name, 1.0) for service in problem.services
    }
    replicas: dict[str, list[_Slot]] = {name: [] for name, rate in demand.items() if rate > 0}
    while True:
        choice = _next_replica(problem, slots, menu, replicas, demand, kinds)
        if choice is None:
            break
        slot, estimate = choice
        slot.hosted.append(estimate)
        replicas[estimate.service].append(slot)
    if not all(replicas.values()):
        return None
    groups = [
        _group(f"group-{number}", slot, {name: len(places) for name, places in replicas.items()}, admitted)
        for number, slot in enumerate(slots)
        if slot.hosted
    ]
    return Deployment(
        groups=tuple(groups),
        admitted={name: share for name, share in admitted.items() if share < 1.0},
        serving=problem.workload.serving,
    )


def _cut(problem: Problem, supply: PoolSupply, menu: Menu, form: tuple[int, int]) -> list[_Slot]:
    """Cut a pool into groups: of ``form``, or larger where some service needs that.

    GPUs go to the services that need larger groups in proportion to their number, at least one group.
    """
    base = Shape(pool=supply.name, tensor_parallel=form[0], num_stages=form[1])
    shapes = sorted(
        (shape for shape in menu if shape.pool == supply.name),
        key=lambda item: (item.num_gpus, item.num_stages),
    )
    wanted: dict[Shape, int] = {}
    for service in problem.services:
        if base in menu and service.name in menu[base]:
            fitting = base
        else:
            able = [shape for shape in shapes if service.name in menu[shape] and shape.num_stages == 1]
            able = able or [shape for shape in shapes if service.name in menu[shape]]
            if not able:
                continue
            fitting = able[0]
        wanted[fitting] = wanted.get(fitting, 0) + 1
    ids = list(problem.pool(supply.name).gpu_ids())[: supply.num_gpus]
    nodes = [ids[start : start + supply.gpus_per_node] for start in range(0, len(ids), supply.gpus_per_node)]
    slots: list[_Slot] = []
    for shape, number in sorted(wanted.items(), key=lambda item: -item[0].num_gpus):
        share = number / sum(wanted.values())
        groups = max(1, int(share * supply.num_gpus / shape.num_gpus))
        if shape == min(wanted, key=lambda item: item.num_gpus):
            groups = supply.num_gpus
        for _ in range(groups):
            gpus = _take(nodes, shape.num_gpus, supply.slot_width(shape.num_gpus))
            if gpus:
                slots.append(_Slot(shape=shape, gpus=gpus))
    return slots


def _take(nodes: list[list[str]], num_gpus: int, width: int) -> tuple[str, ...]:
    able = [node for node in nodes if len(node) >= width]
    if len(able) * width < num_gpus:
        return ()
    taken: list[str] = []
    for node in able:
        if len(taken) < num_gpus:
            taken += node[:width]
            del node[:width]
    return tuple(taken)


def _next_replica(
    problem: Problem,
    slots: Sequence[_Slot],
    menu: Menu,
    replicas: Mapping[str, list[_Slot]],
    demand: Mapping[str, float],
    kinds: Mapping[str, str],
) -> tuple[_Slot, Estimate] | None:
    def occupancy(slot: _Slot, name: str) -> float:
        estimate = menu[slot.shape][name]
        return demand[name] * estimate.bottleneck_s / max(1, len(replicas[name]))

    def load(slot: _Slot) -> float:
        return sum(occupancy(slot, estimate.service) for estimate in slot.hosted)

    def able(slot: _Slot, name: str) -> bool:
        estimate = menu.get(slot.shape, {}).get(name)
        if estimate is None or any(hosted.service == name for hosted in slot.hosted):
            return False
        if slot.hosted and "generate" in {kinds[name], kinds[slot.hosted[0].service]}:
            return False
        usable = problem.devices[slot.shape.pool].usable_memory_bytes
        return memory_fits(usable, [*slot.hosted, estimate])

    def pressure(name: str) -> tuple[bool, float]:
        times = [menu[shape][name].bottleneck_s for shape in menu if name in menu[shape]]
        need = demand[name] * min(times, default=0.0)
        return not replicas[name], need / max(1, len(replicas[name]))

    for name in sorted(replicas, key=pressure, reverse=True):
        places = [slot for slot in slots if able(slot, name)]
        if places:
            slot = min(places, key=load)
            return slot, menu[slot.shape][name]
    return None


def _group(name: str, slot: _Slot, num_replicas: Mapping[str, int], admitted: Mapping[str, float]) -> Group:
    width = slot.shape.tensor_parallel
    clock = min(estimate.clocks_mhz[0] for estimate in slot.hosted)
    return Group(
        name=name,
        pool=slot.shape.pool,
        stages=tuple(
            Stage(gpus=slot.gpus[index * width : (index + 1) * width], clock_mhz=clock)
            for index in range(slot.shape.num_stages)
        ),
        replicas=tuple(
            Replica(
                service=estimate.service,
                share=admitted.get(estimate.service, 1.0) / num_replicas[estimate.service],
                max_batch=estimate.max_batch,
                stage_clusters=estimate.stage_clusters,
            )
            for estimate in slot.hosted
        ),
    )
