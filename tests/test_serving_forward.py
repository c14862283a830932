"""The compiled simulator of forward groups against a slow one, and its laws.

If these fail, simulated attainment and power are wrong, and with them every plan and prediction.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from muplan.errors import InputError
from muplan.plan import Deployment
from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.metrics import measure, within_limits
from muplan.serving.records import Records, records_csv
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import CONTROL_POLICIES, Controller, QueueOrder, Rejection, Routing, Serving
from tests import serving_cases as cases
from tests.reference_forward import ReferenceForward

RNG = np.random.default_rng


def random_services(rng: np.random.Generator) -> list[ResolvedService]:
    """Three services of three clusters, of different speed, sensitivity and limits."""
    services = []
    for index in range(3):
        base_s, sensitivity, slope = rng.uniform(0.002, 0.02), rng.uniform(0, 1), rng.uniform(0.2, 1)

        def seconds(
            clock: int,
            batch: int,
            base_s: float = base_s,
            sensitivity: float = sensitivity,
            slope: float = slope,
        ) -> float:
            return base_s * (1 + sensitivity * (1530 / clock - 1)) * (1 + slope * (batch - 1))

        limit_s = float(rng.uniform(1.5, 6) * 3 * base_s)
        services.append(
            cases.forward_service(f"s{index}", seconds, num_clusters=3, max_batch=4, limit_s=limit_s)
        )
    return services


def random_deployment(rng: np.random.Generator) -> Deployment:
    """Groups of one stage, of a contiguous pipeline and of a pipeline in which a pass turns back."""
    clocks = [int(clock) for clock in rng.choice(cases.CLOCKS_MHZ, 6)]
    serving = Serving(
        queue_order=QueueOrder(rng.choice(list(QueueOrder))),
        routing=Routing(rng.choice(list(Routing))),
        rejection=Rejection(rng.choice(list(Rejection))),
        overhead_s=float(rng.choice([0.0, 0.004])),
        stage_overhead=float(rng.choice([0.0, 0.02])),
        batch_timeout_s=float(rng.choice([0.0, 0.03])),
        wait_cap="none" if rng.random() < 0.2 else float(rng.uniform(1.05, 2.0)),
        controller=Controller(
            policy=CONTROL_POLICIES[int(rng.integers(0, 4))],
            window_s=0.7,
            decrease_mhz=100.0,
            increase=1.2,
            tick_s=0.13,
            dwell_s=0.4,
        ),
    )
    batch = int(rng.integers(1, 5))
    several = [1, 1] if batch == 1 else [4, 2]
    whole, contiguous, turning = [[(0, 3)]], [[(0, 1)], [(1, 3)]], [[(0, 1), (2, 3)], [(1, 2)]]
    places: list[tuple[list[int], list[str], list[list[tuple[int, int]]], int, list[float]]] = [
        ([0], ["s0", "s1"], whole, batch, [0.6, 0.5]),
        ([3, 4], ["s1", "s2"], contiguous, several[0], [0.5, 0.3]),
        ([1, 2], ["s0", "s2"], turning, several[1], [0.4, 0.7]),
    ]
    groups = [
        cases.group(
            f"g{gpus[0]}",
            gpus,
            services,
            clocks_mhz=[clocks[gpu] for gpu in gpus],
            clusters=clusters,
            max_batch=size,
            shares=shares,
        )
        for gpus, services, clusters, size, shares in places
    ]
    return cases.deployment(groups, serving)


def random_trace(rng: np.random.Generator, services: list[ResolvedService], duration_s: float) -> Trace:
    arrivals = np.cumsum(rng.exponential(1 / rng.uniform(60, 250), 4000))
    arrivals = arrivals[arrivals < duration_s]
    some = rng.random(len(arrivals)) < 0.1  # requests that arrive together
    arrivals[1:][some[1:]] = arrivals[:-1][some[1:]]
    arrivals.sort()
    return cases.trace(services, arrivals, rng.integers(0, 3, len(arrivals)), duration_s=duration_s)


def records_of(problem: Problem, deployment: Deployment, trace: Trace) -> Records:
    return simulate(problem, deployment, trace, rng=RNG(0))


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_slow_simulator(seed: int) -> None:
    """Every dispatch, completion, route and joule, over queue orders, routing, rejection, clock control."""
    rng = RNG(seed)
    services = random_services(rng)
    problem = cases.problem(services, warm_up_s=1.0)
    deployment, trace = random_deployment(rng), random_trace(rng, services, 5.0)
    reference = ReferenceForward(
        problem, deployment, trace, deployment.serving.controller, int(RNG(0).integers(2**62))
    )
    reference.run()
    records = simulate(problem, deployment, trace, rng=RNG(0), cool_down_s=0.5)
    assert records.group.tolist() == reference.served_by
    assert records.batch.tolist() == reference.batch
    np.testing.assert_allclose(records.start_s, reference.start_s, rtol=0, atol=1e-9)
    np.testing.assert_allclose(records.completion_s, reference.completion_s, rtol=0, atol=1e-9)
    placed_j = records.busy_j + records.loaded_j
    assert placed_j == pytest.approx(reference.energy_j(1.0, 4.5), rel=1e-9)
    samples_j = (records.samples.busy_w.sum() + records.samples.loaded_w.sum()) * records.samples.width_s
    assert samples_j == pytest.approx(reference.energy_j(0.0, 5.0), rel=1e-9)
    history = [change for state in reference.groups for change in state.clock_history[1:]]
    assert len({(change.time_s, change.group) for change in records.clock_changes}) == len(history)


@pytest.mark.parametrize("seed", range(8))
def test_every_request_once_and_time_adds_up(seed: int) -> None:
    """Conservation: each request ends once; each stage's busy and loaded time is the measured time."""
    rng = RNG(100 + seed)
    services = random_services(rng)
    problem = cases.problem(services, warm_up_s=1.0)
    deployment, trace = random_deployment(rng), random_trace(rng, services, 5.0)
    records = records_of(problem, deployment, trace)
    assert len(records) == len(trace)
    served = ~records.rejected
    if deployment.serving.rejection is Rejection.NONE:
        assert served.all()
    assert (np.isfinite(records.completion_s) == served).all()
    assert (records.completion_s > records.start_s)[served].all()
    assert (records.start_s >= records.arrival_s)[served].all()
    for stage in records.stages:
        assert stage.busy_s + stage.loaded_s == pytest.approx(4.0, abs=1e-9)
    assert records.energy_j == pytest.approx(records.busy_j + records.loaded_j + records.parked_j)
    parked = 8 - len(deployment.placed_gpus)
    assert records.parked_j == pytest.approx(parked * problem.devices[cases.POOL].parked_w * 4.0)


