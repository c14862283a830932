"""Check a saved run: its figures follow from one another, recomputed from the document alone.

The request records are a file of their own, and none of the code that made the run is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from muplan.run import Latency, Run, ServiceOutcome
from muplan.serde import read_document
from muplan.verify.violation import ARITHMETIC_TOLERANCE, Violation

ENERGY_TOLERANCE = 1e-9
"""Relative; energy is counted once by service and once by what the GPUs do, so only rounding may differ."""


def check_run(path: Path) -> tuple[Run, tuple[Violation, ...]]:
    """Read a saved run, and return it with what does not follow.

    Raises
    ------
    InputError
        The run cannot be read.
    """
    run = read_document(path, Run)
    violations = [
        *energy_adds_up(run),
        *time_adds_up(run),
        *attainment_follows(run),
        *percentiles_ascend(run),
        *power_follows(run),
    ]
    return run, tuple(violations)


def energy_adds_up(run: Run) -> Iterator[Violation]:
    """Groups make up the fleet, services and parked GPUs too, and power is energy over time.

    Only what is modelled is split so that it can be added up.
    """
    energy, groups = run.energy, run.groups
    if energy is None or run.power_w is None:
        return
    total_j = energy.busy_j + energy.loaded_j + energy.parked_j
    claims = [
        ("power_w", run.power_w.observed * _measured_s(run), total_j),
        ("energy.busy_j", energy.busy_j, sum(group.busy_j or 0.0 for group in groups)),
        ("energy.loaded_j", energy.loaded_j, sum(group.loaded_j or 0.0 for group in groups)),
    ]
    services = [service.energy for service in run.services if service.energy is not None]
    if services:
        of_services_j = sum(one.busy_j + one.loaded_j for one in services)
        claims.append(("services", of_services_j + energy.parked_j, total_j))
    if energy.switching_j is not None:
        switching_j = sum(group.switching_j or 0.0 for group in groups)
        claims.append(("energy.switching_j", energy.switching_j, switching_j))
    for service in run.services:
        served, own = service.num_requests - service.num_rejected, service.energy
        if own is not None and own.energy_per_request_j is not None:
            claims.append((service.service, own.energy_per_request_j * served, own.busy_j + own.loaded_j))
            claims.append((service.service, own.power_w * _measured_s(run), own.busy_j + own.loaded_j))
    yield from _differing("energy_adds_up", "J", claims, ENERGY_TOLERANCE)
    if (energy.switching_j or 0.0) > (energy.busy_j + energy.loaded_j) * (1 + ENERGY_TOLERANCE):
        message = "more than the placed GPUs took in all"
        yield Violation(constraint="energy_adds_up", subject="energy.switching_j", message=message)


def time_adds_up(run: Run) -> Iterator[Violation]:
    """The GPUs of the groups are busy, or loaded and idle, and nothing else, all the time."""
    time, measured_s = run.gpu_time, _measured_s(run)
    if time is None or run.real_time is not None:
        return
    placed = sum(group.num_gpus for group in run.groups)
    busy_s = sum((group.busy_share or 0.0) * group.num_gpus for group in run.groups) * measured_s
    claims = [
        ("gpu_time", time.busy_s + time.loaded_s, placed * measured_s),
        ("gpu_time.busy_s", time.busy_s, busy_s),
    ]
    yield from _differing("time_adds_up", "GPU-seconds", claims, ARITHMETIC_TOLERANCE)
    if time.switching_s > placed * measured_s * (1 + ARITHMETIC_TOLERANCE):
        message = f"{time.switching_s:g} of {placed * measured_s:g} GPU-seconds"
        yield Violation(constraint="time_adds_up", subject="gpu_time.switching_s", message=message)


def attainment_follows(run: Run) -> Iterator[Violation]:
    """Attainment, rate and goodput are counts of requests; those of the classes are the service's."""
    claims, within = [], 0.0
    for service in run.services:
        own = service.attainment.observed * service.num_requests if service.num_requests else 0.0
        within += own
        claims.append((f"{service.service} within", own, float(round(own))))
        claims.append(
            (f"{service.service} rate_rps", service.rate_rps * _measured_s(run), float(service.num_requests))
        )
        if service.goodput_rps is not None:
            claims.append((f"{service.service} goodput_rps", service.goodput_rps * _measured_s(run), own))
        if service.classes:
            claims += _class_claims(service, own)
        if service.meets_target != (service.attainment.observed >= service.target):
            message = f"says the opposite of its attainment {service.attainment.observed:.4%}"
            yield Violation(constraint="attainment_follows", subject=service.service, message=message)
    claims.append(("goodput_rps", run.goodput_rps.observed * _measured_s(run), within))
    yield from _differing("attainment_follows", "requests", claims, ARITHMETIC_TOLERANCE)


