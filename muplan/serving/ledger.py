"""The ledger of a simulation: what the kernels leave, turned into records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.plan import Group
from muplan.serving.case import Case
from muplan.serving.control import LOG_COLUMNS
from muplan.serving.energy import BUSY, LOADED
from muplan.serving.groups import clock_grid
from muplan.serving.layout import Floats, Integers, Rows
from muplan.serving.records import ClockChange, PowerSamples, Records, StageEnergy


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns of the records under construction, in the order of arrival."""

    group: Integers
    start_s: Floats
    first_token_s: Floats
    completion_s: Floats
    batch: Integers
    num_preemptions: Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResult:
    """What one kernel leaves: its groups, the energy of their stages, the log of clock changes."""

    groups: tuple[Group, ...]
    stages: Rows
    samples_j: Floats
    log: Floats


def empty_columns(num_requests: int) -> Columns:
    """Return columns of rejected requests."""
    return Columns(
        group=np.full(num_requests, -1, dtype=np.int64),
        start_s=np.full(num_requests, np.nan),
        first_token_s=np.full(num_requests, np.nan),
        completion_s=np.full(num_requests, np.nan),
        batch=np.zeros(num_requests, dtype=np.int64),
        num_preemptions=np.zeros(num_requests, dtype=np.int64),
    )


def _changes(case: Case, result: KernelResult) -> list[ClockChange]:
    """The log of clock changes in words."""
    places = [(group, stage) for group in result.groups for stage in range(len(group.stages))]
    changes = []
    for time_s, place, before, after in result.log.reshape(-1, LOG_COLUMNS):
        group, stage = places[int(place)]
        clocks = clock_grid(case.problem, group)
        changes.append(
            ClockChange(
                time_s=float(time_s),
                group=group.name,
                stage=stage,
                from_mhz=clocks[int(before)],
                to_mhz=clocks[int(after)],
            )
        )
    return changes


def _stage_energies(result: KernelResult) -> list[StageEnergy]:
    places = [(group, stage) for group in result.groups for stage in range(len(group.stages))]
    return [
        StageEnergy(
            group=group.name,
            stage=stage,
            num_gpus=group.tensor_parallel,
            busy_s=float(row["busy_s"]),
            busy_j=float(row["busy_j"]),
            loaded_s=float(row["loaded_s"]),
            loaded_j=float(row["loaded_j"]),
        )
        for row, (group, stage) in zip(result.stages, places, strict=True)
    ]


def _parked_w(case: Case) -> float:
    """Power of the GPUs that host nothing."""
    placed = set(case.deployment.placed_gpus)
    return sum(
        case.problem.devices[pool.name].parked_w * sum(gpu not in placed for gpu in pool.gpu_ids())
        for pool in case.problem.pools
    )


def make_records(case: Case, columns: Columns, results: Sequence[KernelResult]) -> Records:
    """Put the columns, the energy and the clock changes of the kernels together."""
    trace, parked_w = case.trace, _parked_w(case)
    order = {group.name: number for number, group in enumerate(case.deployment.groups)}
    stages = sorted(
        (stage for result in results for stage in _stage_energies(result)),
        key=lambda stage: (order[stage.group], stage.stage),
    )
    changes = sorted(
        (change for result in results for change in _changes(case, result)),
        key=lambda change: (change.time_s, order[change.group], change.stage),
    )
    width_s = trace.duration_s / case.num_samples
    samples_j = sum((result.samples_j for result in results), np.zeros(2 * case.num_samples))
    samples_w = samples_j.reshape(2, -1) / width_s
    return Records(
        services=tuple(service.name for service in case.problem.services),
        groups=tuple(order),
        service=case.service,
        input_tokens=trace.input_tokens.astype(np.int64),
        output_tokens=trace.output_tokens.astype(np.int64),
        arrival_s=trace.arrival_s,
        group=columns.group,
        start_s=columns.start_s,
        first_token_s=columns.first_token_s,
        completion_s=columns.completion_s,
        batch=columns.batch,
        num_preemptions=columns.num_preemptions,
        warm_up_s=case.warm_up_s,
        cool_down_s=case.cool_down_s,
        duration_s=trace.duration_s,
        stages=tuple(stages),
        parked_j=parked_w * (case.measured_until_s - case.warm_up_s),
        samples=PowerSamples(
            width_s=width_s, busy_w=samples_w[BUSY], loaded_w=samples_w[LOADED], parked_w=parked_w
        ),
        clock_changes=tuple(changes),
    )