def one_service(seconds: float = 0.1, *, max_batch: int = 1, limit_s: float = 1.0) -> list[ResolvedService]:
    return [
        cases.forward_service("s0", lambda _, batch: seconds * batch, max_batch=max_batch, limit_s=limit_s)
    ]


def test_a_batch_takes_what_waits_and_no_more() -> None:
    """While the first pass runs three arrive; two fit into the next batch, one is left for the last."""
    services = one_service(max_batch=2)
    trace = cases.trace(services, [0.0, 0.01, 0.02, 0.03], [0] * 4, duration_s=10.0)
    deployment = cases.deployment([cases.group("a", [0], ["s0"], max_batch=2)])
    records = records_of(cases.problem(services), deployment, trace)
    np.testing.assert_allclose(records.completion_s, [0.1, 0.3, 0.3, 0.4])
    assert records.batch.tolist() == [1, 2, 2, 1]


def test_a_timeout_waits_for_a_full_batch_and_not_longer() -> None:
    services = one_service(max_batch=2)
    trace = cases.trace(services, [0.0, 0.04, 1.0], [0] * 3, duration_s=10.0)
    deployment = cases.deployment([cases.group("a", [0], ["s0"], max_batch=2)], Serving(batch_timeout_s=0.05))
    records = records_of(cases.problem(services), deployment, trace)
    np.testing.assert_allclose(records.start_s, [0.04, 0.04, 1.05])


