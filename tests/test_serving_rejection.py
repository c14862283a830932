"""Deadlines and rejection: AlpaServe's rules request by request, earliest deadline first, hopeless requests.

If these fail, a comparison with AlpaServe's placements is not under its rules, deadlines are kept
less often than they could be, or GPUs work on requests that are already lost.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from muplan.errors import InputError
from muplan.plan import Deployment, Group
from muplan.problem.loading import load_problem
from muplan.problem.problem import Limits, Problem, ResolvedService
from muplan.serde import parse_document
from muplan.serving.metrics import measure
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import Controller, QueueOrder, Rejection, Routing, Serving, Workload
from tests import serving_cases as cases

RNG = np.random.default_rng

ALPASERVE = Serving(
    routing=Routing.LEAST_LAST_STAGE,
    rejection=Rejection.AT_ARRIVAL,
    overhead_s=0.011,
    stage_overhead=0.009,
    max_batch=1,
)


def served(problem: Problem, deployment: Deployment, trace: Trace) -> Records:
    return simulate(problem, deployment, trace, rng=RNG(0))


# --- AlpaServe ------------------------------------------------------------------------------------


def alpaserve_completions(
    stage_s: list[dict[int, list[float]]], limit_s: list[float], trace: Trace
) -> tuple[list[int], list[float]]:
    """AlpaServe's simulation: group and completion of every request, −1 and NaN where rejected.

    Li et al., AlpaServe (OSDI 2023), §5.1. ``stage_s[group][service]`` are the measured stage times.
    """
    clocks = [[0.0] * len(next(iter(hosted.values()))) for hosted in stage_s]
    chosen, completions = [], []
    for arrival_s, service in zip(trace.arrival_s.tolist(), trace.service.tolist(), strict=True):
        hosts = [group for group, hosted in enumerate(stage_s) if service in hosted]
        group, ends, at_s = min(hosts, key=lambda host: clocks[host][-1]), [], arrival_s
        for free_s, seconds in zip(clocks[group], stage_s[group][service], strict=True):
            at_s = max(at_s, free_s) + seconds * (1 + 0.009 * len(clocks[group]))
            ends.append(at_s)
        at_s += 0.011
        if at_s - arrival_s <= limit_s[service]:
            clocks[group] = ends
            chosen.append(group)
            completions.append(at_s)
        else:
            chosen.append(-1)
            completions.append(float("nan"))
    return chosen, completions


def alpaserve_case(
    rng: np.random.Generator,
) -> tuple[Problem, Deployment, list[dict[int, list[float]]], Trace]:
    """Four services on four groups of one to four stages, each hosting one to three of them; bursts."""
    services, seconds = [], []
    for index in range(4):
        own_s = float(rng.uniform(0.01, 0.06))
        seconds.append(own_s)
        limit_s = float(rng.uniform(2, 6)) * 4 * own_s
        services.append(
            cases.forward_service(
                f"s{index}",
                lambda *_, own_s=own_s: own_s,
                num_clusters=4,
                limit_s=limit_s,
                output_bytes_per_token=0.0,
            )
        )
    groups: list[Group] = []
    stage_s: list[dict[int, list[float]]] = []
    cuts = [[4], [1, 3], [2, 1, 1], [1, 1, 1, 1], [3, 1]]
    for number, choice in enumerate(rng.choice(len(cuts), 4)):
        sizes = cuts[choice]
        ends = list(itertools.accumulate(sizes))
        hosted = sorted({number, *rng.choice(4, 2).tolist()})
        first_gpu = sum(len(group.stages) for group in groups)
        groups.append(
            cases.group(
                f"g{number}",
                range(first_gpu, first_gpu + len(sizes)),
                [f"s{service}" for service in hosted],
                clusters=[[(end - size, end)] for size, end in zip(sizes, ends, strict=True)],
            )
        )
        stage_s.append({service: [size * seconds[service] for size in sizes] for service in hosted})
    arrivals = np.cumsum(rng.gamma(1 / 16, 16 / rng.uniform(20, 60), 1500))
    trace = cases.trace(services, arrivals, rng.integers(0, 4, 1500), duration_s=float(arrivals[-1]) + 1)
    return cases.problem(services, num_gpus=16), cases.deployment(groups, ALPASERVE), stage_s, trace


@pytest.mark.parametrize("seed", range(20))
def test_equals_alpaserve_request_by_request(seed: int) -> None:
    """Routes, rejections and completions of bursty traffic on random placements, by a few lines of Python."""
    problem, deployment, stage_s, trace = alpaserve_case(RNG(seed))
    records = served(problem, deployment, trace)
    limits = [service.limits.latency_s for service in problem.services]
    chosen, completions = alpaserve_completions(stage_s, limits, trace)
    assert records.group.tolist() == chosen
    np.testing.assert_allclose(records.completion_s, completions, rtol=0, atol=1e-9)
    assert 0.02 < records.rejected.mean() < 0.98
    metrics = measure(records, problem)
    assert sum(one.num_within + one.num_rejected for one in metrics.services) == len(trace)


# --- earliest deadline first ----------------------------------------------------------------------


def batch_seconds(seconds: float, _clock_mhz: int, batch: int) -> float:
    """Time of a cluster that grows with the batch."""
    return seconds * (1 + batch)


def one_server(limits_s: list[float], seconds: float = 1.0) -> tuple[list[ResolvedService], Group]:
    services = [
        cases.forward_service(f"s{index}", lambda *_: seconds, limit_s=limit_s)
        for index, limit_s in enumerate(limits_s)
    ]
    return services, cases.group("g", [0], [service.name for service in services])


def least_max_lateness_s(arrival_s: list[float], deadline_s: list[float], seconds: float) -> float:
    """The least that any order without idling or preemption reaches, by trying all."""
    best_s = float("inf")
    for order in itertools.permutations(range(len(arrival_s))):
        at_s, worst_s = 0.0, -float("inf")
        for request in order:
            at_s = max(at_s, arrival_s[request]) + seconds
            worst_s = max(worst_s, at_s - deadline_s[request])
        best_s = min(best_s, worst_s)
    return best_s


@pytest.mark.parametrize("seed", range(25))
def test_earliest_deadline_first_minimises_the_largest_lateness(seed: int) -> None:
    """Equal service times that arrivals are multiples of: no order does better (Jackson 1955; Horn 1974)."""
    rng = RNG(seed)
    limits_s = [1.5, 3.0, 7.0]
    services, group = one_server(limits_s)
    arrivals = np.sort(rng.integers(0, 5, 7).astype(np.float64))
    kinds = rng.integers(0, 3, 7)
    trace = cases.trace(services, arrivals, kinds, duration_s=30.0)
    problem = cases.problem(services)
    records = served(problem, cases.deployment([group], Serving(queue_order=QueueOrder.EDF)), trace)
    deadlines = arrivals + np.array(limits_s)[kinds]
    least_s = least_max_lateness_s(arrivals.tolist(), deadlines.tolist(), 1.0)
    assert float((records.completion_s - deadlines).max()) == pytest.approx(least_s)


def test_deadlines_do_not_age() -> None:
    """A late request of a loose limit stays behind the deadlines that come before its own."""
    services, group = one_server([0.5, 20.0])
    trace = cases.trace(services, [0.0, 0.0, 0.0, 0.0, 0.5, 5.5], [0, 0, 0, 0, 1, 0], duration_s=30.0)
    deployment = cases.deployment([group], Serving(queue_order=QueueOrder.EDF))
    records = served(cases.problem(services), deployment, trace)
    assert records.start_s.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.5]


# --- hopeless requests ----------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("order", [QueueOrder.FCFS, QueueOrder.SJF, QueueOrder.EDF])
def test_what_is_dispatched_is_in_time(order: QueueOrder, max_batch: int) -> None:
    """Under overload, with rejection at dispatch: nothing served is late, nothing in time is dropped.

    A dropped request had not been served by its limit less its own time.
    """
    services = [
        cases.forward_service(
            f"s{index}", partial(batch_seconds, s), num_clusters=2, max_batch=4, limit_s=limit_s
        )
        for index, (s, limit_s) in enumerate([(0.01, 0.15), (0.02, 0.4)])
    ]
    group = cases.group("g", [0, 1], ["s0", "s1"], max_batch=max_batch)
    rng = RNG(max_batch)
    arrivals = np.cumsum(rng.exponential(1 / 150, 3000))
    trace = cases.trace(services, arrivals, rng.integers(0, 2, 3000), duration_s=float(arrivals[-1]))
    problem = cases.problem(services)
    serving = Serving(queue_order=order, rejection=Rejection.AT_DISPATCH, overhead_s=0.003)
    records = served(problem, cases.deployment([group], serving), trace)
    limit_s = np.array([0.15, 0.4])[records.service]
    late = (records.completion_s - records.arrival_s > limit_s)[~records.rejected]
    assert 0.05 < records.rejected.mean() < 0.95
    assert not late.any()
    without = served(problem, cases.deployment([group], Serving(queue_order=order)), trace)
    goodput_rps = [measure(each, problem).goodput_rps for each in (records, without)]
    assert goodput_rps[0] > goodput_rps[1]


def test_a_hopeless_request_takes_no_gpu_time() -> None:
    """One second each, limit 1.5 s: of three at once the first is served, the others can no longer be."""
    services, group = one_server([1.5])
    trace = cases.trace(services, [0.0, 0.0, 0.0, 1.0], [0] * 4, duration_s=10.0)
    serving = Serving(rejection=Rejection.AT_DISPATCH)
    records = served(cases.problem(services), cases.deployment([group], serving), trace)
    assert records.rejected.tolist() == [False, True, True, False]
    assert records.stages[0].busy_s == pytest.approx(2.0)
    assert measure(records, cases.problem(services)).services[0].num_rejected == 2


@pytest.mark.parametrize("rejection", [Rejection.AT_ARRIVAL, Rejection.AT_DISPATCH])
def test_clocks_rise_when_requests_are_rejected(rejection: Rejection) -> None:
    """At 945 MHz no request can be in time: all are rejected, which the controller sees as misses."""
    services = [cases.forward_service("s0", lambda clock, _: 100.0 / clock, limit_s=0.1)]
    trace = cases.trace(services, np.arange(100) * 0.2, [0] * 100, duration_s=20.0)
    serving = Serving(rejection=rejection, controller=Controller(policy="miad", window_s=10.0))
    group = cases.group("g", [0], ["s0"], clocks_mhz=[945])
    records = served(cases.problem(services), cases.deployment([group], serving), trace)
    assert [(change.time_s, change.to_mhz) for change in records.clock_changes] == [(10.0, 1200)]
    assert records.rejected[records.arrival_s < 10.0].all()
    assert not records.rejected[records.arrival_s > 10.5].any()


# --- overheads, periods, generate services --------------------------------------------------------


def test_overheads_lengthen_latency_and_stage_overhead_energy() -> None:
    """0.011 s that no GPU spends; stages of two that take 1.8 % longer, at the same power."""
    services = [cases.forward_service("s0", lambda *_: 0.1, num_clusters=2, output_bytes_per_token=0.0)]
    trace = cases.trace(services, [0.0, 2.0], [0, 0], duration_s=4.0)
    plain, longer = (
        served(cases.problem(services), cases.deployment([cases.group("g", [0, 1], ["s0"])], serving), trace)
        for serving in (Serving(), Serving(overhead_s=0.011, stage_overhead=0.009))
    )
    np.testing.assert_allclose(plain.completion_s - plain.arrival_s, 0.2)
    np.testing.assert_allclose(longer.completion_s - longer.arrival_s, 0.2 * 1.018 + 0.011)
    assert longer.busy_j == pytest.approx(1.018 * plain.busy_j)


def test_the_cool_down_is_not_measured() -> None:
    """Neither its requests nor its energy count: busy from 3.0 to 3.5 of the period 1.0 to 3.2."""
    services, group = one_server([1.0], seconds=0.5)
    trace = cases.trace(services, [0.5, 1.5, 3.0, 3.3], [0] * 4, duration_s=4.0)
    problem = cases.problem(services)
    records = simulate(problem, cases.deployment([group]), trace, rng=RNG(0), warm_up_s=1.0, cool_down_s=0.8)
    assert records.counted.tolist() == [False, True, True, False]
    assert records.measured_s == pytest.approx(2.2)
    assert records.stages[0].busy_s == pytest.approx(0.7)
    assert records.stages[0].loaded_s == pytest.approx(1.5)
    parked_w = problem.devices[cases.POOL].parked_w
    assert records.parked_j == pytest.approx(7 * parked_w * 2.2)
    with pytest.raises(InputError, match="cool-down of 3 s leaves nothing"):
        simulate(problem, cases.deployment([group]), trace, rng=RNG(0), warm_up_s=1.0, cool_down_s=3.0)


def chat(limits: Limits) -> ResolvedService:
    return cases.generate_service(
        "chat",
        prefill=lambda _, batch, tokens: 1e-3 * batch * tokens,
        decode=lambda *_: 0.01,
        max_batch=4,
        max_context=200,
        mean_input=100.0,
        mean_output=10.0,
        limits=limits,
    )


def chat_trace(service: ResolvedService, arrivals: np.ndarray) -> Trace:
    return cases.trace(
        [service],
        arrivals,
        np.zeros(len(arrivals)),
        duration_s=float(arrivals[-1]) + 1.0,
        input_tokens=np.full(len(arrivals), 100),
        output_tokens=np.full(len(arrivals), 10),
    )


def test_generate_requests_whose_first_token_would_be_late_are_dropped() -> None:
    """Twice what the group can serve: queues no longer grow, and all energy goes to tokens in time."""
    service = chat(Limits(latency_s=float("inf"), ttft_s=0.5, tpot_s=float("inf")))
    trace = chat_trace(service, np.arange(400) * 0.05)
    group = cases.group("g", [0], ["chat"], max_batch=4)
    problem = cases.problem([service])
    for order in (QueueOrder.FCFS, QueueOrder.EDF):
        serving = Serving(queue_order=order, rejection=Rejection.AT_DISPATCH, overhead_s=0.02)
        records = served(problem, cases.deployment([group], serving), trace)
        ttft_s = (records.first_token_s - records.arrival_s)[~records.rejected]
        assert 0.2 < records.rejected.mean() < 0.8
        assert np.isnan(records.completion_s[records.rejected]).all()
        # prefills may be longer in company than alone: by at most the three others of the batch
        assert ttft_s.max() <= 0.5 + 0.3 + 1e-9
    everything = served(problem, cases.deployment([group]), trace)
    assert everything.first_token_s[-1] - everything.arrival_s[-1] > 5.0


def test_overheads_of_generate_services() -> None:
    """Alone: prefill 0.1 s and 9 tokens of 0.01 s, 0.9 % longer a stage; then 0.011 s, not per token."""
    service = chat(Limits(latency_s=float("inf"), ttft_s=1.0, tpot_s=1.0))
    serving = Serving(overhead_s=0.011, stage_overhead=0.009)
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=4)], serving)
    records = served(cases.problem([service]), deployment, chat_trace(service, np.array([1.0])))
    assert records.first_token_s[0] == pytest.approx(1.0 + 0.1 * 1.009 + 0.011)
    assert records.completion_s[0] - records.first_token_s[0] == pytest.approx(0.09 * 1.009)


WORKLOAD = """
kind: workload
schema_version: 1
name: w
fleet: {pools: [{name: v100, device: v100-sxm2-32gb, num_gpus: 2}]}
services:
  - {name: chat, model: llama-2-7b, lengths: azure-conversation, slo: {scale: 5}, demand: {rate_rps: 0.1}}
