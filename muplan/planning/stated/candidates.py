"""Candidates: every type of group that is worth offering to the solvers.

For each pool, parallelism and clock, a form lists all services that can meet their limits there, in every
partition worth having; the queueing guard says how far a group may be used by which of them. Which of
them a group hosts together, as memory allows, is for the solvers to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muplan.planning.estimates.choices import offered_pipelines
from muplan.planning.estimates.estimate import MAX_STAGES, Estimate, Shape
from muplan.planning.estimates.forward import ForwardEstimator
from muplan.planning.estimates.forward_costs import ForwardCosts, forward_costs
from muplan.planning.estimates.generate import GenerateEstimator
from muplan.planning.estimates.pipelines import Pipelines
from muplan.planning.guard.levels import Guard, GuardState
from muplan.planning.placing.rules import PlacementRules
from muplan.planning.placing.zones import supply_of, zones_of
from muplan.planning.stated.model import Form, GroupType, Hosting, Integers, PoolSupply
from muplan.problem.problem import Problem, ResolvedService

FormKey = tuple[Shape, tuple[int, ...]]
KeepClocks = Callable[[tuple[int, ...]], bool]

_MAX_PEAK_LEVELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A service that no group of the fleet can serve within its limits, at any load."""

    service: str
    text: str
    change: str


