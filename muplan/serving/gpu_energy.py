"""Energy of a run by the counters of its GPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from muplan.hardware.meter import Meter
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.serving.power_outcome import PowerOutcome
from muplan.serving.records import Records

EVERY_S = 0.5
"""Time between readings. Counters are refreshed every 20 to 100 ms."""

_LEAST_S = 2.0
"""The shortest period whose energy is told by counters that are refreshed so seldom."""

GpuName = int | str
"""A GPU as NVML names it: its number, or its UUID."""
Meters = Mapping[GpuName, Meter]


@dataclass(slots=True, kw_only=True)
class EnergyReadings:
    """Counters as they were read: times since the run began, and joules of each GPU at each of them.

    ``fault`` says why they end early, where a GPU refused.
    """

    at_s: list[float] = field(default_factory=list)
    counters_j: dict[GpuName, list[float]] = field(default_factory=dict)
    fault: str | None = None

    def note(self, at_s: float, counters_j: Mapping[GpuName, float]) -> None:
        """Put down what all counters say at a time."""
        self.at_s.append(at_s)
        for gpu, counter_j in counters_j.items():
            self.counters_j.setdefault(gpu, []).append(counter_j)

    def energy_j(self, gpu: GpuName, begin_s: float, end_s: float) -> float:
        """Energy of a GPU between two times; the counter is taken to rise evenly between two readings."""
        begin_j, until_j = np.interp([begin_s, end_s], self.at_s, self.counters_j[gpu])
        return float(until_j - begin_j)


def read_counters(meters: Meters, now_s: Callable[[], float]) -> tuple[float, dict[GpuName, float]]:
    """Read all counters: the time, and joules of each GPU.

    Raises
    ------
    DeviceError
        A GPU refuses.
    """
    return now_s(), {gpu: meter.energy_j() for gpu, meter in meters.items()}


def measured_power(
    problem: Problem,
    plan: Plan,
    records: Records,
    readings: EnergyReadings,
    *,
    group_gpus: Mapping[str, Sequence[GpuName]],
    parked_gpus: Sequence[GpuName],
) -> tuple[PowerOutcome, str | None]:
    """The power of the fleet by its GPUs' counters, and why it is not known where some were named.

    It is the fleet's only where every GPU of the plan was read, the parked ones too.
    """
    if not group_gpus and not parked_gpus:
        return PowerOutcome(), None
    begin_s, end_s = records.warm_up_s, records.measured_until_s
    if (fault := _gap(readings, begin_s, end_s)) is not None:
        return PowerOutcome(), fault
    group_j = {
        group: sum(readings.energy_j(gpu, begin_s, end_s) for gpu in gpus)
        for group, gpus in group_gpus.items()
    }
    missing = [group.name for group in plan.deployment.groups if group.name not in group_gpus]
    num_parked = len(plan.parked) - len(parked_gpus)
    if missing or num_parked:
        lacking = [*missing, *([f"{num_parked} parked GPUs"] if num_parked else [])]
        return PowerOutcome(group_energy_j=group_j), f"the GPUs of {', '.join(lacking)} were not read"
    fleet_j = sum(group_j.values())
    fleet_j += sum(readings.energy_j(gpu, begin_s, end_s) for gpu in parked_gpus)
    answered = records.counted & ~records.rejected
    generates = np.array([service.request_kind == "generate" for service in problem.services])
    num_tokens = int(records.output_tokens[answered & generates[records.service]].sum())
    outcome = PowerOutcome(
        label="measured",
        mean_w=fleet_j / records.measured_s,
        energy_per_request_j=fleet_j / int(answered.sum()) if answered.any() else None,
        energy_per_token_j=fleet_j / num_tokens if num_tokens else None,
        group_energy_j=group_j,
    )
    return outcome, None


def _gap(readings: EnergyReadings, begin_s: float, end_s: float) -> str | None:
    """Why the readings do not tell the energy of a period; None where they do."""
    if readings.fault is not None:
        return readings.fault
    if end_s - begin_s < _LEAST_S:
        return f"counters tell nothing of less than {_LEAST_S:g} s"
    if not readings.at_s or readings.at_s[0] > begin_s + EVERY_S or readings.at_s[-1] < end_s:
        return "the run was broken off between two readings of the counters"
    return None
