"""Placement by sensitivity, on all GPUs at maximum clock: services that a clock slows alike share groups.

The services stand in a row, the least sensitive first, and fill groups of one shape one after the other,
each up to the same occupancy: the least at which the fleet suffices. A service whose demand fills more
than what is left of a group goes on in the next. So a group holds neighbours of the row, and every GPU
hosts something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.estimates.clusters import cluster_table
from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.search.widening import can_join
from muplan.planning.stated.candidates import CandidateBuilder, memory_fits
from muplan.planning.stated.model import PoolSupply
from muplan.planning.stated.packing import FreeGpus
from muplan.problem.problem import Problem, ResolvedService
from muplan.profile import Phase

_BISECTIONS = 30
_SLACK = 0.05
"""Part of the occupancy by which a group may be above or below it, so that no service is split for a rest."""
_MOST_OCCUPIED = 1e6
"""Occupancy at which only memory limits what a group hosts."""

Menu = Mapping[Shape, Mapping[str, Estimate]]
"""The estimate of every service on a shape at its highest clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementForm:
    """How the groups are built: tensor parallelism, stages, and whether these are cut by sensitivity."""

    tensor_parallel: int
    num_stages: int
    is_grouped: bool


def sensitivity(service: ResolvedService, shape: Shape, ranges: Sequence[tuple[int, int]]) -> float:
    """Sensitivity of some of a service's clusters at the profile's reference clock, weighted by time.

    That of a forward pass at the smallest batch; of a generate service that of a decode pass, where most
    of its time goes.
    """
    profile = service.profiles[shape.pool]
    is_forward = service.request_kind == "forward"
    phase = Phase.FORWARD if is_forward else Phase.DECODE
    tokens = service.input_tokens + (0.0 if is_forward else service.output_tokens / 2.0)
    grid = profile.grid(phase)
    latency_s = cluster_table(
        profile,
        phase,
        tensor_parallel=shape.tensor_parallel,
        batch=grid.batches[0],
        tokens=min(max(tokens, grid.tokens[0]), grid.tokens[-1]),
        num_stages=shape.num_stages,
    ).latency_s
    own = [index for start, stop in ranges for index in range(start, stop)]
    slow_s = latency_s[own, profile.clocks_mhz.index(profile.reference_clock_mhz)].sum()
    slowdown = float(slow_s / latency_s[own, -1].sum()) - 1.0
    return slowdown / (profile.max_clock_mhz / profile.reference_clock_mhz - 1.0)


def placement_forms(menus: Mapping[bool, Menu]) -> tuple[PlacementForm, ...]:
    """All forms that some service can have."""
    found = {
        (shape.tensor_parallel, shape.num_stages, is_grouped)
        for is_grouped, menu in menus.items()
        for shape in menu
    }
    return tuple(
        PlacementForm(tensor_parallel=width, num_stages=stages, is_grouped=is_grouped)
        for width, stages, is_grouped in sorted(found)
    )


def max_clock_menus(problem: Problem, builder: CandidateBuilder) -> dict[bool, Menu]:
    """The menu of contiguous and that of sensitivity-grouped partitions, every stage at its highest clock."""
    pooled = {service.name: float(problem.workload.fleet.num_gpus) for service in problem.services}
    menus: dict[bool, dict[Shape, dict[str, Estimate]]] = {False: {}, True: {}}
    for estimate in (*builder.forward_estimates, *builder.generate_estimates(pooled)):
        mine = menus[estimate.is_grouped].setdefault(estimate.shape, {})
        known = mine.get(estimate.service)
        if known is None or _speed(estimate) > _speed(known):
            mine[estimate.service] = estimate
    return {
        is_grouped: {
            shape: {name: item for name, item in items.items() if len(set(item.clocks_mhz)) == 1}
            for shape, items in menu.items()
        }
        for is_grouped, menu in menus.items()
    }


def _speed(estimate: Estimate) -> tuple[int, float]:
    return min(estimate.clocks_mhz), -estimate.bottleneck_s


@dataclass(slots=True, kw_only=True)
class _Slot:
    """A group under construction: what it hosts, with the share of each service's demand."""

    shape: Shape
    gpus: tuple[str, ...]
    hosted: list[tuple[Estimate, float]] = field(default_factory=list)
    occupancy: float = 0.0


