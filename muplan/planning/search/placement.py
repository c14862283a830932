"""Placements: which shapes of group the fleet is cut into, and which services each group hosts.

A search over placements handles thousands of them, so one is plain numbers: a tuple of `Host`, each a
shape and services as a `Site` numbers them. `Site.deployment` names GPUs, clocks and shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.placing.rules import PlacementRules
from muplan.planning.stated.candidates import memory_fits
from muplan.planning.stated.model import PoolSupply
from muplan.planning.stated.packing import FreeGpus
from muplan.problem.problem import Problem
from muplan.workload import Serving

Menu = Mapping[Shape, Mapping[str, Estimate]]
"""What each service is like on each shape of group it can be on."""


@dataclass(frozen=True, slots=True, order=True)
class Host:
    """A group: the number of its shape, and those of the services it hosts, ascending."""

    shape: int
    services: tuple[int, ...] = ()

    def with_service(self, service: int) -> Host:
        """Return this group with one more service."""
        return Host(self.shape, tuple(sorted((*self.services, service))))

    def without_service(self, service: int) -> Host:
        """Return this group with one service less."""
        return Host(self.shape, tuple(other for other in self.services if other != service))


Placement = tuple[Host, ...]


class Site:
    """A fleet and its services made ready to be placed.

    Parameters
    ----------
    menu
        The estimates that may be used; those of one shape share their clocks.
    """

    def __init__(self, problem: Problem, supplies: Sequence[PoolSupply], menu: Menu) -> None:
        self.problem = problem
        self.supplies = tuple(
            replace(supply, num_gpus=min(supply.num_gpus, supply.num_free)) for supply in supplies
        )
        self.shapes = tuple(
            sorted(menu, key=lambda shape: (shape.pool, shape.num_gpus, shape.tensor_parallel))
        )
        numbers = {service.name: number for number, service in enumerate(problem.services)}
        self.estimates: tuple[dict[int, Estimate], ...] = tuple(
            {numbers[name]: estimate for name, estimate in menu[shape].items()} for shape in self.shapes
        )
        self.generates = tuple(service.request_kind == "generate" for service in problem.services)
        self._usable = tuple(problem.devices[shape.pool].usable_memory_bytes for shape in self.shapes)
        self._rules = PlacementRules(problem)
        self._fits: dict[Host, bool] = {}

    @property
    def num_services(self) -> int:
        """Number of services."""
        return len(self.problem.services)

    def shape_number(self, pool: str, tensor_parallel: int, num_stages: int) -> int | None:
        """The number of a shape; None where no service can be on it."""
        shape = Shape(pool=pool, tensor_parallel=tensor_parallel, num_stages=num_stages)
        return self.shapes.index(shape) if shape in self.shapes else None

    def fits(self, host: Host) -> bool:
        """Whether a group can host its services: they run on its shape, and memory holds them.

        A generate service has its group to itself.
        """
        known = self._fits.get(host)
        if known is None:
            known = self._fits[host] = self._check(host)
        return known

    def _check(self, host: Host) -> bool:
        estimates = self.estimates[host.shape]
        if not all(service in estimates for service in host.services):
            return False
        if len(host.services) > 1 and any(self.generates[service] for service in host.services):
            return False
        hosted = [estimates[service] for service in host.services]
        return not hosted or memory_fits(self._usable[host.shape], hosted)

    def keeps_rules(self, placement: Placement) -> bool:
        """Whether GPUs find room for a placement and it keeps the rules of placement."""
        deployment = self.deployment(placement, {}, self.problem.workload.serving)
        return deployment is not None and self._rules.allows(deployment)

    def gpus(self, placement: Iterable[Host]) -> list[tuple[str, ...]] | None:
        """GPUs of every group, in the order of the placement; None where they do not find room."""
        hosts = list(placement)
        found: list[tuple[str, ...]] = [()] * len(hosts)
        for supply in self.supplies:
            mine = [place for place, host in enumerate(hosts) if self.shapes[host.shape].pool == supply.name]
            shapes = [self.shapes[hosts[place].shape] for place in mine]
            demands = [supply.parts(shape.num_gpus, shape.tensor_parallel) for shape in shapes]
            free = FreeGpus(supply, self.problem.pool(supply.name).free_gpus())
            for place, gpus in zip(mine, free.pack(demands), strict=True):
                found[place] = gpus
        return found if all(found) else None

    def is_whole(self, placement: Placement) -> bool:
        """Whether every service is hosted, and all groups find GPUs."""
        hosted = {service for host in placement for service in host.services}
        return len(hosted) == self.num_services and self.gpus(placement) is not None

    def deployment(
        self, placement: Placement, admitted: Mapping[str, float], serving: Serving
    ) -> Deployment | None:
        """The deployment of a placement; groups that host nothing are left out.

        ``admitted`` are shares of the demand let in; the replicas of a service carry equal parts of its own.
        None where GPUs do not find room.
        """
        hosts = [host for host in placement if host.services]
        gpus = self.gpus(hosts)
        if gpus is None:
            return None
        counts = np.bincount([s for host in hosts for s in host.services], minlength=self.num_services)
        return Deployment(
            groups=tuple(
                self._group(f"group-{number}", host, gpus[number], counts.tolist(), admitted)
                for number, host in enumerate(hosts)
            ),
            admitted={name: share for name, share in admitted.items() if share < 1.0},
            serving=serving,
        )

    def _group(
        self,
        name: str,
        host: Host,
        gpus: Sequence[str],
        counts: Sequence[int],
        admitted: Mapping[str, float],
    ) -> Group:
        shape = self.shapes[host.shape]
        hosted = [self.estimates[host.shape][service] for service in host.services]
        clocks = [min(estimate.clocks_mhz[k] for estimate in hosted) for k in range(shape.num_stages)]
        width = shape.tensor_parallel
        return Group(
            name=name,
            pool=shape.pool,
            stages=tuple(
                Stage(gpus=tuple(gpus[k * width : (k + 1) * width]), clock_mhz=clock)
                for k, clock in enumerate(clocks)
            ),
            replicas=tuple(
                Replica(
                    service=estimate.service,
                    share=admitted.get(estimate.service, 1.0) / counts[service],
                    max_batch=estimate.max_batch,
                    stage_clusters=estimate.stage_clusters,
                )
                for service, estimate in zip(host.services, hosted, strict=True)
            ),
        )
