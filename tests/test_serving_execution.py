"""Predictions from replications, and the run that is held against them.

If these fail, plans claim intervals that mean nothing, or a verdict accepts what it should refuse.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from muplan.errors import InputError
from muplan.plan import GoalSummary, Interval, Plan, Prediction, Provenance, SolutionSummary, Status
from muplan.problem.problem import Problem
from muplan.run import Comparison, Run
from muplan.serde import digest, parse_document, to_json
from muplan.serving.executor import execute, execute_recorded
from muplan.serving.prediction import interval, predict, replicate, t_quantile
from muplan.traces.generate import Purpose
from muplan.workload import Controller, Goal, Simulation
from tests import serving_cases as cases

SIMULATION = Simulation(duration_s=120.0, warm_up_s=20.0, replications=4)


def case(rate_rps: float = 5.0) -> Problem:
    def seconds(clock: int, batch: int) -> float:
        return (0.05 + 0.03 * batch) * 1530 / clock

    service = cases.forward_service("a", seconds, max_batch=4, limit_s=0.4, rate_rps=rate_rps)
    problem = cases.problem([service], warm_up_s=20.0)
    return replace(problem, workload=problem.workload.model_copy(update={"simulation": SIMULATION}))


DEPLOYMENT = cases.deployment([cases.group("g", [0], ["a"], max_batch=4)])


def plan_for(prediction: Prediction) -> Plan:
    return Plan(
        name="case",
        provenance=Provenance(
            muplan_version="0", workload="case.yaml", workload_digest="sha256:0", devices={}, profiles={}
        ),
        solution=SolutionSummary(
            solver="none",
            status=Status.FEASIBLE,
            achieved=(GoalSummary(goal=Goal.POWER, value=1.0, unit="W", bound=1.0, gap=0.0),),
            seed=0,
            guard_rounds=0,
        ),
        deployment=DEPLOYMENT,
        parked=(),
        prediction=prediction,
        baselines=(),
        reasons=(),
    )


def power_of(run: Run) -> Comparison:
    """The power of a run that has one."""
    assert run.power_w is not None
    assert run.power_label == "modelled"
    return run.power_w


def test_t_interval_against_the_table() -> None:
    """Five replications: t = 2.776 (any statistics textbook)."""
    assert t_quantile(4, 0.975) == pytest.approx(2.776, abs=5e-4)
    values = [10.0, 12.0, 9.0, 11.0, 13.0]
    result = interval(values)
    half = 2.7764 * np.std(values, ddof=1) / math.sqrt(5)
    assert result.mean == 11.0
    assert (result.low, result.high) == pytest.approx((11.0 - half, 11.0 + half), abs=1e-3)
    assert interval([1.0, 1.0, 0.9], highest=1.0).high == 1.0


def test_prediction_summarises_its_replications() -> None:
    problem = case()
    prediction = predict(problem, DEPLOYMENT, seed=3)
    runs = replicate(problem, DEPLOYMENT, seed=3)
    assert prediction.replications == len(runs) == 4
    assert prediction.power_w == interval([run.power_w for run in runs])
    service = prediction.services[0]
    assert service.attainment.mean == pytest.approx(np.mean([run.services[0].attainment for run in runs]))
    assert service.latency_p50_s < service.latency_mean_s.mean < service.latency_p99_s
    assert service.ttft_p99_s is None
    assert prediction == predict(problem, DEPLOYMENT, seed=3)


def test_search_and_judgement_see_different_requests() -> None:
    problem = case()
    training = predict(problem, DEPLOYMENT, seed=3, purpose=Purpose.TRAINING)
    assert training.power_w != predict(problem, DEPLOYMENT, seed=3).power_w


def test_a_run_tells_percentiles_peaks_and_saturation() -> None:
    """Percentiles ascend; the peak is the highest window's; a queue that grows is told."""
    problem = case()
    plan = plan_for(predict(problem, DEPLOYMENT, seed=3))
    run = execute(problem, plan, seed=1)
    latency = run.services[0].latency
    assert latency is not None
    assert latency.p50_s < latency.p90_s < latency.p95_s < latency.p99_s <= latency.p999_s
    assert run.services[0].ttft is None
    power = run.power_trace
    assert power is not None
    assert run.power_p99_w is not None
    measured = slice(math.ceil(run.warm_up_s / power.width_s), None)
    windows_w = (np.array(power.busy_w) + np.array(power.loaded_w) + power.parked_w)[measured]
    assert run.power_peak_w == pytest.approx(windows_w.max())
    assert power_of(run).observed < run.power_p99_w <= windows_w.max()
    assert [group.saturation for group in run.groups] == ["stable"]
    overloaded = execute(case(rate_rps=40.0), plan, seed=1)
    assert [group.saturation for group in overloaded.groups] == ["overloaded"]