class SensitivityPlacement:
    """Placements by sensitivity of one problem, form by form."""

    def __init__(self, problem: Problem, builder: CandidateBuilder) -> None:
        self._problem, self._supplies = problem, builder.supplies
        self._menus = max_clock_menus(problem, builder)
        self._kinds = {service.name: service.request_kind for service in problem.services}
        self.forms = placement_forms(self._menus)

    def place(self, form: PlacementForm, reach: int) -> Deployment | None:
        """The placement of a form; None where memory or GPUs do not suffice.

        Parameters
        ----------
        reach
            Groups up to this far along the row that host a service too, wherever they can.
        """
        menu = self._menu(form)
        if any(not any(name in items for items in menu.values()) for name in self._kinds):
            return None
        row = sorted(self._kinds, key=lambda name: self._sensitivity(menu, name))
        low, high = 0.0, _MOST_OCCUPIED
        slots = self._fill(menu, row, form, high)
        for _ in range(_BISECTIONS if slots else 0):
            middle = float(np.sqrt(max(low, 1e-6) * high))
            found = self._fill(menu, row, form, middle)
            low, high, slots = (low, middle, found) if found else (middle, high, slots)
        if slots is None:
            return None
        self._spread(menu, slots, reach)
        return self._deployment(slots)

    def _menu(self, form: PlacementForm) -> Menu:
        """What every service can have, by shape; cut by sensitivity where form and profile allow that."""
        menu = {shape: dict(items) for shape, items in self._menus[False].items()}
        if form.is_grouped:
            for shape, items in self._menus[True].items():
                menu.setdefault(shape, {}).update(items)
        return menu

    def _sensitivity(self, menu: Menu, name: str) -> tuple[float, str]:
        estimate = min(
            (items[name] for items in menu.values() if name in items),
            key=lambda item: (item.shape.num_gpus, item.shape.pool),
        )
        ranges = [part for stage in estimate.stage_clusters for part in stage]
        return sensitivity(self._problem.service(name), estimate.shape, ranges), name

    def _fill(self, menu: Menu, row: Sequence[str], form: PlacementForm, most: float) -> list[_Slot] | None:
        """Fill groups up to an occupancy of ``most``; None where the fleet does not suffice."""
        free = {
            supply.name: FreeGpus(supply, self._problem.pool(supply.name).free_gpus())
            for supply in self._supplies
        }
        slots: list[_Slot] = []
        for name in row:
            rest = 1.0
            while rest > 1e-9:
                slot = slots[-1] if slots and self._has_room(menu, slots[-1], name, most) else None
                if slot is None:
                    slot = self._opened(menu, free, name, form)
                    if slot is None:
                        return None
                    slots.append(slot)
                estimate = menu[slot.shape][name]
                whole = self._problem.service(name).rate_rps * estimate.bottleneck_s
                room = (most * (1 + _SLACK) - slot.occupancy) / whole
                share = rest if rest <= room else (most - slot.occupancy) / whole
                slot.hosted.append((estimate, share))
                slot.occupancy += share * whole
                rest -= share
        return slots

    def _has_room(self, menu: Menu, slot: _Slot, name: str, most: float) -> bool:
        return slot.occupancy < most * (1 - _SLACK) and self._can_host(menu, slot, name)

    def _can_host(self, menu: Menu, slot: _Slot, name: str) -> bool:
        estimate = menu.get(slot.shape, {}).get(name)
        hosted = [item for item, _ in slot.hosted]
        if estimate is None or any(item.service == name for item in hosted):
            return False
        if "generate" in {self._kinds[name], *(self._kinds[item.service] for item in hosted)}:
            return False
        usable = self._problem.devices[slot.shape.pool].usable_memory_bytes
        return memory_fits(usable, [*hosted, estimate])

    def _opened(
        self, menu: Menu, free: Mapping[str, FreeGpus], name: str, form: PlacementForm
    ) -> _Slot | None:
        """A new group that can host a service: of the form, or of the smallest shape that can."""

        def preference(shape: Shape) -> tuple[bool, int, int]:
            is_form = (shape.tensor_parallel, shape.num_stages) == (form.tensor_parallel, form.num_stages)
            return not is_form, shape.num_gpus, shape.num_stages

        for shape in sorted((shape for shape in menu if name in menu[shape]), key=preference):
            supply = self._supply(shape.pool)
            gpus = free[shape.pool].pack([supply.parts(shape.num_gpus, shape.tensor_parallel)])[0]
            if gpus:
                return _Slot(shape=shape, gpus=gpus)
        return None

    def _supply(self, pool: str) -> PoolSupply:
        return next(supply for supply in self._supplies if supply.name == pool)

    def _spread(self, menu: Menu, slots: Sequence[_Slot], reach: int) -> None:
        """Host every service on the nearest groups too, as far as ``reach``; their shares stay nought yet."""
        homes: dict[str, list[int]] = {}
        for place, slot in enumerate(slots):
            for estimate, _ in slot.hosted:
                homes.setdefault(estimate.service, []).append(place)
        for distance in range(1, reach + 1):
            for name, places in homes.items():
                for place in (places[0] - distance, places[-1] + distance):
                    if not 0 <= place < len(slots) or not self._can_host(menu, slots[place], name):
                        continue
                    slot, estimate = slots[place], menu[slots[place].shape][name]
                    if can_join(self._problem, estimate, [item for item, _ in slot.hosted]):
                        slot.hosted.append((estimate, 0.0))

    def _deployment(self, slots: Sequence[_Slot]) -> Deployment:
        places: dict[str, int] = {}
        spread = {item.service for slot in slots for item, share in slot.hosted if share == 0.0}
        for slot in slots:
            for estimate, _ in slot.hosted:
                places[estimate.service] = places.get(estimate.service, 0) + 1
        groups = []
        for number, slot in enumerate(slots):
            width = slot.shape.tensor_parallel
            clock = min(estimate.clocks_mhz[0] for estimate, _ in slot.hosted)
            groups.append(
                Group(
                    name=f"group-{number}",
                    pool=slot.shape.pool,
                    stages=tuple(
                        Stage(gpus=slot.gpus[index * width : (index + 1) * width], clock_mhz=clock)
                        for index in range(slot.shape.num_stages)
                    ),
                    replicas=tuple(
                        Replica(
                            service=item.service,
                            share=1.0 / places[item.service] if item.service in spread else share,
                            max_batch=item.max_batch,
                            stage_clusters=item.stage_clusters,
                        )
                        for item, share in slot.hosted
                    ),
                )
            )
        return Deployment(groups=tuple(groups), serving=self._problem.workload.serving)
