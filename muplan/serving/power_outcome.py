"""The power of a run, as its document has it: modelled, measured, or not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import Literal

import numpy as np

from muplan.run import EnergySplit, PowerTrace, TimeSplit
from muplan.serving.metrics import Metrics
from muplan.serving.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOutcome:
    """Power and energy of the fleet in the measured period; None is what is not known.

    Parameters
    ----------
    group_energy_j
        Energy of groups by their GPUs' counters.
    """

    label: Literal["modelled", "measured", "not measured"] = "not measured"
    mean_w: float | None = None
    energy: EnergySplit | None = None
    gpu_time: TimeSplit | None = None
    energy_per_request_j: float | None = None
    energy_per_token_j: float | None = None
    p99_w: float | None = None
    peak_w: float | None = None
    trace: PowerTrace | None = None
    group_energy_j: Mapping[str, float] = field(default_factory=dict)


def modelled_power(records: Records, measured: Metrics) -> PowerOutcome:
    """The power that the profiles give while stages compute."""
    p99_w, peak_w = _powers_w(records)
    switching_j = sum(stage.switching_j for stage in records.stages)
    return PowerOutcome(
        label="modelled",
        mean_w=measured.power_w,
        energy=EnergySplit(
            busy_j=measured.busy_j,
            loaded_j=measured.loaded_j,
            parked_j=measured.parked_j,
            switching_j=None if isnan(switching_j) else switching_j,
        ),
        gpu_time=TimeSplit(
            busy_s=sum(stage.num_gpus * stage.busy_s for stage in records.stages),
            loaded_s=sum(stage.num_gpus * stage.loaded_s for stage in records.stages),
            parked_s=records.parked_gpus * records.measured_s,
            switching_s=sum(stage.num_gpus * stage.switching_s for stage in records.stages),
        ),
        energy_per_request_j=measured.energy_per_request_j,
        energy_per_token_j=measured.energy_per_token_j,
        p99_w=p99_w,
        peak_w=peak_w,
        trace=PowerTrace(
            width_s=records.samples.width_s,
            busy_w=tuple(records.samples.busy_w.tolist()),
            loaded_w=tuple(records.samples.loaded_w.tolist()),
            parked_w=records.samples.parked_w,
        ),
    )


def _powers_w(records: Records) -> tuple[float, float]:
    """The 99th percentile and the highest power of the samples within the measured period."""
    samples = records.samples
    begins_s = np.arange(len(samples.busy_w)) * samples.width_s
    inside = (begins_s >= records.warm_up_s) & (begins_s + samples.width_s <= records.measured_until_s + 1e-9)
    powers_w = (samples.busy_w + samples.loaded_w + samples.parked_w)[inside]
    if len(powers_w) == 0:  # the measured period is shorter than two samples
        return records.power_w, records.power_w
    return float(np.quantile(powers_w, 0.99)), float(powers_w.max())