def _class_claims(service: ServiceOutcome, within: float) -> list[tuple[str, float, float]]:
    of_classes = [
        (float(one.num_requests), float(one.num_rejected), one.attainment * one.num_requests)
        for one in service.classes
    ]
    names = ("requests", "rejected", "within")
    totals = (float(service.num_requests), float(service.num_rejected), within)
    sums = (sum(column) for column in zip(*of_classes, strict=True))
    return [
        (f"{service.service} classes, {name}", found, total)
        for name, found, total in zip(names, sums, totals, strict=True)
    ]


def percentiles_ascend(run: Run) -> Iterator[Violation]:
    """A higher percentile is no shorter time, and the mean is between none and all."""
    for service in run.services:
        named = [
            ("latency", service.latency),
            ("ttft", service.ttft),
            ("tpot", service.tpot),
            ("itl", service.itl),
        ]
        for one in service.classes:
            name = f"class from {one.from_tokens}"
            named += [
                (f"{name} latency", one.latency),
                (f"{name} ttft", one.ttft),
                (f"{name} tpot", one.tpot),
            ]
        for name, latency in named:
            if latency is not None and not _ascends(latency):
                message = f"{name}: its percentiles do not ascend from 0"
                yield Violation(constraint="percentiles_ascend", subject=service.service, message=message)


def _ascends(latency: Latency) -> bool:
    times_s = (0.0, latency.p50_s, latency.p90_s, latency.p95_s, latency.p99_s, latency.p999_s)
    return list(times_s) == sorted(times_s) and latency.mean_s >= 0.0


def power_follows(run: Run) -> Iterator[Violation]:
    """The peak is that of the power trace, and no percentile is above it."""
    trace, end_s = run.power_trace, run.duration_s - run.cool_down_s
    if trace is None or run.power_peak_w is None or run.power_p99_w is None:
        return
    measured_w = [
        busy_w + loaded_w + trace.parked_w
        for place, (busy_w, loaded_w) in enumerate(zip(trace.busy_w, trace.loaded_w, strict=False))
        if place * trace.width_s >= run.warm_up_s and (place + 1) * trace.width_s <= end_s + 1e-9
    ]
    if measured_w:
        yield from _differing(
            "power_follows", "W", [("power_peak_w", run.power_peak_w, max(measured_w))], ARITHMETIC_TOLERANCE
        )
    if run.power_p99_w > run.power_peak_w:
        message = f"{run.power_p99_w:g} W is above the peak of {run.power_peak_w:g} W"
        yield Violation(constraint="power_follows", subject="power_p99_w", message=message)


def _measured_s(run: Run) -> float:
    return run.duration_s - run.cool_down_s - run.warm_up_s


def _differing(
    constraint: str, unit: str, claims: list[tuple[str, float, float]], tolerance: float
) -> Iterator[Violation]:
    """The claims whose two figures differ: subject, as it is stated, as it follows."""
    for subject, stated, follows in claims:
        if not math.isclose(stated, follows, rel_tol=tolerance, abs_tol=1e-6):
            message = f"states {stated:.9g} {unit}; {follows:.9g} follow from its other figures"
            yield Violation(constraint=constraint, subject=subject, message=message)
