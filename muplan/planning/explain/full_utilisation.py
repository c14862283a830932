"""The fleet at full utilisation: what no guard, however trusting, lets it exceed.

Every group may be busy up to the highest utilisation that any plan uses, and every request takes the
least time that a batch within its limit allows. Whatever the guard has been taught, the stated model
allows no more. So demand that does not fit here fits no solution of the stated model; and a service
that leaves makes nothing worse, which a guard's levels do not promise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from muplan.planning.estimates.estimate import Estimate
from muplan.planning.explain.feasibility import Answer, can_serve
from muplan.planning.guard.levels import GuardState
from muplan.planning.guard.tail import MAX_UTILISATION
from muplan.planning.search.tuning import make_model
from muplan.planning.stated.candidates import CandidateBuilder, make_form
from muplan.planning.stated.model import Form, GroupType, Hosting, PlanningModel
from muplan.problem.problem import Problem, ResolvedService
from muplan.workload import Goal


@dataclass(slots=True)
class FullUtilisation:
    """Tells whether a problem's demand fits its fleet at full utilisation.

    Problems that differ from an earlier one in demand alone, or lack some of its services, share the
    earlier one's candidates.
    """

    _known: list[tuple[Problem, PlanningModel]] = field(default_factory=list)

    def answer(self, problem: Problem) -> Answer:
        """Whether the fleet can carry the whole demand."""
        return can_serve(self.model(problem))

    def model(self, problem: Problem) -> PlanningModel:
        """The stated model of a problem with every group fully used."""
        for known, model in self._known:
            if _covers(known, problem):
                return _only(model, problem)
        model = full_model(problem, CandidateBuilder(problem))
        self._known.append((problem, model))
        return model


def full_model(problem: Problem, builder: CandidateBuilder) -> PlanningModel:
    """The stated model with every group fully used, one type for each form worth having."""
    trusting = GuardState(
        corrections={service.name: 1.0 for service in problem.services},
        pooled_gpus={service.name: float(problem.workload.fleet.num_gpus) for service in problem.services},
    )
    model = make_model(problem, builder, trusting, keep=lambda _: False)
    is_capped = math.isfinite(model.power_cap_w) or any(
        math.isfinite(pool.node_power_cap_w) for pool in model.pools
    )
    types = _full_types(problem, builder, trusting, is_capped=is_capped)
    return replace(model, group_types=types, goals=(Goal.POWER,))


def services_by_work(model: PlanningModel) -> list[str]:
    """Services, those that keep the fleet least busy first: a set that is left is then of few, large ones."""
    busy = dict.fromkeys(model.rates_rps, math.inf)
    for item in model.group_types:
        for index in item.members:
            hosting = item.form.hostings[index]
            gpus = model.rates_rps[hosting.service] * hosting.occupancy_s / item.utilisation
            busy[hosting.service] = min(busy[hosting.service], gpus * item.form.num_gpus)
    return sorted(busy, key=lambda name: busy[name])


def _full_types(
    problem: Problem, builder: CandidateBuilder, guard: GuardState, *, is_capped: bool
) -> tuple[GroupType, ...]:
    by_form: dict[tuple[object, ...], list[Estimate]] = {}
    for estimate in builder.forward_estimates:
        by_form.setdefault((estimate.shape, estimate.clocks_mhz), []).append(estimate)
    types: list[GroupType] = []
    for estimates in by_form.values():
        for zone, allowed in builder.zone_estimates(estimates):
            form = replace(_fastest(problem, allowed), pool=zone)
            peaks_w = np.unique(form.peak_w.sum(axis=1)) if is_capped else [math.inf]
            types += [
                GroupType(
                    form=form,
                    members=np.flatnonzero(form.peak_w.sum(axis=1) <= peak_w),
                    utilisation=MAX_UTILISATION,
                )
                for peak_w in peaks_w
            ]
    for estimate in builder.generate_estimates(guard.pooled_gpus):
        for zone, allowed in builder.zone_estimates([estimate]):
            form = replace(make_form(problem, allowed), pool=zone)
            types.append(GroupType(form=form, members=np.zeros(1, dtype=np.int64), utilisation=1.0))
    return tuple(_undominated(types, is_capped=is_capped))


def _fastest(problem: Problem, estimates: Sequence[Estimate]) -> Form:
    """A form in which every request takes its part of the best batch that is in time.

    Peaks are spread evenly over the stages, so that a group's peak is that of its hungriest service.
    """
    form = make_form(problem, estimates)
    hostings = []
    for hosting, estimate in zip(form.hostings, estimates, strict=True):
        limit_s = problem.service(hosting.service).limits.latency_s
        part_s = min(
            level.bottleneck_s / level.batch
            for level in estimate.levels
            if level.batch == 1 or level.latency_s + level.bottleneck_s <= limit_s
        )
        even_w = sum(hosting.peak_w) / form.num_stages
        hostings.append(replace(hosting, occupancy_s=part_s, peak_w=(even_w,) * form.num_stages))
    return replace(form, hostings=tuple(_useful(hostings)))


def _useful(hostings: Sequence[Hosting]) -> list[Hosting]:
    """Hostings but those that another partition of the service matches in time, memory and peak."""
    figures = [
        np.array([item.occupancy_s, *item.weight_bytes, *item.working_bytes, *item.peak_w])
        for item in hostings
    ]

    def is_matched(place: int) -> bool:
        return any(
            hostings[other].service == hostings[place].service
            and (figures[other] <= figures[place]).all()
            and (other < place or (figures[other] < figures[place]).any())
            for other in range(len(hostings))
            if other != place
        )

    return [hosting for place, hosting in enumerate(hostings) if not is_matched(place)]


def _undominated(types: Sequence[GroupType], *, is_capped: bool) -> Iterable[GroupType]:
    """Types but those that another one of the same shape replaces: no slower for any member, no hungrier."""
    by_shape: dict[tuple[object, ...], list[tuple[GroupType, dict[object, float]]]] = {}
    for item in sorted(types, key=lambda item: (-len(item.members), -sum(item.form.clocks_mhz))):
        form = item.form
        time_s: dict[object, float] = {}
        for index in item.members:
            hosting = form.hostings[index]
            time_s[hosting.service, hosting.stage_clusters] = hosting.occupancy_s / item.utilisation
        rivals = by_shape.setdefault((form.pool, form.tensor_parallel, form.num_stages), [])
        if not any(
            (not is_capped or other.peak_w <= item.peak_w)
            and all(other_s.get(key, math.inf) <= value for key, value in time_s.items())
            for other, other_s in rivals
        ):
            rivals.append((item, time_s))
            yield item


def _covers(known: Problem, problem: Problem) -> bool:
    """Whether the candidates of ``known`` hold those of ``problem``: the same but for demand or services."""
    bare = {"services": (), "name": "", "objective": Goal.POWER}
    if known.workload.model_copy(update=bare) != problem.workload.model_copy(update=bare):
        return False
    there = {service.name: service for service in known.services}
    return all(
        service.name in there and _same_candidates(there[service.name], service)
        for service in problem.services
    )


def _same_candidates(one: ResolvedService, other: ResolvedService) -> bool:
    """Whether two states of a service differ in demand at most."""
    same_spec = one.spec.model_copy(update={"demand": other.spec.demand}) == other.spec
    return same_spec and one.limits == other.limits and one.profiles is other.profiles


def _only(model: PlanningModel, problem: Problem) -> PlanningModel:
    """The model with the services and demand of ``problem`` alone."""
    rates = {service.name: service.rate_rps for service in problem.services}
    forms: dict[int, Form] = {}
    types = []
    for item in model.group_types:
        form = item.form
        kept = [index for index in item.members if form.hostings[index].service in rates]
        if not kept:
            continue
        places = [index for index, hosting in enumerate(form.hostings) if hosting.service in rates]
        if id(form) not in forms:
            forms[id(form)] = replace(form, hostings=tuple(form.hostings[index] for index in places))
        members = np.array([places.index(index) for index in kept], dtype=np.int64)
        types.append(replace(item, form=forms[id(form)], members=members))
    return replace(
        model,
        rates_rps=rates,
        group_types=tuple(types),
        min_replicas={name: number for name, number in model.min_replicas.items() if name in rates},
        max_replicas={name: number for name, number in model.max_replicas.items() if name in rates},
    )
