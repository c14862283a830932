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
from muplan.serving.records import ClockChange, PowerSamples, Records, ReplicaEnergy, StageEnergy


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
    """What one kernel leaves.

    Parameters
    ----------
    groups, stages
        Its groups, and the energy of their stages.
    replicas
        The energy of their replicas; None where it is not told apart by service.
    samples_j
        As `open_account` has it.
    log
        Of clock changes.
    is_detailed
        Whether the account tells what was drawn while clocks changed.
    token_intervals
        As `Records` has them.
    """

    groups: tuple[Group, ...]
    stages: Rows
    samples_j: Floats
    log: Floats
    replicas: Rows | None = None
    is_detailed: bool = False
    token_intervals: Floats | None = None


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


def _stage_energies(case: Case, result: KernelResult) -> list[StageEnergy]:
    places = [(group, stage) for group in result.groups for stage in range(len(group.stages))]
    switching_s, switching_j = _switching(case, result)
    return [
        StageEnergy(
            group=group.name,
            stage=stage,
            num_gpus=group.tensor_parallel,
            busy_s=float(row["busy_s"]),
            busy_j=float(row["busy_j"]),
            loaded_s=float(row["loaded_s"]),
            loaded_j=float(row["loaded_j"]),
            switching_s=float(switching_s[place]),
            switching_j=float(switching_j[place]),
        )
        for place, (row, (group, stage)) in enumerate(zip(result.stages, places, strict=True))
    ]


def _switching(case: Case, result: KernelResult) -> tuple[Floats, Floats]:
    """Time and energy of each stage within commanded clock changes and the measured period; shapes (stages,).

    The kernel notes energy within every change that its decisions, one each window, might have commanded.
    """
    stages = result.stages
    log = result.log.reshape(-1, LOG_COLUMNS)
    at_s, place = log[:, 0], log[:, 1].astype(np.int64)
    begin_s = np.maximum(at_s, case.warm_up_s)
    end_s = np.minimum(at_s + stages["clock_change_s"][place], case.measured_until_s)
    seconds = np.zeros(len(stages))
    np.add.at(seconds, place, np.maximum(end_s - begin_s, 0.0))
    joules = np.zeros(len(stages))
    if len(log) > 0:
        decision = np.rint(at_s / case.controller.period_s).astype(np.int64) - 1
        noted_j = result.samples_j[stages["first_change"][place] + decision] if result.is_detailed else np.nan
        np.add.at(joules, place, noted_j)
    return seconds, joules


def _replica_energies(result: KernelResult) -> list[ReplicaEnergy]:
    """Of every replica whose passes are told apart; a group with one replica is busy with nothing else."""
    energies, first_stage, first_replica = list[ReplicaEnergy](), 0, 0
    for group in result.groups:
        last_stage, last_replica = first_stage + len(group.stages), first_replica + len(group.replicas)
        if len(group.replicas) == 1:
            rows = [result.stages[first_stage:last_stage]]
        elif result.replicas is not None:
            rows = list(result.replicas[first_replica:last_replica, None])
        else:
            rows = []
        energies += [
            ReplicaEnergy(
                group=group.name,
                service=replica.service,
                busy_s=group.tensor_parallel * float(row["busy_s"].sum()),
                busy_j=float(row["busy_j"].sum()),
            )
            for replica, row in zip(group.replicas, rows, strict=False)
        ]
        first_stage, first_replica = last_stage, last_replica
    return energies


def _parked(case: Case) -> tuple[int, float]:
    """The GPUs that host nothing, and their power."""
    placed = set(case.deployment.placed_gpus)
    numbers = [sum(gpu not in placed for gpu in pool.gpu_ids()) for pool in case.problem.pools]
    devices = [case.problem.devices[pool.name] for pool in case.problem.pools]
    powers_w = [device.parked_w * number for device, number in zip(devices, numbers, strict=True)]
    return sum(numbers), sum(powers_w)


def make_records(case: Case, columns: Columns, results: Sequence[KernelResult]) -> Records:
    """Put the columns, the energy and the clock changes of the kernels together."""
    trace, (parked_gpus, parked_w) = case.trace, _parked(case)
    order = {group.name: number for number, group in enumerate(case.deployment.groups)}
    stages = sorted(
        (stage for result in results for stage in _stage_energies(case, result)),
        key=lambda stage: (order[stage.group], stage.stage),
    )
    replicas = sorted(
        (replica for result in results for replica in _replica_energies(result)),
        key=lambda replica: order[replica.group],
    )
    changes = sorted(
        (change for result in results for change in _changes(case, result)),
        key=lambda change: (change.time_s, order[change.group], change.stage),
    )
    width_s = trace.duration_s / case.num_samples
    num_samples_j = 2 * case.num_samples
    samples_j = sum((result.samples_j[:num_samples_j] for result in results), np.zeros(num_samples_j))
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
        replicas=tuple(replicas),
        parked_gpus=parked_gpus,
        parked_j=parked_w * (case.measured_until_s - case.warm_up_s),
        samples=PowerSamples(
            width_s=width_s, busy_w=samples_w[BUSY], loaded_w=samples_w[LOADED], parked_w=parked_w
        ),
        clock_changes=tuple(changes),
        token_intervals=next(
            (result.token_intervals for result in results if result.token_intervals is not None), None
        ),
    )
