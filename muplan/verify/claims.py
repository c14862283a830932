"""What a plan claims of itself: its inputs, its arithmetic, its predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import muplan
from muplan.errors import InputError
from muplan.plan import Deployment, Plan, Prediction
from muplan.problem.problem import Problem
from muplan.serde import digest
from muplan.serving.prediction import predict
from muplan.verify.violation import ARITHMETIC_TOLERANCE, Violation
from muplan.workload import Goal

REPRODUCTION_TOLERANCE = 1e-9
"""Relative; predictions are recomputed with the plan's own seed, so only rounding may differ."""


def check_names(plan: Plan, problem: Problem) -> Iterator[Violation]:
    """The plan is of this workload: its name, its objective, and a prediction of each of its services."""
    workload = problem.workload
    if plan.name != workload.name:
        message = f"is named {plan.name!r}; the workload is named {workload.name!r}"
        yield Violation(constraint="names_known", subject="name", message=message)
    if tuple(item.goal for item in plan.solution.achieved) != workload.goals[: len(plan.solution.achieved)]:
        message = (
            f"made for {_goals(item.goal for item in plan.solution.achieved)}, the workload asks for"
            f" {_goals(workload.goals)}; write the objective into the workload"
        )
        yield Violation(constraint="objective_matches", subject="objective", message=message)
    if plan.demand_factor != 1.0 and Goal.RATE not in workload.goals:
        message = (
            f"is made for {plan.demand_factor:g} times the demand; the workload asks for all of it, once"
        )
        yield Violation(constraint="demand_served", subject="demand_factor", message=message)
    predicted = [row.service for row in plan.prediction.services]
    if predicted != [service.name for service in problem.services]:
        message = f"predicts {', '.join(predicted) or 'nothing'}, which are not the workload's services"
        yield Violation(constraint="names_known", subject="prediction", message=message)


def _goals(goals: Iterable[Goal]) -> str:
    return repr(", ".join(goal.value for goal in goals))


def check_inputs(plan: Plan, problem: Problem) -> Iterator[Violation]:
    """Workload, devices, profiles and lengths are those that the plan was made with."""
    recorded = plan.provenance
    if digest(problem.workload) != recorded.workload_digest:
        yield Violation(
            constraint="inputs_unchanged",
            subject=recorded.workload,
            message="the workload was edited after the plan was made; solve it again",
        )
    for pool, device in problem.devices.items():
        if recorded.devices.get(device.name) != digest(device):
            yield _stale("device", device.name, f"of pool {pool!r}")
    for service in problem.services:
        for profile in service.profiles.values():
            key = f"{profile.device}/{profile.model}"
            if recorded.profiles.get(key) != digest(profile):
                yield _stale("profile", key, f"of service {service.name!r}")
        trace, lengths, role = service.trace, service.lengths, f"of service {service.name!r}"
        if trace is not None and recorded.traces.get(service.name) != trace.digest:
            yield _stale("trace", service.spec.demand.trace or "", role)
        if lengths is not None and recorded.lengths.get(service.name) != digest(lengths):
            yield _stale("length distribution", lengths.name, role)
    if recorded.muplan_version.split(".")[:2] != muplan.__version__.split(".")[:2]:
        yield Violation(
            constraint="inputs_unchanged",
            subject="muplan",
            message=f"made by muplan {recorded.muplan_version}, this is {muplan.__version__}; solve it again",
        )


def _stale(noun: str, name: str, role: str) -> Violation:
    message = (
        f"the {noun} {role} is not the one the plan was made with; solve again, or pass the right --profiles"
    )
    return Violation(constraint="inputs_unchanged", subject=name, message=message)


def check_arithmetic(plan: Plan) -> Iterator[Violation]:
    """Savings, gap and the plan's own row follow from the figures they are made of."""
    power_w = plan.prediction.power_w.mean
    if power_w <= 0:
        message = f"the prediction states {power_w:g} W; no fleet draws that"
        yield Violation(constraint="saving_follows", subject="prediction", message=message)
        return
    for row in plan.baselines:
        if row.power_w is not None and not _close(row.saving, row.power_w / power_w):
            message = (
                f"claims a saving of {row.saving}, its power over the plan's is {row.power_w / power_w:.6f}"
            )
            yield Violation(constraint="saving_follows", subject=row.name, message=message)
    for item in plan.solution.achieved:
        difference = abs(item.value - item.bound) / max(abs(item.value), 1e-12)
        if not _close(item.gap, difference):
            message = f"claims a gap of {item.gap:.6f}; value and bound differ by {difference:.6f}"
            yield Violation(constraint="gap_follows", subject=item.goal.value, message=message)


def _close(claimed: float | None, actual: float) -> bool:
    return claimed is not None and math.isclose(claimed, actual, rel_tol=1e-4, abs_tol=ARITHMETIC_TOLERANCE)


def check_reproduction(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Simulating the plan with the recorded seed gives the recorded prediction."""
    recorded = plan.prediction
    try:
        again = predict(problem, plan.deployment, seed=recorded.seed)
    except InputError as error:
        yield Violation(constraint="prediction_reproduced", subject="simulation", message=error.problem)
        return
    for key, claimed, actual in differences(recorded.model_dump(), again.model_dump(), ""):
        message = f"the plan records {claimed}, the simulation with its seed gives {actual}"
        yield Violation(constraint="prediction_reproduced", subject=key, message=message)


def differences(claimed: object, actual: object, key: str) -> Iterator[tuple[str, object, object]]:
    """What differs between two dumps of a document: dotted key, claimed and actual value."""
    if isinstance(claimed, dict) and isinstance(actual, dict):
        for name in claimed:
            yield from differences(claimed[name], actual.get(name), f"{key}.{name}" if key else name)
    elif isinstance(claimed, tuple | list) and isinstance(actual, tuple | list):
        if len(claimed) != len(actual):
            yield key, f"{len(claimed)} entries", f"{len(actual)}"
        for index, pair in enumerate(zip(claimed, actual, strict=False)):
            yield from differences(*pair, f"{key}[{index}]")
    elif isinstance(claimed, float) and isinstance(actual, float):
        if not math.isclose(claimed, actual, rel_tol=REPRODUCTION_TOLERANCE, abs_tol=1e-12):
            yield key, claimed, actual
    elif claimed != actual:
        yield key, claimed, actual


def check_attainment(problem: Problem, plan: Plan, prediction: Prediction, which: str) -> Iterator[Violation]:
    """Attainment reaches the target: the recorded mean must, the fresh interval must."""
    for row in prediction.services:
        target = problem.service(row.service).attainment
        if row.target != target:
            message = f"the {which} prediction states the target {row.target}, the workload {target}"
            yield Violation(constraint="slo_met", subject=row.service, message=message)
        reached = row.attainment.mean if which == "recorded" else row.attainment.high
        due = due_attainment(problem, plan.deployment, row.service)
        if reached < due:
            message = f"attains {row.attainment.mean:.2%} in the {which} simulation, its target is {due:.2%}"
            yield Violation(constraint="slo_met", subject=row.service, message=message)


def due_attainment(problem: Problem, deployment: Deployment, service: str) -> float:
    """The attainment that a service owes; where part may go unserved, that of what is admitted.

    None where serving sheds what it cannot serve in time.
    """
    target = problem.service(service).attainment
    if problem.workload.sheds_load:
        return 0.0
    if problem.workload.admits_part:
        return target * deployment.admitted.get(service, 1.0)
    return target
