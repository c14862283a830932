"""The baseline panel: what every plan is held against, under the same simulator and traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from muplan.plan import Baseline, Deployment, Prediction
from muplan.planning.baselines.oracle import oracle_power_w
from muplan.planning.baselines.placement import model_parallel_placement, selective_replication
from muplan.planning.baselines.uniform import Uniform
from muplan.planning.search.evaluation import Judge
from muplan.planning.search.search import Search
from muplan.problem.problem import Problem


def baseline_panel(
    search: Search, deployment: Deployment, prediction: Prediction, uniform: Uniform | None
) -> tuple[Baseline, ...]:
    """The five rows: maximum clock twice, best uniform clock, the per-operator oracle, and the plan."""
    problem, judge = search.problem, search.judge
    search.tell("simulating the baselines")
    admitted = {service.name: deployment.admitted.get(service.name, 1.0) for service in problem.services}
    parallel = model_parallel_placement(problem, search.builder, judge, admitted)
    replicated = selective_replication(problem, search.builder, judge, admitted)
    plan_w = prediction.power_w.mean
    clock = f": {uniform.clock_mhz} MHz" if uniform else ""
    return (
        _row(
            "max-clock",
            "AlpaServe-style placement at maximum clock: the group shape that attains most; every GPU loaded",
            judge,
            parallel[0] if parallel else None,
            plan_w,
        ),
        _row(
            "max-clock-replication",
            "selective replication at maximum clock: no model parallelism where a GPU holds the model;"
            " every GPU loaded",
            judge,
            replicated[0] if replicated else None,
            plan_w,
        ),
        _row(
            "uniform-clock",
            f"the same planner with one clock for the whole fleet, parking allowed{clock}",
            judge,
            uniform.deployment if uniform else None,
            plan_w,
        ),
        _oracle_row(problem, admitted, plan_w),
        _plan_row(judge, deployment, prediction),
    )


def short_panel(
    problem: Problem, judge: Judge, deployment: Deployment, prediction: Prediction
) -> tuple[Baseline, ...]:
    """The five rows where no baseline was searched: only the oracle and the plan state anything."""
    admitted = {service.name: deployment.admitted.get(service.name, 1.0) for service in problem.services}
    return (
        *(
            Baseline(name=name, description="not searched", meets_targets=False)
            for name in ("max-clock", "max-clock-replication", "uniform-clock")
        ),
        _oracle_row(problem, admitted, prediction.power_w.mean),
        _plan_row(judge, deployment, prediction),
    )


def _row(name: str, description: str, judge: Judge, deployment: Deployment | None, plan_w: float) -> Baseline:
    if deployment is None:
        return Baseline(name=name, description=f"{description} (finds no deployment)", meets_targets=False)
    prediction = judge.predict(deployment)
    row = _plan_row(judge, deployment, prediction)
    saving = prediction.power_w.mean / plan_w
    return row.model_copy(
        update={"name": name, "description": description, "saving": saving, "deployment": deployment}
    )


def _plan_row(judge: Judge, deployment: Deployment, prediction: Prediction) -> Baseline:
    return Baseline(
        name="plan",
        description="this plan",
        power_w=prediction.power_w.mean,
        attainment=min(item.attainment.mean for item in prediction.services),
        meets_targets=judge.meets_targets(deployment, prediction),
        energy_per_request_j=prediction.energy_per_request_j,
        saving=1.0,
    )


def _oracle_row(problem: Problem, admitted: Mapping[str, float], plan_w: float) -> Baseline:
    rates = {service.name: service.rate_rps * admitted[service.name] for service in problem.services}
    scaled = replace(
        problem,
        services=tuple(replace(service, rate_rps=rates[service.name]) for service in problem.services),
    )
    power_w = oracle_power_w(scaled)
    total = sum(rates.values())
    return Baseline(
        name="per-operator-oracle",
        description="a bound, modelled, not a deployment: every operator cluster at its own best clock and"
        " batch, no idle power beyond parked GPUs",
        power_w=power_w,
        energy_per_request_j=power_w / total if total else None,
        saving=power_w / plan_w,
        is_bound=True,
    )
