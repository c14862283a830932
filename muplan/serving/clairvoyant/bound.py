"""The clairvoyant bound: the least energy of a run's measured period that any control of clocks can reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muplan.plan import Deployment
from muplan.problem.problem import Problem
from muplan.serving.case import groups_of
from muplan.serving.clairvoyant.forward_streams import forward_streams
from muplan.serving.clairvoyant.generate_streams import generate_streams
from muplan.serving.clairvoyant.programme import Programme, least_energy_j
from muplan.serving.clairvoyant.slots import Slots, even_edges
from muplan.serving.groups import clock_grid, loaded_power_w
from muplan.serving.layout import Floats, Integers
from muplan.serving.records import Records

NUM_SLOTS = 720
"""Most slots of the programme where nothing else is asked for."""
LEAST_SLOT_S = 1.0
"""Their least width, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClairvoyantBound:
    """Joules of the measured period that no control of clocks can do without.

    ``idle_j`` is what the fleet draws at rest, at its lowest clocks; ``work_j`` what the requests add.
    """

    idle_j: float
    work_j: float

    @property
    def energy_j(self) -> float:
        """The bound."""
        return self.idle_j + self.work_j


def slot_width_s(measured_s: float) -> float:
    """Width of the slots of a measured period where nothing else is asked for, seconds."""
    return max(measured_s / NUM_SLOTS, LEAST_SLOT_S)


def clairvoyant_bound(
    problem: Problem, deployment: Deployment, records: Records, *, slot_s: float | None = None
) -> ClairvoyantBound:
    """Bound the energy at which a run's requests could have been served, each on the group that served it.

    Every service reaches its attainment target, no more; what each group is given is as recorded.

    Parameters
    ----------
    records
        The run. Its clocks and times are not looked at, only its requests and their groups.
    slot_s
        Width of the programme's slots, seconds, else `slot_width_s`; the narrower, the higher the bound.

    Raises
    ------
    SolverError
        The requests cannot be served in time even at the fastest clocks.
    """
    resources = tuple(
        (group.name, stage) for group in deployment.groups for stage in range(len(group.stages))
    )
    slot_s = slot_s or slot_width_s(records.measured_s)
    edges_s = even_edges(records.warm_up_s, records.measured_until_s, slot_s)
    slots = Slots(edges_s=edges_s, resources=resources)
    serving = deployment.serving
    streams = (
        *forward_streams(problem, groups_of(problem, deployment, "forward"), serving, records, slots),
        *generate_streams(problem, groups_of(problem, deployment, "generate"), serving, records, slots),
    )
    work_j = least_energy_j(
        Programme(edges_s=edges_s, streams=streams, service=records.service, spare=_spare(problem, records))
    )
    return ClairvoyantBound(idle_j=records.parked_j + _idle_j(problem, deployment, records), work_j=work_j)


def _spare(problem: Problem, records: Records) -> Integers:
    """How many requests of each service may miss their limits, beside those that no group took."""
    targets = np.array([service.attainment for service in problem.services])
    counted = np.bincount(records.service[records.counted], minlength=len(targets))
    refused = np.bincount(records.service[records.counted & records.rejected], minlength=len(targets))
    # a share is reached to rounding: one request more where it is a whole number of them
    due = np.ceil(targets * counted - 1e-9).astype(np.int64)
    return np.asarray(np.maximum(counted - due - refused, 0))


def _idle_j(problem: Problem, deployment: Deployment, records: Records) -> float:
    """Energy of the placed GPUs if they did nothing, at the clock at which they draw least."""
    total_w = 0.0
    for group in deployment.groups:
        lowest_w: Floats = loaded_power_w(problem.devices[group.pool], clock_grid(problem, group))
        total_w += float(lowest_w.min()) * len(group.gpus)
    return total_w * records.measured_s