def test_a_service_that_is_never_served_cannot_be_predicted() -> None:
    with pytest.raises(InputError, match="No request was served in any replication"):
        predict(case(), cases.deployment([]), seed=0)
    services = [*case().services, cases.forward_service("b", lambda *_: 0.1)]
    problem = replace(case(), services=tuple(services))
    with pytest.raises(InputError, match="No request of 'b' was served"):
        predict(problem, DEPLOYMENT, seed=0)


def test_runs_fall_where_the_prediction_says() -> None:
    """Over 150 predictions with a run each, about 95 % of the runs are within the stated band."""
    problem = case()
    runs = [
        execute(problem, plan_for(predict(problem, DEPLOYMENT, seed=seed)), seed=seed) for seed in range(150)
    ]
    latencies = [run.services[0].latency_mean_s for run in runs]
    assert 0.90 <= np.mean([power_of(run).is_within for run in runs]) <= 0.99
    assert 0.90 <= np.mean([latency.is_within for latency in latencies if latency]) <= 0.99
    assert all(run.meets_targets for run in runs)


def test_a_longer_run_is_held_to_a_narrower_interval() -> None:
    problem = case()
    plan = plan_for(predict(problem, DEPLOYMENT, seed=1))
    short, long = (power_of(execute(problem, plan, duration_s=duration_s)) for duration_s in (60.0, 600.0))
    assert long.high - long.low < short.high - short.low


def test_a_run_at_another_load_is_not_as_predicted() -> None:
    """Three times the demand: the verdict sees it in power and in attainment."""
    plan = plan_for(predict(case(), DEPLOYMENT, seed=1))
    run = execute(case(rate_rps=25.0), plan)
    assert not run.meets_targets
    assert not run.is_as_predicted
    assert run.services[0].attainment.observed < run.services[0].attainment.low


def test_the_run_document_adds_up_and_reads_back() -> None:
    problem = case(rate_rps=12.0)
    slow = cases.deployment([cases.group("g", [0], ["a"], clocks_mhz=[945], max_batch=4)])
    plan = plan_for(predict(problem, DEPLOYMENT, seed=1)).model_copy(update={"deployment": slow})
    execution = execute_recorded(problem, plan, seed=5, controller=Controller(policy="miad", window_s=5.0))
    run = execution.run
    assert run.energy is not None
    assert run.power_trace is not None
    energy_j = run.energy.busy_j + run.energy.loaded_j + run.energy.parked_j
    assert power_of(run).observed == pytest.approx(energy_j / 100.0)
    assert sum(group.busy_j or 0.0 for group in run.groups) == pytest.approx(run.energy.busy_j)
    assert len(run.power_trace.busy_w) == 300
    assert run.power_trace.width_s == pytest.approx(0.4)
    assert run.provenance.plan_digest == digest(plan)
    assert run.controller == "miad"
    assert len(run.clock_commands) > 0
    assert parse_document(to_json(run), Run, file="run.json") == run
    assert to_json(run) == to_json(
        execute(problem, plan, seed=5, controller=Controller(policy="miad", window_s=5.0))
    )


def test_a_given_trace_is_served_as_it_is() -> None:
    problem = case()
    plan = plan_for(predict(problem, DEPLOYMENT, seed=1))
    trace = cases.trace(problem.services, np.arange(20.0, 50.0, 0.5), [0] * 60, duration_s=50.0)
    run = execute(problem, plan, trace=trace)
    assert run.duration_s == 50.0
    assert run.services[0].num_requests == 60


def test_a_plan_for_other_services_is_refused() -> None:
    prediction = predict(case(), DEPLOYMENT, seed=1)
    plan = plan_for(prediction.model_copy(update={"services": ()}))
    with pytest.raises(InputError, match="predicts nothing of 'a'"):
        execute(case(), plan)


def test_comparison_is_within_its_own_band() -> None:
    predicted = Interval(mean=1.0, low=0.9, high=1.1)
    assert Comparison(observed=1.2, predicted=predicted, low=0.8, high=1.2).is_within
    assert not Comparison(observed=1.3, predicted=predicted, low=0.8, high=1.2).is_within


def test_attainment_bands_are_shares() -> None:
    """A band of attainment that leaves 0 to 1 would count the impossible as predicted."""
    problem = case()
    run = execute(problem, plan_for(predict(problem, DEPLOYMENT, seed=0)), seed=1, duration_s=30.0)
    for service in run.services:
        assert 0.0 <= service.attainment.low <= service.attainment.high <= 1.0
