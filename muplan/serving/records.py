"""What a simulation gives: request records, energy, power samples and clock changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockChange:
    """A commanded change of one stage's clock."""

    time_s: float
    """When it was commanded; it takes effect one clock-change time of the device later."""
    group: str
    stage: int
    from_mhz: int
    to_mhz: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEnergy:
    """Energy of the GPUs of one stage within the measured period."""

    group: str
    stage: int
    num_gpus: int
    busy_s: float
    busy_j: float
    """While the stage computes."""
    loaded_s: float
    loaded_j: float
    """While it is loaded and idle."""
    switching_s: float
    switching_j: float
    """Of both, while a commanded change of its clock was not in effect yet; NaN where not noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaEnergy:
    """What the passes of a service on a group took within the measured period, all stages and GPUs."""

    group: str
    service: str
    busy_s: float
    """GPU-seconds."""
    busy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerSamples:
    """Mean power of the fleet over equal parts of the time from 0 to the duration; shape (samples,)."""

    width_s: float
    busy_w: Floats
    loaded_w: Floats
    parked_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Requests in the order of arrival as columns, with the energy of the fleet.

    Parameters
    ----------
    services, groups
        Names that ``service`` and ``group`` index.
    service, input_tokens, output_tokens, arrival_s
        The requests, as in the trace; shape (requests,).
    group
        Where each was served; −1 where it was rejected.
    start_s
        When its batch was dispatched, or its prefill began; NaN where rejected, as the times below.
    first_token_s
        End of its first token (generate) or its completion (forward); with the serving overhead, as
        the completion.
    completion_s
        End of its last token, or of its pass, and the serving overhead.
    batch
        Requests of its batch (forward), or sequences running when it was first admitted, itself
        included (generate).
    num_preemptions
        How often each was preempted.
    warm_up_s, cool_down_s
        What is not measured at the beginning and at the end.
    duration_s
        Length of the trace.
    stages, replicas, parked_j, samples
        Energy within the measured period; samples over all the time. A group whose passes were not told apart
        by service has no replicas here.
    parked_gpus
        GPUs that host nothing.
    clock_changes
        Commanded changes, by time.
    token_intervals
        Counts of the intervals between tokens, of `muplan.serving.token_intervals`, over the requests that
        arrived in the measured period; shape (services, columns), None where not counted.
    """

    services: tuple[str, ...]
    groups: tuple[str, ...]
    service: Integers
    input_tokens: Integers
    output_tokens: Integers
    arrival_s: Floats
    group: Integers
    start_s: Floats
    first_token_s: Floats
    completion_s: Floats
    batch: Integers
    num_preemptions: Integers
    warm_up_s: float
    cool_down_s: float
    duration_s: float
    stages: tuple[StageEnergy, ...]
    replicas: tuple[ReplicaEnergy, ...]
    parked_gpus: int
    parked_j: float
    samples: PowerSamples
    clock_changes: tuple[ClockChange, ...]
    token_intervals: Floats | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Which requests were rejected; shape (requests,)."""
        return self.group < 0

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which requests arrived in the measured period; shape (requests,)."""
        return (self.arrival_s >= self.warm_up_s) & (self.arrival_s < self.measured_until_s)

    @property
    def measured_until_s(self) -> float:
        """End of the measured period."""
        return self.duration_s - self.cool_down_s

    @property
    def measured_s(self) -> float:
        """Length of the measured period."""
        return self.measured_until_s - self.warm_up_s

    @property
    def busy_j(self) -> float:
        """Energy of computing."""
        return sum(stage.busy_j for stage in self.stages)

    @property
    def loaded_j(self) -> float:
        """Energy of GPUs that are loaded and idle."""
        return sum(stage.loaded_j for stage in self.stages)

    @property
    def energy_j(self) -> float:
        """Energy of the fleet."""
        return self.busy_j + self.loaded_j + self.parked_j

    @property
    def power_w(self) -> float:
        """Mean power of the fleet."""
        return self.energy_j / self.measured_s


def records_csv(records: Records) -> str:
    """The request records as CSV text; a rejected request has empty times."""
    header = "arrival_s,service,input_tokens,output_tokens,group,start_s,first_token_s,completion_s,batch"
    lines = [header]
    for index in range(len(records)):
        group = records.group[index]
        head = (
            f"{float(records.arrival_s[index])!r},{records.services[records.service[index]]},"
            f"{records.input_tokens[index]},{records.output_tokens[index]}"
        )
        times = (records.start_s, records.first_token_s, records.completion_s)
        rest = ",".join(f"{float(column[index])!r}" for column in times)
        served = f"{records.groups[group]},{rest},{records.batch[index]}"
        lines.append(f"{head},{',,,,' if group < 0 else served}")
    return "\n".join(lines) + "\n"
