"""Energy of a run by service, and while clocks change.

If these fail, a bill is sent to the wrong service, or clock changes look free that are not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from muplan.problem.problem import Limits, Problem
from muplan.serving.attribution import attribute_energy
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import Controller, ControlPolicy, QueueOrder, Serving
from tests import serving_cases as cases

RNG = np.random.default_rng
CLOCK_MHZ = 1530
NAMES = ("a", "b", "c")


def seconds(clock: int, batch: int) -> float:
    return (0.01 + 0.004 * batch) * 1530 / clock


def slower(factor: float) -> Callable[[int, int], float]:
    return lambda clock, batch: factor * seconds(clock, batch)


def forward_problem(*, num_clusters: int = 1, warm_up_s: float = 0.0, limit_s: float = np.inf) -> Problem:
    """Three services, of which each takes twice as long as the one before."""
    services = [
        cases.forward_service(
            name,
            slower(2.0**place),
            num_clusters=num_clusters,
            max_batch=4,
            limit_s=limit_s,
            rate_rps=5.0,
        )
        for place, name in enumerate(NAMES)
    ]
    return cases.problem(services, warm_up_s=warm_up_s)


def forward_trace(problem: Problem, *, until_s: float, duration_s: float, rate_rps: float = 20.0) -> Trace:
    arrival_s = np.sort(RNG(3).uniform(0.0, until_s, int(rate_rps * until_s)))
    return cases.trace(
        problem.services, arrival_s, RNG(4).integers(0, 3, len(arrival_s)), duration_s=duration_s
    )


@pytest.mark.parametrize("max_batch", [1, 4], ids=["foretold", "queued"])
def test_passes_are_their_services(max_batch: int) -> None:
    """Of each service: its batches' times and energies, from the requests; idle energy by their time."""
    problem = forward_problem(num_clusters=2)
    groups = [
        cases.group("both", [0, 1], ["a", "b"], max_batch=max_batch, shares=[1.0, 0.5]),
        cases.group("one", [2, 3], ["c"], max_batch=max_batch, shares=[0.5]),
        cases.group("third", [4, 5], ["b", "c"], max_batch=max_batch, shares=[0.5, 0.5]),
    ]
    trace = forward_trace(problem, until_s=30.0, duration_s=60.0)  # all passes end before the trace does
    order = QueueOrder.FCFS if max_batch == 1 else QueueOrder.SJF
    records = simulate(
        problem, cases.deployment(groups, Serving(queue_order=order)), trace, rng=RNG(0), detailed=True
    )
    energies = attribute_energy(records)
    loaded_j = {
        name: sum(stage.loaded_j for stage in records.stages if stage.group == name)
        for name in records.groups
    }
    busy_s = {}
    for group, name in enumerate(records.groups):
        for service, factor in enumerate((1.0, 2.0, 4.0)):
            batch = records.batch[(records.group == group) & (records.service == service)]
            pass_s = 2 * factor * np.array([seconds(CLOCK_MHZ, size) for size in batch]) / batch  # two stages
            busy_s[name, NAMES[service]] = pass_s.sum()
            watts = 100.0 + CLOCK_MHZ / 10.0 + batch
            mine = [one for one in records.replicas if (one.group, one.service) == (name, NAMES[service])]
            if mine:
                assert mine[0].busy_s == pytest.approx(pass_s.sum(), rel=1e-9)
                assert mine[0].busy_j == pytest.approx((pass_s * watts).sum(), rel=1e-9)
    shares = {
        (group, service): busy_s[group, service] / sum(busy_s[group, other] for other in NAMES)
        for group, service in busy_s
    }
    assert energies["a"].loaded_j == pytest.approx(shares["both", "a"] * loaded_j["both"], rel=1e-9)
    expected_j = sum(shares[group, "b"] * loaded_j[group] for group in records.groups)
    assert energies["b"].loaded_j == pytest.approx(expected_j, rel=1e-9)
    assert energies["c"].hosted_s == pytest.approx(4 * 60.0)
    check_sum(records)


def check_sum(records: Records) -> None:
    """All services and the parked GPUs together are the fleet."""
    services_j = sum(energy.energy_j for energy in attribute_energy(records).values())
    assert services_j + records.parked_j == pytest.approx(records.energy_j, rel=1e-9)


@pytest.mark.parametrize("policy", ["fixed", "miad", "forecast"])
def test_services_and_parked_gpus_are_the_fleet(policy: ControlPolicy) -> None:
    """Also where passes cross the borders of the measured period and clocks move."""
    problem = forward_problem(num_clusters=2, warm_up_s=5.0, limit_s=0.2)
    groups = [
        cases.group("x", [0, 1], ["a", "b"], clocks_mhz=[1200, 1380], max_batch=4, shares=[1.0, 0.5]),
        cases.group("y", [2, 3], ["b", "c"], clocks_mhz=[945, 945], max_batch=2, shares=[0.5, 1.0]),
    ]
    controller = Controller(policy=policy, window_s=1.0, tick_s=0.5, dwell_s=1.0)
    trace = forward_trace(problem, until_s=30.0, duration_s=30.0)
    records = simulate(
        problem, cases.deployment(groups, Serving(controller=controller)), trace, rng=RNG(0), detailed=True
    )
    assert bool(records.clock_changes) == (policy != "fixed")
    check_sum(records)