def test_shortest_job_first_does_not_starve_the_long_ones() -> None:
    """Behind a stream of short requests beyond capacity a long one waits a stated multiple of its turn.

    Without a cap it waits for the end of the stream.
    """
    services = [
        cases.forward_service("long", lambda *_: 0.5, limit_s=1.0),
        cases.forward_service("short", lambda *_: 0.1, limit_s=1.0),
    ]
    arrivals = np.sort(np.append(np.arange(1, 400) * 0.09, 10.0))
    long = int(np.searchsorted(arrivals, 10.0))
    kinds = np.ones(400, dtype=int)
    kinds[long] = 0
    trace = cases.trace(services, arrivals, kinds, duration_s=40.0)
    waits_s = {}
    rules: list[tuple[QueueOrder, float | Literal["none"]]] = [
        (QueueOrder.FCFS, "none"),
        (QueueOrder.SJF, 1.5),
        (QueueOrder.SJF, "none"),
    ]
    for order, cap in rules:
        serving = Serving(queue_order=order, wait_cap=cap)
        deployment = cases.deployment([cases.group("a", [0], ["long", "short"])], serving)
        records = records_of(cases.problem(services), deployment, trace)
        waits_s[order, cap] = records.start_s[long] - records.arrival_s[long]
    in_turn_s = waits_s[QueueOrder.FCFS, "none"]
    assert 1.5 * in_turn_s < waits_s[QueueOrder.SJF, 1.5] < 3 * in_turn_s  # the queue grows meanwhile
    assert waits_s[QueueOrder.SJF, "none"] > 20.0 > 10 * in_turn_s


def test_rejected_requests_are_misses() -> None:
    """A share of 0.75 lets three of four in; a service without a group loses all; both count as misses."""
    services = [*one_service(0.001), cases.forward_service("nowhere", lambda *_: 0.1, limit_s=1.0)]
    trace = cases.trace(services, np.arange(100) * 0.1, [0, 1] * 50, duration_s=10.0)
    deployment = cases.deployment([cases.group("a", [0], ["s0"])], s0=0.76)
    problem = cases.problem(services)
    records = records_of(problem, deployment, trace)
    metrics = measure(records, problem)
    assert metrics.service("s0").attainment == pytest.approx(0.76)
    assert metrics.service("s0").num_rejected == 12
    assert metrics.service("nowhere").attainment == 0.0
    assert metrics.goodput_rps == pytest.approx(38 / 10.0)
    assert np.isnan(records.completion_s[records.rejected]).all()


def test_round_robin_follows_the_shares_evenly() -> None:
    services = one_service(0.001)
    trace = cases.trace(services, np.arange(80) * 0.1, [0] * 80, duration_s=10.0)
    groups = [
        cases.group("a", [0], ["s0"], shares=[0.75]),
        cases.group("b", [1], ["s0"], shares=[0.25]),
    ]
    deployment = cases.deployment(groups, Serving(routing=Routing.ROUND_ROBIN))
    served_by = records_of(cases.problem(services), deployment, trace).group
    for four in served_by.reshape(-1, 4):
        assert sorted(four.tolist()) == [0, 0, 0, 1]


def test_metrics_count_arrivals_after_the_warm_up_only() -> None:
    services = one_service(0.1, limit_s=0.151)
    trace = cases.trace(services, [0.5, 2.0, 2.05, 3.0], [0] * 4, duration_s=4.0)
    problem = cases.problem(services, warm_up_s=1.0)
    records = records_of(problem, cases.deployment([cases.group("a", [0], ["s0"])]), trace)
    metrics = measure(records, problem)
    assert within_limits(records, problem).tolist() == [True] * 4
    assert metrics.service("s0").num_requests == 3
    assert metrics.service("s0").latency.mean_s == pytest.approx((0.1 + 0.15 + 0.1) / 3)
    assert metrics.measured_s == 3.0
    assert metrics.power_w == pytest.approx(records.energy_j / 3.0)


def test_clocks_rise_when_the_objective_is_missed_and_fall_when_it_is_met() -> None:
    """At 945 MHz every request is late, at 1,200 MHz none: the controller goes up, then tries lower again."""
    services = [cases.forward_service("s0", lambda clock, _: 100.0 / clock, limit_s=0.1)]
    trace = cases.trace(services, np.arange(300) * 0.2, [0] * 300, duration_s=60.0)
    problem = cases.problem(services)
    serving = Serving(controller=Controller(policy="miad", window_s=10.0))
    group = cases.group("a", [0], ["s0"], clocks_mhz=[945])
    records = records_of(problem, cases.deployment([group], serving), trace)
    moves = [(change.time_s, change.from_mhz, change.to_mhz) for change in records.clock_changes]
    assert moves == [
        (10.0, 945, 1200),
        (20.0, 1200, 945),
        (30.0, 945, 1200),
        (40.0, 1200, 945),
        (50.0, 945, 1200),
    ]
    change_s = problem.devices[cases.POOL].clock_change_s
    late = records.completion_s - records.arrival_s > 0.1
    assert late[records.arrival_s < 10.0 + change_s].all()
    assert not late[(records.arrival_s > 10.0 + change_s) & (records.arrival_s < 20.0)].any()


