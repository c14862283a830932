"""What a person wants to know of a profile: one row for each kind of cluster."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from muplan.profile import Phase, Profile
from muplan.serde import Part

Floats = NDArray[np.float64]

WHOLE_MODEL = "whole model"


class ClusterSummary(Part):
    """One cluster type (all clusters of it), or the whole model, at the summary's operating point.

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


class PipelineSummary(Part):
    """One configuration of a profile of measured pipelines, at batch 1 and the highest clock.

    ``weight_bytes_per_gpu`` are those of the fullest stage, ``power_w`` that of a busy GPU, its mean over
    the stages' time; the sensitivity is at the profile's reference clock.
    """

    tensor_parallel: int
    num_stages: int
    latency_s: float
    longest_stage_s: float
    sensitivity: float
    weight_bytes_per_gpu: int
    power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """Where a profile is summarised; ``num_stages`` None where the profile has no such axis."""

    batch: int
    tokens: int
    tensor_parallel: int = 1
    num_stages: int | None = None


def default_point(profile: Profile, phase: Phase) -> OperatingPoint:
    """Batch 1 and the middle of the profiled tokens."""
    grid = profile.grid(phase)
    return OperatingPoint(
        batch=grid.batches[0],
        tokens=grid.tokens[len(grid.tokens) // 2],
        tensor_parallel=profile.tensor_parallel[0],
        num_stages=profile.configurations[0].num_stages,
    )


def summarise_pipelines(profile: Profile) -> tuple[PipelineSummary, ...]:
    """Summarise a profile of measured pipelines: one row for each configuration, in their order."""
    grid = profile.phases[0]
    rows = []
    for index, (width, stages) in enumerate(profile.configurations):
        if stages is None:
            raise ValueError("the profile holds no measured pipelines")
        where = {"tensor_parallel": width, "num_stages": stages, "batch": 1, "tokens": grid.tokens[0]}
        order = profile.cluster_type_index
        latency = profile.latency_s(grid.phase, **where)[order]
        power = profile.power_w(grid.phase, **where)[order]
        weights = np.array([kind.weight_bytes_per_gpu[index] for kind in profile.cluster_types])[order]
        first = np.array((0, *(profile.measured_cuts(width, stages) or ())[:-1]))
        total = latency.sum(axis=0)
        rows.append(
            PipelineSummary(
                tensor_parallel=width,
                num_stages=stages,
                latency_s=float(total[-1]),
                longest_stage_s=float(np.add.reduceat(latency[:, -1], first).max()),
                sensitivity=float(_sensitivity(profile, total[None])[0]),
                weight_bytes_per_gpu=int(np.add.reduceat(weights, first).max()),
                power_w=float((latency * power).sum(axis=0)[-1] / total[-1]),
            )
        )
    return tuple(rows)


def summarise_profile(profile: Profile, phase: Phase, point: OperatingPoint) -> tuple[ClusterSummary, ...]:
    """Summarise a phase: the cluster types in the order of the graph, then the whole model."""
    where = asdict(point)
    counts = np.bincount(profile.cluster_type_index, minlength=len(profile.cluster_types))
    each = np.diag(counts)  # one row for each cluster type
    rows = np.vstack([each, counts]).astype(float)
    latency = rows @ profile.latency_s(phase, **where)
    energy = rows @ (profile.latency_s(phase, **where) * profile.power_w(phase, **where))
    low, high = _sensitivity_band(profile, phase, point, rows)
    width = profile.tensor_parallel_index(point.tensor_parallel, point.num_stages)
    weights = rows @ np.array([kind.weight_bytes_per_gpu[width] for kind in profile.cluster_types])
    score = _sensitivity(profile, latency)
    best = energy.argmin(axis=1)
    names = [kind.name for kind in profile.cluster_types] + [WHOLE_MODEL]
    return tuple(
        ClusterSummary(
            phase=phase,
            cluster=name,
            count=int(rows[index].sum()),
            time_share=float(latency[index, -1] / latency[-1, -1]),
            sensitivity=float(score[index]),
            sensitivity_low=float(low[index]),
            sensitivity_high=float(high[index]),
            weight_bytes=round(weights[index]),
            energy_optimal_clock_mhz=profile.clocks_mhz[best[index]],
            energy_saving=float(1.0 - energy[index, best[index]] / energy[index, -1]),
            slowdown=float(latency[index, best[index]] / latency[index, -1] - 1.0),
        )
        for index, name in enumerate(names)
    )


def _sensitivity(profile: Profile, latency_s: Floats) -> Floats:
    """Sensitivity at the reference clock; ``latency_s`` has the shape (rows, clocks)."""
    reference = profile.clocks_mhz.index(profile.reference_clock_mhz)
    ratio = profile.max_clock_mhz / profile.reference_clock_mhz - 1.0
    return np.asarray((latency_s[:, reference] / latency_s[:, -1] - 1.0) / ratio)


def _sensitivity_band(
    profile: Profile, phase: Phase, point: OperatingPoint, rows: Floats
) -> tuple[Floats, Floats]:
    """Lowest and highest sensitivity over the phase's batches and tokens."""
    grid = profile.grid(phase)
    scores = [
        _sensitivity(
            profile,
            rows @ profile.latency_s(phase, **asdict(replace(point, batch=batch, tokens=tokens))),
        )
        for batch in grid.batches
        for tokens in grid.tokens
    ]
    return np.min(scores, axis=0), np.max(scores, axis=0)