def test_idle_energy_is_shared_equally_where_nothing_ran() -> None:
    problem = forward_problem()
    trace = cases.trace(problem.services, [], [], duration_s=10.0)
    records = simulate(
        problem, cases.deployment([cases.group("g", [0], ["a", "b"])]), trace, rng=RNG(0), detailed=True
    )
    energies = attribute_energy(records)
    assert energies["a"].energy_j == pytest.approx(records.loaded_j / 2)
    assert energies["a"] == energies["b"]
    assert "c" not in energies


def moving(kind: str) -> tuple[Problem, Trace]:
    """Services under a load that moves clocks."""
    if kind == "forward":
        problem = forward_problem(limit_s=0.2)
        return problem, forward_trace(problem, until_s=30.0, duration_s=30.0, rate_rps=18.0)
    service = cases.generate_service(
        "a",
        prefill=lambda clock, batch, tokens: (0.004 + 2e-4 * batch * tokens) * 1530 / clock,
        decode=lambda clock, batch, context: (0.01 + 5e-4 * batch + 3e-6 * batch * context) * 1530 / clock,
        max_batch=6,
        max_context=400,
        mean_input=100.0,
        mean_output=60.0,
        limits=Limits(latency_s=np.inf, ttft_s=0.2, tpot_s=0.016),
    )
    trace = cases.trace(
        [service],
        np.sort(RNG(5).uniform(0.0, 30.0, 90)),
        np.zeros(90),
        duration_s=30.0,
        input_tokens=RNG(6).integers(1, 200, 90),
        output_tokens=RNG(7).integers(1, 150, 90),
    )
    return cases.problem([service]), trace


@pytest.mark.parametrize("policy", ["miad", "slack", "forecast"])
@pytest.mark.parametrize("kind", ["forward", "generate"])
def test_energy_while_clocks_change_is_that_of_the_samples(kind: str, policy: ControlPolicy) -> None:
    """Power samples as wide as a change takes, so that one of them is the energy of each change."""
    problem, trace = moving(kind)
    change_s = problem.devices[cases.POOL].clock_change_s
    hosted = [service.name for service in problem.services]
    group = cases.group("g", [0], hosted, clocks_mhz=[1200], max_batch=4)
    controller = Controller(policy=policy, window_s=5 * change_s, tick_s=5 * change_s, dwell_s=1.0)
    records = simulate(
        problem,
        cases.deployment([group], Serving(controller=controller)),
        trace,
        rng=RNG(0),
        warm_up_s=5.0,
        num_samples=round(30.0 / change_s),
        detailed=True,
    )
    assert records.samples.width_s == pytest.approx(change_s)
    counted = [change.time_s for change in records.clock_changes if change.time_s >= 5.0]
    assert len(counted) > 2
    samples_w = records.samples.busy_w + records.samples.loaded_w
    expected_j = sum(samples_w[round(time_s / change_s)] * change_s for time_s in counted)
    (stage,) = records.stages
    assert stage.switching_s == pytest.approx(change_s * len(counted), rel=1e-9)
    assert stage.switching_j == pytest.approx(expected_j, rel=1e-9)


def test_changes_at_the_borders_of_the_measured_period_count_in_part() -> None:
    problem, trace = moving("forward")
    group = cases.group("g", [0], list(NAMES), clocks_mhz=[1200], max_batch=4)
    serving = Serving(controller=Controller(policy="miad", window_s=0.5))
    whole = simulate(problem, cases.deployment([group], serving), trace, rng=RNG(0), detailed=True)
    first_s = whole.clock_changes[0].time_s
    parts = [
        simulate(
            problem,
            cases.deployment([group], serving),
            trace,
            rng=RNG(0),
            warm_up_s=begin_s,
            cool_down_s=30.0 - end_s,
            detailed=True,
        ).stages[0]
        for begin_s, end_s in ((0.0, first_s + 0.04), (first_s + 0.04, 30.0))
    ]
    assert parts[0].switching_s == pytest.approx(0.04)
    assert sum(part.switching_s for part in parts) == pytest.approx(whole.stages[0].switching_s)
    assert sum(part.switching_j for part in parts) == pytest.approx(whole.stages[0].switching_j)


def test_energy_of_changes_is_absent_unless_asked_for() -> None:
    problem, trace = moving("forward")
    group = cases.group("g", [0], list(NAMES), clocks_mhz=[1200], max_batch=4)
    serving = Serving(controller=Controller(policy="miad", window_s=0.5))
    records = simulate(problem, cases.deployment([group], serving), trace, rng=RNG(0))
    assert np.isnan(records.stages[0].switching_j)
    assert records.stages[0].switching_s > 0.0
    fixed = simulate(problem, cases.deployment([group]), trace, rng=RNG(0))
    assert (fixed.stages[0].switching_s, fixed.stages[0].switching_j) == (0.0, 0.0)
