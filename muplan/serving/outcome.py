"""The document of a run: what the records say, beside what the plan predicts."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Literal

import numpy as np

import muplan
from muplan.plan import Interval, Plan, ServicePrediction
from muplan.problem.problem import Problem
from muplan.run import (
    ClassOutcome,
    ClockCommand,
    Comparison,
    GroupOutcome,
    Latency,
    OverHttp,
    RealTime,
    Run,
    RunProvenance,
    ServiceEnergy,
    ServiceOutcome,
)
from muplan.serde import digest
from muplan.serving import attribution, metrics
from muplan.serving.attribution import attribute_energy
from muplan.serving.metrics import Metrics, ServiceMetrics, measure
from muplan.serving.power_outcome import PowerOutcome, modelled_power
from muplan.serving.records import Records
from muplan.serving.request_classes import ClassMetrics, measure_classes
from muplan.serving.saturation import Saturation, saturation_of

RULE_OF_THREE = 3.0
"""A share of 1 seen in n requests may be 1 − 3/n at 95 % confidence (Hanley and Lippman-Hand, 1983)."""


def make_run(
    problem: Problem,
    plan: Plan,
    records: Records,
    *,
    backend: str,
    label: Literal["modelled", "measured"],
    seed: int,
    controller: str,
    real_time: RealTime | None = None,
    over_http: OverHttp | None = None,
    power: PowerOutcome | None = None,
) -> Run:
    """Make the document of a run.

    Parameters
    ----------
    problem
        With the demand that the plan is for.
    label
        Whether times are those of a machine.
    real_time, over_http
        What only a run in real time, and on deployed servers, has to tell.
    power
        What is known of the power; as the records model it where absent.
    """
    measured = measure(records, problem)
    power = power or modelled_power(records, measured)
    return Run(
        plan=plan.name,
        provenance=RunProvenance(
            muplan_version=muplan.__version__,
            plan_digest=digest(plan),
            workload_digest=digest(problem.workload),
        ),
        backend=backend,
        label=label,
        power_label=power.label,
        seed=seed,
        duration_s=records.duration_s,
        warm_up_s=records.warm_up_s,
        cool_down_s=records.cool_down_s,
        controller=controller,
        power_w=None
        if power.mean_w is None
        else _compared(plan, problem, records, power.mean_w, plan.prediction.power_w),
        energy=power.energy,
        gpu_time=power.gpu_time,
        energy_per_request_j=_known(power.energy_per_request_j),
        energy_per_token_j=_known(power.energy_per_token_j),
        power_p99_w=power.p99_w,
        power_peak_w=power.peak_w,
        goodput_rps=_compared(plan, problem, records, measured.goodput_rps, plan.prediction.goodput_rps),
        services=_services(plan, problem, records, measured),
        groups=_groups(plan, records, power),
        power_trace=power.trace,
        clock_commands=tuple(
            ClockCommand(
                time_s=change.time_s,
                group=change.group,
                stage=change.stage,
                from_mhz=change.from_mhz,
                to_mhz=change.to_mhz,
            )
            for change in records.clock_changes
        ),
        real_time=real_time,
        over_http=over_http,
    )


def _compared(
    plan: Plan,
    problem: Problem,
    records: Records,
    observed: float,
    predicted: Interval,
    resolution: float = 0.0,
    *,
    lowest: float = -math.inf,
    highest: float = math.inf,
) -> Comparison:
    """Set an observed mean beside its prediction.

    The prediction's interval is that of a mean of n replications: t · s/√n. One more replication
    differs from that mean by t · s · √(1 + 1/n), and one of another length by
    t · s · √(L/l + 1/n), as the variance of a mean over time falls with the length l. The band is cut
    to ``lowest..highest``.
    """
    simulation = problem.workload.simulation
    replications = max(plan.prediction.replications, 1)
    uncounted_s = simulation.warm_up_s + simulation.cool_down_s
    length = (plan.prediction.duration_s - uncounted_s) / records.measured_s
    half = max(predicted.high - predicted.mean, predicted.mean - predicted.low)
    reach = max(half * math.sqrt(1.0 + replications * max(length, 0.0)), resolution)
    return Comparison(
        observed=observed,
        predicted=predicted,
        low=max(predicted.mean - reach, lowest),
        high=min(predicted.mean + reach, highest),
    )


def _services(
    plan: Plan, problem: Problem, records: Records, measured: Metrics
) -> tuple[ServiceOutcome, ...]:
    predictions = {service.service: service for service in plan.prediction.services}
    energies, classes = attribute_energy(records), measure_classes(records, problem)
    outcomes = []
    for service in measured.services:
        outcome = _service(plan, problem, records, service, predictions[service.service])
        parts = {
            "energy": _energy(records, service, energies.get(service.service)),
            "classes": tuple(_class(one) for one in classes[service.service]),
        }
        outcomes.append(outcome.model_copy(update=parts))
    return tuple(outcomes)


def _energy(
    records: Records, service: ServiceMetrics, energy: attribution.ServiceEnergy | None
) -> ServiceEnergy | None:
    """The energy of a service, over its requests and their tokens."""
    if energy is None:
        return None
    mine = records.counted & ~records.rejected & (records.service == records.services.index(service.service))
    output = int(records.output_tokens[mine].sum())
    total = output + int(records.input_tokens[mine].sum())
    num_served = service.num_requests - service.num_rejected
    return ServiceEnergy(
        busy_share=energy.busy_s / energy.hosted_s,
        power_w=energy.energy_j / records.measured_s,
        busy_j=energy.busy_j,
        loaded_j=energy.loaded_j,
        energy_per_request_j=energy.energy_j / num_served if num_served else None,
        energy_per_token_j=energy.energy_j / output if output else None,
        energy_per_total_token_j=energy.energy_j / total if total else None,
    )


def _class(one: ClassMetrics) -> ClassOutcome:
    return ClassOutcome(
        from_tokens=one.from_tokens,
        below_tokens=one.below_tokens,
        num_requests=one.num_requests,
        num_rejected=one.num_rejected,
        attainment=one.attainment,
        latency=told_latency(one.latency),
        ttft=told_latency(one.ttft),
        tpot=told_latency(one.tpot),
    )


def _service(
    plan: Plan, problem: Problem, records: Records, service: ServiceMetrics, prediction: ServicePrediction
) -> ServiceOutcome:
    resolution = RULE_OF_THREE / service.num_requests if service.num_requests else 1.0
    latency = _known(service.latency.mean_s)
    return ServiceOutcome(
        service=service.service,
        num_requests=service.num_requests,
        num_rejected=service.num_rejected,
        rate_rps=service.rate_rps,
        target=service.target,
        attainment=_compared(
            plan,
            problem,
            records,
            service.attainment,
            prediction.attainment,
            resolution,
            lowest=0.0,
            highest=1.0,
        ),
        meets_target=service.meets_target,
        latency_mean_s=None
        if latency is None
        else _compared(plan, problem, records, latency, prediction.latency_mean_s),
        latency=told_latency(service.latency),
        ttft=told_latency(service.ttft),
        tpot=told_latency(service.tpot),
        itl=told_latency(service.itl),
        goodput_rps=service.num_within / records.measured_s,
        mean_batch=_known(service.mean_batch),
    )


def told_latency(latency: metrics.Latency | None) -> Latency | None:
    """Percentiles as documents hold them: absent where nothing was served."""
    if latency is None or math.isnan(latency.mean_s):
        return None
    return Latency(**asdict(latency))


def _known(value: float | None) -> float | None:
    """A figure as documents hold it: absent where there is none (NaN)."""
    return None if value is None or math.isnan(value) else value


def _saturation(records: Records, group: str) -> Saturation:
    mine = records.group == records.groups.index(group)
    return saturation_of(
        records.arrival_s[mine],
        records.start_s[mine],
        begin_s=records.warm_up_s,
        end_s=records.measured_until_s,
    )


def _groups(plan: Plan, records: Records, power: PowerOutcome) -> tuple[GroupOutcome, ...]:
    outcomes = []
    for group in plan.deployment.groups:
        outcome = GroupOutcome(
            group=group.name, num_gpus=len(group.gpus), energy_j=power.group_energy_j.get(group.name)
        )
        stages = [stage for stage in records.stages if stage.group == group.name]
        if stages:  # the servers of others show neither stages nor queues
            busy_s = np.array([stage.busy_s for stage in stages])
            outcome = GroupOutcome(
                group=group.name,
                num_gpus=len(group.gpus),
                busy_share=float(busy_s.mean()) / records.measured_s,
                busy_j=sum(stage.busy_j for stage in stages),
                loaded_j=sum(stage.loaded_j for stage in stages),
                switching_j=_known(sum(stage.switching_j for stage in stages)),
                saturation=_saturation(records, group.name).value,
            )
        outcomes.append(outcome)
    return tuple(outcomes)