serving: {rejection: at-arrival, routing: least-last-stage}
"""


def test_rules_that_foretell_completions_refuse_generate_services(tmp_path: Path) -> None:
    """Both faults at once, where the workload is loaded and where a deployment is simulated."""
    workload = parse_document(WORKLOAD, Workload, file="w.yaml")
    with pytest.raises(InputError) as caught:
        load_problem(workload, directory=tmp_path)
    assert [fault.key for fault in caught.value.faults] == ["serving.rejection", "serving.routing"]
    assert "choose at-dispatch or none" in str(caught.value)
    service = chat(Limits(latency_s=float("inf"), ttft_s=1.0, tpot_s=1.0))
    deployment = cases.deployment([cases.group("g", [0], ["chat"])], workload.serving)
    with pytest.raises(InputError, match="not known of 'chat'"):
        served(cases.problem([service]), deployment, chat_trace(service, np.array([1.0])))


@pytest.mark.parametrize(
    ("routing", "hosted"),
    [
        (Routing.LEAST_LAST_STAGE, [["s0", "s1", "s2"], ["s1", "s2", "s3"], ["s0", "s3"]]),
        (Routing.SHORTEST_EXPECTED_COMPLETION, [["s0", "s1", "s2", "s3"]] * 3),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_services_of_equal_times_and_limits_lose_nothing_by_own_order_and_routing(
    routing: Routing, hosted: list[list[str]], seed: int
) -> None:
    """First come, first served with rejection is optimal then: deadlines and dropping late equal it.

    If this fails, requests that will be dropped mislead the routing, and load is shed that there is time for.
    """
    rng = RNG(seed)
    services = [
        cases.forward_service(f"s{number}", lambda *_: 0.02, num_clusters=4, limit_s=0.3)
        for number in range(4)
    ]
    groups = [
        cases.group(f"g{number}", [2 * number, 2 * number + 1], names, clusters=[[(0, 2)], [(2, 4)]])
        for number, names in enumerate(hosted)
    ]
    arrivals = np.cumsum(rng.gamma(1 / 16, 16 / 90.0, 6000))
    trace = cases.trace(services, arrivals, rng.integers(0, 4, 6000), duration_s=float(arrivals[-1]) + 1)
    changes = {"queue_order": QueueOrder.EDF, "routing": routing, "rejection": Rejection.AT_DISPATCH}
    problem = cases.problem(services, num_gpus=6)
    theirs, own = (
        served(problem, cases.deployment(groups, serving), trace).completion_s
        for serving in (ALPASERVE, ALPASERVE.model_copy(update=changes))
    )
    assert 0.02 < np.isnan(theirs).mean() < 0.9
    np.testing.assert_array_equal(own, theirs)
