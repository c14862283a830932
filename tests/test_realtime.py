"""The real-time executor against the compiled simulator, on scripted backends.

If these fail, what a plan does when it is executed in real time is not what it was planned with: another
queue order, batch, route or rejection; or a request is lost or answered twice when a worker dies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from muplan.errors import InputError
from muplan.plan import Deployment
from muplan.problem.problem import Problem
from muplan.serving.case import Case, make_case
from muplan.serving.realtime.backend import Event, Pass, PassDone
from muplan.serving.realtime.executor import RealTimeRun, serve_in_real_time
from muplan.serving.realtime.scripted import ScriptedBackend
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import Controller, QueueOrder, Rejection, Routing, Serving
from tests import serving_cases as cases
from tests.test_serving_forward import random_deployment, random_services, random_trace
from tests.test_serving_rejection import alpaserve_case

FIXED = Controller()


def case_of(problem: Problem, deployment: Deployment, trace: Trace) -> Case:
    return make_case(
        problem, deployment, trace, warm_up_s=2.0, cool_down_s=3.0, controller=FIXED, num_samples=37
    )


def executed(
    problem: Problem, deployment: Deployment, trace: Trace, backend: ScriptedBackend | None = None
) -> RealTimeRun:
    backend = backend or ScriptedBackend(overhead_s=deployment.serving.overhead_s)
    return serve_in_real_time(case_of(problem, deployment, trace), backend, rng=np.random.default_rng(5))


def simulated(problem: Problem, deployment: Deployment, trace: Trace) -> Records:
    return simulate(
        problem, deployment, trace, rng=np.random.default_rng(5), warm_up_s=2.0, cool_down_s=3.0,
        controller=FIXED, num_samples=37,
    )  # fmt: skip


def check_same(one: Records, other: Records) -> None:
    """Every decision and time of every request, and the energy of every stage."""
    for name in ("group", "batch"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("start_s", "first_token_s", "completion_s"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12, err_msg=name)
    for mine, theirs in zip(one.stages, other.stages, strict=True):
        for name in ("busy_s", "busy_j", "loaded_s", "loaded_j"):
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-9), name
    for name in ("busy_w", "loaded_w"):
        np.testing.assert_allclose(getattr(one.samples, name), getattr(other.samples, name), atol=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_decides_as_the_simulator(seed: int) -> None:
    """Random pipelines, shared groups, batches, orders, routings, timeouts; at loads below and above 1."""
    rng = np.random.default_rng(seed)
    services = random_services(rng)
    problem, deployment = cases.problem(services), random_deployment(rng)
    trace = random_trace(rng, services, 12.0)
    check_same(executed(problem, deployment, trace).records, simulated(problem, deployment, trace))


@pytest.mark.parametrize("order", [QueueOrder.FCFS, QueueOrder.SJF, QueueOrder.EDF])
@pytest.mark.parametrize("routing", list(Routing))
@pytest.mark.parametrize("rejection", list(Rejection))
def test_rejects_as_the_simulator(order: QueueOrder, routing: Routing, rejection: Rejection) -> None:
    """AlpaServe's pipelines and overheads, with rejection at arrival and at dispatch."""
    problem, deployment, _, trace = alpaserve_case(np.random.default_rng(3))
    rules = Serving(
        queue_order=order, routing=routing, rejection=rejection, overhead_s=0.011, stage_overhead=0.009
    )
    deployment = deployment.model_copy(update={"serving": rules})
    check_same(executed(problem, deployment, trace).records, simulated(problem, deployment, trace))


def two_groups() -> tuple[Problem, Deployment, Trace]:
    """Two pipelines that share one service, at a load of some 0.9."""
    service = cases.forward_service("s0", lambda _, batch: 0.004 + 0.002 * batch, num_clusters=2, max_batch=4)
    groups = [cases.group(f"g{gpu}", [gpu, gpu + 1], ["s0"], max_batch=4) for gpu in (0, 2)]
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / 480, 20_000))
    arrivals = arrivals[arrivals < 20.0]
    trace = cases.trace([service], arrivals, np.zeros(len(arrivals), dtype=np.int64), duration_s=20.0)
    return cases.problem([service]), cases.deployment(groups), trace


