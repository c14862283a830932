"""What forward and generate groups have in common: kinds, clocks, idle power."""

from __future__ import annotations

from typing import Literal

import numpy as np

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.plan import Group
from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.ageing import NUM_BINS
from muplan.serving.clock_policies import FIRST_PRICE
from muplan.serving.layout import Floats, Integers, Rows
from muplan.serving.policies import LENGTH_ORDERS
from muplan.workload import Serving


class Values:
    """The flat array of values under construction."""

    def __init__(self) -> None:
        self.tables: list[Floats] = []
        self.length = 0
        self._known: dict[bytes, int] = {}

    def add(self, table: Floats) -> int:
        """Append a table; returns where it begins."""
        first = self.length
        self.tables.append(np.ravel(table))
        self.length += table.size
        return first

    def share(self, table: Floats) -> int:
        """As `add`, of a table that nobody changes: where an equal one stands already."""
        content = np.asarray(table, dtype=np.float64).tobytes()
        if content not in self._known:
            self._known[content] = self.add(table)
        return self._known[content]

    def joined(self) -> Floats:
        """All tables, one after the other."""
        return np.concatenate([np.empty(0), *self.tables]).astype(np.float64)


def group_kind(problem: Problem, group: Group) -> Literal["forward", "generate"]:
    """Whether a group serves forward or generate requests.

    Raises
    ------
    InputError
        It hosts a generate service beside another, or a service that the workload does not have.
    """
    names = {service.name for service in problem.services}
    unknown = [replica.service for replica in group.replicas if replica.service not in names]
    if unknown:
        raise InputError(
            f"Group {group.name!r} hosts {unknown[0]!r}, which is no service of the workload.",
            "Solve the workload again.",
        )
    kinds = [problem.service(replica.service).request_kind for replica in group.replicas]
    if "generate" not in kinds:
        return "forward"
    if len(kinds) > 1:
        raise InputError(
            f"Group {group.name!r} hosts a generate service beside another service.",
            "A generate service has its groups to itself; place the others elsewhere.",
        )
    return "generate"


def clock_grid(problem: Problem, group: Group) -> tuple[int, ...]:
    """Clocks that the profiles of all services of a group have in common and its pool allows; ascending."""
    grids = [problem.service(replica.service).profiles[group.pool].clocks_mhz for replica in group.replicas]
    common = set(grids[0]).intersection(*grids[1:])
    allows = problem.pool(group.pool).allows_clock
    return tuple(sorted(clock for clock in common if allows(clock)))


def stage_clock_indices(group: Group, clocks_mhz: tuple[int, ...]) -> list[int]:
    """Index of each stage's clock among ``clocks_mhz``.

    Raises
    ------
    InputError
        A stage has a clock that is not among them.
    """
    for index, stage in enumerate(group.stages):
        if stage.clock_mhz not in clocks_mhz:
            raise InputError(
                f"Stage {index} of group {group.name!r} runs at {stage.clock_mhz} MHz; the profiles of its"
                f" services have {', '.join(map(str, clocks_mhz)) or 'no clock in common'}.",
                "Choose one of these clocks, or profile again with --clocks.",
            )
    return [clocks_mhz.index(stage.clock_mhz) for stage in group.stages]


def loaded_power_w(device: Device, clocks_mhz: tuple[int, ...]) -> Floats:
    """Power of a GPU that is loaded and idle at requested clocks; shape (clocks,)."""
    return np.asarray(device.loaded_power_w([device.effective_clock_mhz(clock) for clock in clocks_mhz]))


def stage_factor(serving: Serving, group: Group) -> float:
    """How many times longer a stage takes in a group of that many stages; its power is the same."""
    return 1.0 + serving.stage_overhead * len(group.stages)


def limits_of(problem: Problem, service: ResolvedService, row: Rows) -> None:
    """Fill number, limits, target and expected rate of a replica of a service, whose share is filled."""
    row["service"] = problem.number_of(service.name)
    row["latency_limit_s"], row["target"] = service.limits.latency_s, service.attainment
    row["ttft_limit_s"], row["tpot_limit_s"] = service.limits.ttft_s, service.limits.tpot_s
    row["rate_rps"], row["price"] = service.rate_rps * row["share"], FIRST_PRICE


def candidates(service: Integers, num_services: int) -> tuple[Integers, Integers]:
    """Where each service's replicas begin in the list of replicas by service, and that list.

    Parameters
    ----------
    service
        Service of each replica; shape (replicas,).

    Returns
    -------
    first, order
        Shapes (services + 1,) and (replicas,).
    """
    order = np.argsort(service, kind="stable").astype(np.int64)
    first = np.searchsorted(service[order], np.arange(num_services + 1)).astype(np.int64)
    return first, order


def add_group(
    problem: Problem, group: Group, serving: Serving, row: Rows, stages: Rows, values: Values
) -> None:
    """Fill the rows of a group and its stages: clocks, idle power, counts of waits."""
    device = problem.devices[group.pool]
    clocks = clock_grid(problem, group)
    row["first_clock"], row["num_clocks"] = values.share(np.array(clocks, dtype=np.float64)), len(clocks)
    row["clock_change_s"], row["change_at_s"] = device.clock_change_s, np.inf
    row["changed_s"] = -np.inf
    stages["clock"] = stage_clock_indices(group, clocks)
    stages["next_clock"] = stages["floor"] = stages["clock"]
    stages["clock_change_s"] = device.clock_change_s
    stages["first_loaded"] = values.share(loaded_power_w(device, clocks) * group.tensor_parallel)
    num_bins = NUM_BINS if serving.queue_order in LENGTH_ORDERS else 0
    row["first_predicted"] = values.add(np.zeros(num_bins))
    row["first_waits"] = values.add(np.zeros(num_bins))
    row["oldest"], row["newest"], row["spared"], row["last_spared"] = -1, -1, -1, -1