class CandidateBuilder:
    """Builds the candidates of a problem; estimates are made once, configurations for every guard state."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._services = {service.name: service for service in problem.services}
        self.rules = PlacementRules(problem)
        self.supplies = tuple(pool_supply(self.rules, pool.name) for pool in problem.pools)
        self.zones = zones_of(self.rules)
        self._zone_supplies = {zone.name: supply_of(problem, zone.name, zone.nodes) for zone in self.zones}
        self._forward: dict[FormKey, dict[str, list[Estimate]]] = {}
        self._forms: dict[FormKey, list[tuple[Form, list[Estimate]]]] = {}
        self._generate: list[tuple[Shape, GenerateEstimator, str]] = []
        self._elsewhere: dict[tuple[Shape, tuple[int, ...], str], Estimate | None] = {}
        self.forward_estimators: list[ForwardEstimator] = []
        self._pipelines: dict[tuple[object, ...], tuple[ForwardCosts, tuple[Pipelines, ...]]] = {}
        for supply in self.supplies:
            for service in problem.services:
                if not service.may_use_pool(supply.name):
                    continue
                for measured in service.profiles[supply.name].configurations:
                    if measured.tensor_parallel <= supply.node_gpus:
                        self._add_estimates(supply, service, measured.tensor_parallel, measured.num_stages)

    @property
    def zone_supplies(self) -> tuple[PoolSupply, ...]:
        """The supply of every zone: the pools of the stated model."""
        return tuple(self._zone_supplies.values())

    @property
    def forward_estimates(self) -> tuple[Estimate, ...]:
        """Every estimate of a forward service."""
        return tuple(
            item for by_name in self._forward.values() for items in by_name.values() for item in items
        )

    def forward_estimate(self, shape: Shape, clocks_mhz: tuple[int, ...], service: str) -> Estimate | None:
        """A forward service on a shape at given clocks, least bottleneck; None where it cannot be there."""
        variants = self._forward.get((shape, clocks_mhz), {}).get(service, [])
        if variants:
            return min(variants, key=lambda item: item.bottleneck_s)
        key = shape, clocks_mhz, service
        if key not in self._elsewhere:
            self._elsewhere[key] = self._at(*key)
        return self._elsewhere[key]

    def _at(self, shape: Shape, clocks_mhz: tuple[int, ...], service: str) -> Estimate | None:
        """A forward service at clocks that are not offered for it: what it can join, not what it asks for."""
        for estimator in self.forward_estimators:
            costs = estimator.costs
            there = (costs.supply.name, costs.tensor_parallel) == (shape.pool, shape.tensor_parallel)
            if there and estimator.service.name == service:
                return estimator.at(shape, clocks_mhz)
        return None

    def generate_estimates(self, pooled_gpus: Mapping[str, float]) -> tuple[Estimate, ...]:
        """Estimates of the generate services, given the GPUs that each is pooled over."""
        estimates = []
        for shape, estimator, service in self._generate:
            for index in estimator.clock_indices:
                estimate = estimator.estimate(shape.num_stages, index, pooled_gpus[service])
                if estimate is not None:
                    estimates.append(estimate)
        return tuple(estimates)

    def group_types(
        self, guard: GuardState, *, capped: bool, keep: KeepClocks | None = None
    ) -> tuple[GroupType, ...]:
        """The candidates under a guard state.

        Parameters
        ----------
        capped
            Whether a group's peak power counts (there is a cap on nodes or fleet); then services that
            draw less are also offered without those that draw more.
        keep
            Which clocks of a group's stages to offer; all where absent.
        """
        guarded = Guard(self._problem, guard)
        found: list[GroupType] = []
        for shape, clocks_mhz in self._forward:
            if keep is None or keep(clocks_mhz):
                for form, estimates in self._forms_of((shape, clocks_mhz)):
                    for level in guarded.levels(estimates):
                        parts = _peak_levels(form, level.members) if capped else [level.members]
                        found += [
                            GroupType(form=form, members=members, utilisation=level.utilisation)
                            for members in parts
                        ]
        for estimate in self.generate_estimates(guard.pooled_gpus):
            if keep is None or keep(estimate.clocks_mhz):
                allowed = estimate.guarded_rps * guard.corrections[estimate.service] / estimate.rate_limit_rps
                found += [
                    GroupType(form=form, members=np.zeros(1, dtype=np.int64), utilisation=min(1.0, allowed))
                    for form, _ in self._on_zones([estimate])
                ]
        return tuple(found)

    def _forms_of(self, key: FormKey) -> list[tuple[Form, list[Estimate]]]:
        """A form of forward services with its estimates, on every zone that it may stand on; made once."""
        if key not in self._forms:
            estimates = [item for items in self._forward[key].values() for item in items]
            self._forms[key] = self._on_zones(estimates)
        return self._forms[key]

    def _on_zones(self, estimates: Sequence[Estimate]) -> list[tuple[Form, list[Estimate]]]:
        """The form of estimates on every zone that it may stand on."""
        return [
            (replace(make_form(self._problem, allowed), pool=zone), allowed)
            for zone, allowed in self.zone_estimates(estimates)
        ]

    def zone_estimates(self, estimates: Sequence[Estimate]) -> list[tuple[str, list[Estimate]]]:
        """Zones by name that hold a group, and which estimates of it, all of one shape, each allows.

        It must stand there on as many nodes as it was estimated for.
        """
        shape = estimates[0].shape
        size = shape.num_gpus, shape.tensor_parallel
        whole = next(supply for supply in self.supplies if supply.name == shape.pool)
        found = []
        for zone in self.zones:
            supply = self._zone_supplies[zone.name]
            allowed = [item for item in estimates if item.service in zone.services]
            if (
                allowed
                and zone.pool == shape.pool
                and shape.tensor_parallel <= supply.node_gpus
                and len(supply.parts(*size)) == len(whole.parts(*size))
                and _placeable(supply, shape.tensor_parallel, shape.num_stages)
            ):
                found.append((zone.name, allowed))
        return found

    def offered_gpus(self) -> float:
        """GPUs that the whole demand keeps busy at batch 1, each service where it keeps the fewest."""
        fleet = {
            service.name: float(self._problem.workload.fleet.num_gpus) for service in self._problem.services
        }
        least: dict[str, float] = {}
        for estimate in (*self.forward_estimates, *self.generate_estimates(fleet)):
            busy = estimate.bottleneck_s * estimate.shape.num_gpus * self._services[estimate.service].rate_rps
            least[estimate.service] = min(least.get(estimate.service, busy), busy)
        return sum(least.values())

    def refusals(self) -> tuple[Refusal, ...]:
        """Services without any candidate, and why."""
        pooled = {
            service.name: float(self._problem.workload.fleet.num_gpus) for service in self._problem.services
        }
        served = {name for by_name in self._forward.values() for name in by_name}
        served |= {estimate.service for estimate in self.generate_estimates(pooled)}
        return tuple(
            self._refusal(service) for service in self._problem.services if service.name not in served
        )

    def _refusal(self, service: ResolvedService) -> Refusal:
        name = service.name
        fastest = min(
            (
                found
                for item in self.forward_estimators
                if item.service is service and (found := item.fastest())
            ),
            key=lambda item: item.latency_s,
            default=None,
        )
        if service.request_kind == "generate":
            text = (
                f"{name} cannot keep its limits of {service.limits.ttft_s:g} s to the first token and"
                f" {service.limits.tpot_s:g} s per token on any group of the fleet, or its weights and one"
                " longest request do not fit."
            )
            return Refusal(
                service=name,
                text=text,
                change=f"Loosen the limits of {name}, or offer GPUs with more memory.",
            )
        if fastest is None:
            text = f"{name} fits the memory of no group that the fleet can form under its power caps."
            return Refusal(
                service=name, text=text, change=f"Offer GPUs with more memory for {name}, or raise the caps."
            )
        text = (
            f"{name} asks for {service.limits.latency_s:g} s; a single request takes"
            f" {fastest.latency_s:.3g} s on the fastest group there is ({fastest.shape.num_gpus} ×"
            f" {fastest.shape.pool}, tensor parallelism {fastest.shape.tensor_parallel},"
            f" {fastest.clocks_mhz[0]} MHz; modelled)."
        )
        change = f"Loosen the latency limit of {name} to more than {fastest.latency_s:.3g} s."
        return Refusal(service=name, text=text, change=change)

    def _add_estimates(
        self, supply: PoolSupply, service: ResolvedService, width: int, num_stages: int | None
    ) -> None:
        device = self._problem.devices[supply.name]
        pool = self._problem.pool(supply.name)
        cap_w = min(pool.power_cap_w or math.inf, device.power_cap_w)
        serving = self._problem.workload.serving
        profile = service.profiles[supply.name]
        shapes = [
            Shape(pool=supply.name, tensor_parallel=width, num_stages=stages)
            for stages in (range(1, MAX_STAGES + 1) if num_stages is None else (num_stages,))
            if stages <= len(profile.clusters)
            and width * stages <= serving.max_group_gpus
            and _placeable(supply, width, stages)
        ]
        if service.request_kind == "generate":
            generate = GenerateEstimator(
                service,
                device,
                supply,
                tensor_parallel=width,
                max_sequences=serving.max_sequences,
                cap_w=cap_w,
                overhead_s=serving.overhead_s,
            )
            self._generate += [(shape, generate, service.name) for shape in shapes]
            return
        key = id(profile), service.input_tokens, supply.name, width, num_stages
        if key not in self._pipelines:
            costs = forward_costs(
                profile,
                device,
                supply,
                tensor_parallel=width,
                input_tokens=service.input_tokens,
                max_batch=serving.max_batch,
                cap_w=cap_w,
                num_stages=num_stages,
                overhead_s=serving.overhead_s,
                stage_overhead=serving.stage_overhead,
            )
            self._pipelines[key] = costs, offered_pipelines(costs, shapes)
        forward = ForwardEstimator(service, *self._pipelines[key])
        self.forward_estimators.append(forward)
        for estimate in forward.estimates():
            by_name = self._forward.setdefault((estimate.shape, estimate.clocks_mhz), {})
            by_name.setdefault(service.name, []).append(estimate)


def make_form(problem: Problem, estimates: Sequence[Estimate]) -> Form:
    """The form of group that hosts estimates of one shape and its clocks."""
    shape, device = estimates[0].shape, problem.devices[estimates[0].shape.pool]
    return Form(
        pool=shape.pool,
        tensor_parallel=shape.tensor_parallel,
        clocks_mhz=estimates[0].clocks_mhz,
        standing_w=estimates[0].loaded_w - shape.num_gpus * device.parked_w + estimates[0].standing_w,
        usable_bytes=device.usable_memory_bytes,
        hostings=tuple(
            Hosting(
                service=item.service,
                max_batch=item.max_batch,
                stage_clusters=item.stage_clusters,
                occupancy_s=item.bottleneck_s,
                energy_j=item.energy_j,
                latency_s=item.latency_s,
                weight_bytes=item.weight_bytes,
                working_bytes=item.working_bytes,
                peak_w=item.peak_w,
            )
            for item in estimates
        ),
    )


def _peak_levels(form: Form, members: Integers) -> list[Integers]:
    """All members; and those alone that draw less, for a few levels of peak power."""
    peaks_w = form.peak_w[members].sum(axis=1)
    levels = np.unique(peaks_w)[:: -max(1, len(peaks_w) // _MAX_PEAK_LEVELS)]
    return [members[peaks_w <= level] for level in levels]


def pool_supply(rules: PlacementRules, name: str) -> PoolSupply:
    """The GPUs of a pool."""
    return supply_of(rules.problem, name, tuple(node for node in rules.nodes.values() if node.pool == name))


def memory_fits(usable_bytes: float, hosted: Sequence[Estimate]) -> bool:
    """Whether weights (which add up) and working sets (which take turns) fit every GPU of the group."""
    return all(
        sum(item.weight_bytes[stage] for item in hosted) + max(item.working_bytes[stage] for item in hosted)
        <= usable_bytes
        for stage in range(hosted[0].shape.num_stages)
    )


def _placeable(supply: PoolSupply, width: int, stages: int) -> bool:
    """Whether the pool holds one such group when nothing else is there."""
    return all(
        supply.slots_taken(width * stages, width, slot) <= supply.num_slots(slot)
        for slot in supply.slot_widths
    )
