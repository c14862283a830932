"""What a person wants to know of a profile: one row for each kind of cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muplan.profile import Phase, Profile
from muplan.serde import Part


class ClusterSummary(Part):
    """One cluster type in one phase, at the summary's operating point.

    Sensitivities are at the profile's reference clock; ``low`` and ``high`` are their extremes over
    all profiled batches and tokens of the phase.
    """

    phase: Phase
    cluster: str
    count: int
    time_share: float
    sensitivity: float
    sensitivity_low: float
    sensitivity_high: float
    weight_bytes: int
    energy_optimal_clock_mhz: int
    energy_saving: float
    """Energy saved at that clock against the highest, as a share."""
    slowdown: float
    """Latency at that clock over the latency at the highest, less one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """Where a profile is summarised."""

    batch: int
    tokens: int
    tensor_parallel: int = 1


def default_point(profile: Profile, phase: Phase) -> OperatingPoint:
    """Batch 1 and the middle of the profiled tokens."""
    grid = profile.grid(phase)
    return OperatingPoint(
        batch=grid.batches[0],
        tokens=grid.tokens[len(grid.tokens) // 2],
        tensor_parallel=profile.tensor_parallel[0],
    )


def summarise_profile(profile: Profile, phase: Phase, point: OperatingPoint) -> tuple[ClusterSummary, ...]:
    """Summarise a phase; the rows are in the order of the graph."""
    where = {"tensor_parallel": point.tensor_parallel, "batch": point.batch, "tokens": point.tokens}
    latency = profile.latency_s(phase, **where)
    energy = latency * profile.power_w(phase, **where)
    counts = np.bincount(profile.cluster_type_index, minlength=len(profile.cluster_types))
    time = counts * latency[:, -1]
    score = profile.sensitivity_score(phase, **where)
    low, high = _sensitivity_band(profile, phase, point.tensor_parallel)
    best = energy.argmin(axis=1)
    rows = np.arange(len(best))
    saving = 1.0 - energy[rows, best] / energy[:, -1]
    slowdown = latency[rows, best] / latency[:, -1] - 1.0
    width = profile.tensor_parallel_index(point.tensor_parallel)
    return tuple(
        ClusterSummary(
            phase=phase,
            cluster=kind.name,
            count=int(counts[index]),
            time_share=float(time[index] / time.sum()),
            sensitivity=float(score[index]),
            sensitivity_low=float(low[index]),
            sensitivity_high=float(high[index]),
            weight_bytes=int(counts[index] * kind.weight_bytes_per_gpu[width]),
            energy_optimal_clock_mhz=profile.clocks_mhz[best[index]],
            energy_saving=float(saving[index]),
            slowdown=float(slowdown[index]),
        )
        for index, kind in enumerate(profile.cluster_types)
    )


def _sensitivity_band(profile: Profile, phase: Phase, tensor_parallel: int) -> tuple[np.ndarray, np.ndarray]:
    grid = profile.grid(phase)
    scores = np.array(
        [
            profile.sensitivity_score(phase, tensor_parallel=tensor_parallel, batch=batch, tokens=tokens)
            for batch in grid.batches
            for tokens in grid.tokens
        ]
    )
    return scores.min(axis=0), scores.max(axis=0)