def test_times_that_differ_from_the_foretold_agree_in_distribution() -> None:
    """Stages that take 2 % more or less, at random: the mean is within 3 %, p99 within 5 %."""
    problem, deployment, trace = two_groups()
    backend = ScriptedBackend(spread=0.02, rng=np.random.default_rng(2))
    run, foretold = (
        executed(problem, deployment, trace, backend).records,
        simulated(problem, deployment, trace),
    )
    seen_s, simulated_s = run.completion_s - run.arrival_s, foretold.completion_s - foretold.arrival_s
    assert not np.array_equal(run.start_s, foretold.start_s)
    assert seen_s.mean() == pytest.approx(simulated_s.mean(), rel=0.03)
    assert np.quantile(seen_s, 0.99) == pytest.approx(np.quantile(simulated_s, 0.99), rel=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_no_request_is_lost_or_answered_twice_when_workers_die(seed: int) -> None:
    """All are answered once; none leaves on a group that is down, or is answered by a pass that was lost."""
    problem, deployment, trace = two_groups()
    rng = np.random.default_rng(seed)
    losses = {at_s + rng.uniform(0.0, 2.0): f"g{2 * int(rng.integers(2))}" for at_s in (1.0, 4.0, 7.0, 10.0)}
    backend = CountingBackend(losses=losses, restart_s=0.4)
    run = executed(problem, deployment, trace, backend)
    assert run.num_lost > 0
    assert not run.is_partial
    assert np.isfinite(run.records.completion_s).all()
    assert sorted(backend.answered) == list(range(len(trace)))
    for at_s, name in losses.items():
        number = run.records.groups.index(name)
        starts_s = run.records.start_s[run.records.group == number]
        assert not ((starts_s > at_s) & (starts_s < at_s + 0.4)).any()
        completions_s = run.records.completion_s[run.records.group == number]
        began_before = starts_s <= at_s
        assert (completions_s[began_before] <= at_s + 1e-9).all()


class CountingBackend(ScriptedBackend):
    """Notes which requests' passes were done."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.under_way: dict[int, tuple[int, ...]] = {}
        self.answered: list[int] = []

    def launch(self, work: Pass) -> None:
        self.under_way[work.number] = work.requests
        super().launch(work)

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if isinstance(event, PassDone):
            self.answered += self.under_way[event.number]
        return event


def test_a_run_that_is_broken_off_answers_what_it_has() -> None:
    """Ctrl-C after five seconds: what was served has the times it would have had, the rest has none."""
    problem, deployment, trace = two_groups()
    whole = executed(problem, deployment, trace).records
    run = executed(problem, deployment, trace, InterruptedBackend())
    assert run.is_partial
    served = np.isfinite(run.records.completion_s)
    assert served.any()
    assert (run.records.completion_s[served] == whole.completion_s[served]).all()
    assert (whole.completion_s[~served] >= 5.0).all()
    assert (run.records.group[~served] == -1).all()


class InterruptedBackend(ScriptedBackend):
    """Is interrupted after five seconds, as by Ctrl-C."""

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if self.now_s() >= 5.0:
            raise KeyboardInterrupt
        return event


def test_refuses_what_is_not_served_in_real_time() -> None:
    """Generate services and moving clocks are named, with what to do."""
    problem, deployment, trace = two_groups()
    moving = replace(case_of(problem, deployment, trace), controller=Controller(policy="miad"))
    with pytest.raises(InputError, match="'miad' does not run in real time yet"):
        serve_in_real_time(moving, ScriptedBackend(), rng=np.random.default_rng(0))