def test_fixed_clocks_stay() -> None:
    services = [cases.forward_service("s0", lambda clock, _: 100.0 / clock, limit_s=0.1)]
    trace = cases.trace(services, np.arange(300) * 0.2, [0] * 300, duration_s=60.0)
    serving = Serving(controller=Controller(policy="miad"))
    deployment = cases.deployment([cases.group("a", [0], ["s0"], clocks_mhz=[945])], serving)
    records = simulate(cases.problem(services), deployment, trace, rng=RNG(0), controller=Controller())
    assert records.clock_changes == ()


def test_equal_inputs_give_equal_records() -> None:
    rng = RNG(3)
    services = random_services(rng)
    problem, deployment = cases.problem(services), random_deployment(rng)
    trace = random_trace(rng, services, 5.0)
    first, second = records_of(problem, deployment, trace), records_of(problem, deployment, trace)
    assert records_csv(first) == records_csv(second)
    assert first.energy_j == second.energy_j


def test_records_as_csv() -> None:
    services = one_service(0.5)
    trace = cases.trace(services, [0.0, 0.25], [0, 0], duration_s=4.0)
    deployment = cases.deployment([cases.group("a", [0], ["s0"])], s0=0.5)
    text = records_csv(records_of(cases.problem(services), deployment, trace))
    assert text.splitlines() == [
        "arrival_s,service,input_tokens,output_tokens,group,start_s,first_token_s,completion_s,batch",
        "0.0,s0,128,0,,,,,",
        "0.25,s0,128,0,a,0.25,0.75,0.75,1",
    ]


def test_a_clock_off_the_profiles_grid_is_refused() -> None:
    services = one_service()
    deployment = cases.deployment([cases.group("a", [0], ["s0"], clocks_mhz=[1005])])
    with pytest.raises(InputError, match="runs at 1005 MHz; the profiles of its services have 945, 1200"):
        records_of(cases.problem(services), deployment, cases.trace(services, [0.0], [0], duration_s=1.0))


def test_a_batch_beyond_the_profile_is_refused() -> None:
    services = one_service(max_batch=2)
    deployment = cases.deployment([cases.group("a", [0], ["s0"], max_batch=3)])
    with pytest.raises(InputError, match="wants batches of 1 to 3"):
        records_of(cases.problem(services), deployment, cases.trace(services, [0.0], [0], duration_s=1.0))


@pytest.mark.parametrize(
    ("ranges", "message"),
    [([[(0, 1)]], "Cluster 1 of replica 's0' is on 0 stages"), ([[(0, 2), (1, 2)]], "is on 2 stages")],
)
def test_every_cluster_must_be_placed_once(ranges: list[list[tuple[int, int]]], message: str) -> None:
    services = [cases.forward_service("s0", lambda *_: 0.1, num_clusters=2)]
    deployment = cases.deployment([cases.group("a", [0], ["s0"], clusters=ranges)])
    with pytest.raises(InputError, match=message):
        records_of(cases.problem(services), deployment, cases.trace(services, [0.0], [0], duration_s=1.0))


def test_a_trace_of_other_services_is_refused() -> None:
    services = one_service()
    other = [cases.forward_service("other", lambda *_: 0.1)]
    deployment = cases.deployment([cases.group("a", [0], ["s0"])])
    with pytest.raises(InputError, match="requests of 'other'"):
        records_of(cases.problem(services), deployment, cases.trace(other, [0.0], [0], duration_s=1.0))


def test_groups_must_have_names_and_gpus() -> None:
    services = one_service()
    trace = cases.trace(services, [0.0], [0], duration_s=1.0)
    twice = [cases.group("a", [0], ["s0"]), cases.group("a", [1], ["s0"])]
    with pytest.raises(InputError, match="Two groups are called 'a'"):
        records_of(cases.problem(services), cases.deployment(twice), trace)
    deployment = cases.deployment([cases.group("a", [3], ["s0"])])
    with pytest.raises(InputError, match="names the GPU 'v100/0/3', which the fleet does not have"):
        records_of(cases.problem(services, num_gpus=2), deployment, trace)


def test_a_warm_up_as_long_as_the_trace_is_refused() -> None:
    services = one_service()
    deployment = cases.deployment([cases.group("a", [0], ["s0"])])
    trace = cases.trace(services, [0.0], [0], duration_s=1.0)
    with pytest.raises(InputError, match="leaves nothing"):
        simulate(cases.problem(services), deployment, trace, rng=RNG(0), warm_up_s=1.0)
