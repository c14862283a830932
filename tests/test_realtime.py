"""The real-time executor against the compiled simulator, on scripted backends.

If these fail, what a plan does when it is executed in real time is not what it was planned with: another
queue order, batch, route or rejection; or a request is lost or answered twice when a worker dies.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Self

import numpy as np
import pytest

from muplan.cli.main import main
from muplan.errors import InputError, MachineError
from muplan.plan import Deployment
from muplan.problem.problem import Problem
from muplan.run import Run
from muplan.serde import read_document
from muplan.serving.case import Case, make_case
from muplan.serving.forward_tables import forward_tables
from muplan.serving.realtime import forward_desk as desk_module
from muplan.serving.realtime.backend import ClockCommand, Event, Pass, StageDone, Work, WorkDone
from muplan.serving.realtime.executor import RealTimeRun, serve_in_real_time
from muplan.serving.realtime.forward_desk import ForwardDesk
from muplan.serving.realtime.scripted import ScriptedBackend
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import Controller, ControlPolicy, QueueOrder, Rejection, Routing, Serving
from tests import serving_cases as cases
from tests.test_serving_forward import random_deployment, random_services, random_trace
from tests.test_serving_rejection import alpaserve_case

ROOT = Path(__file__).parent.parent
FIXED = Controller()


def case_of(problem: Problem, deployment: Deployment, trace: Trace, controller: Controller = FIXED) -> Case:
    return make_case(
        problem, deployment, trace, warm_up_s=2.0, cool_down_s=3.0, controller=controller, num_samples=37
    )


def executed(
    problem: Problem,
    deployment: Deployment,
    trace: Trace,
    backend: ScriptedBackend | None = None,
    controller: Controller = FIXED,
) -> RealTimeRun:
    backend = backend or ScriptedBackend(overhead_s=deployment.serving.overhead_s)
    case = case_of(problem, deployment, trace, controller)
    return serve_in_real_time(case, backend, rng=np.random.default_rng(5))


def simulated(
    problem: Problem, deployment: Deployment, trace: Trace, controller: Controller = FIXED
) -> Records:
    return simulate(
        problem, deployment, trace, rng=np.random.default_rng(5), warm_up_s=2.0, cool_down_s=3.0,
        controller=controller, num_samples=37,
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


@pytest.mark.parametrize("seed", range(24))
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


@pytest.mark.parametrize("policy", ["miad", "slack", "forecast"])
@pytest.mark.parametrize("seed", range(4))
def test_moves_clocks_as_the_simulator(policy: ControlPolicy, seed: int) -> None:
    """Every command, and what becomes of requests and energy; the backend is told each command once."""
    rng = np.random.default_rng(seed)
    services = random_services(rng)
    problem, deployment = cases.problem(services), random_deployment(rng)
    trace = random_trace(rng, services, 12.0)
    controller = Controller(policy=policy, window_s=0.7, decrease_mhz=100.0, tick_s=0.2, dwell_s=0.5)
    backend = CommandedBackend(overhead_s=deployment.serving.overhead_s)
    run = executed(problem, deployment, trace, backend, controller).records
    foretold = simulated(problem, deployment, trace, controller)
    check_same(run, foretold)
    assert run.clock_changes == foretold.clock_changes
    assert len(foretold.clock_changes) > 0
    commands = [(one.at_s, one.group, one.stage, one.clock_mhz) for one in backend.commands]
    changes = [(one.time_s, one.group, one.stage, one.to_mhz) for one in foretold.clock_changes]
    assert sorted(commands) == sorted(changes)[: len(commands)]  # until all was answered
    assert len(commands) > 0


class CommandedBackend(ScriptedBackend):
    """Notes the commands."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.commands: list[ClockCommand] = []

    def set_clock(self, command: ClockCommand) -> None:
        assert command.at_s == pytest.approx(self.now_s())
        self.commands.append(command)


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


@pytest.mark.parametrize("seed", range(4))
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


@pytest.mark.parametrize("rejection", list(Rejection))
@pytest.mark.parametrize("order", [QueueOrder.FCFS, QueueOrder.EDF])
def test_requests_of_a_group_that_is_given_up_go_to_others(order: QueueOrder, rejection: Rejection) -> None:
    """What waited there too: each is answered once, elsewhere, or rejected; none leaves there again."""
    problem, deployment, trace = two_groups()
    serving = deployment.serving.model_copy(update={"queue_order": order, "rejection": rejection})
    deployment = deployment.model_copy(update={"serving": serving})
    backend = CountingBackend(losses={5.0: "g0"}, restart_s=np.inf)
    run = executed(problem, deployment, trace, backend)
    records = run.records
    assert run.num_lost > 0
    assert [(outage.group, outage.begin_s, outage.is_final) for outage in run.outages] == [("g0", 5.0, True)]
    answered = np.isfinite(records.completion_s)
    assert sorted(backend.answered) == np.flatnonzero(answered).tolist()
    assert (answered | (records.group < 0)).all()
    assert answered.all() or rejection is not Rejection.NONE
    assert not (records.start_s[records.group == records.groups.index("g0")] > 5.0).any()
    if order is QueueOrder.FCFS and rejection is Rejection.NONE:
        late = np.flatnonzero((records.arrival_s > 4.0) & (records.start_s > 5.0))
        assert (records.arrival_s[late] < 5.0).sum() > 3  # some had waited on the group
        assert (np.diff(records.start_s[late]) >= 0.0).all()


class CountingBackend(ScriptedBackend):
    """Notes which requests' passes were done."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.under_way: dict[int, tuple[int, ...]] = {}
        self.answered: list[int] = []

    def launch(self, work: Work) -> None:
        assert isinstance(work, Pass)
        self.under_way[work.number] = work.requests
        super().launch(work)

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if isinstance(event, WorkDone):
            self.answered += self.under_way[event.number]
        return event


@pytest.mark.parametrize("routing", list(Routing))
def test_no_request_goes_to_a_group_that_is_down(routing: Routing) -> None:
    """While one of two groups is down for eight seconds the other serves all that comes; then both do."""
    problem, deployment, trace = two_groups()
    deployment = deployment.model_copy(update={"serving": Serving(routing=routing)})
    half = trace.arrival_s[::2]
    trace = cases.trace(problem.services, half, np.zeros(len(half), dtype=np.int64), duration_s=20.0)
    backend = ScriptedBackend(losses={5.0: "g0"}, restart_s=8.0)
    records = executed(problem, deployment, trace, backend).records
    down, after = (half > 5.0) & (half < 13.0), half > 13.0
    assert (records.group[down] == 1).all()
    assert set(records.group[after]) == {0, 1}
    assert np.isfinite(records.completion_s).all()


def test_waits_are_counted_once_when_workers_die() -> None:
    """Bounded ageing sees each request's wait once: that to the batch in which it was answered."""
    services = [
        cases.forward_service(name, lambda _, batch, s=seconds: s * batch, max_batch=3)  # type: ignore[misc]
        for name, seconds in (("short", 0.004), ("long", 0.02))
    ]
    rng = np.random.default_rng(3)
    arrivals = np.sort(rng.uniform(0.0, 10.0, 700))
    trace = cases.trace(services, arrivals, rng.integers(0, 2, 700), duration_s=10.0)
    deployment = cases.deployment([cases.group("g0", [0], ["short", "long"], max_batch=3)])
    deployment = deployment.model_copy(update={"serving": Serving(queue_order=QueueOrder.SJF)})
    case = case_of(cases.problem(services), deployment, trace)
    tables = forward_tables(case.problem, case.groups("forward"), deployment.serving)
    desk = ForwardDesk(case, tables, np.random.default_rng(0), itertools.count().__next__)
    lost = 0
    for request in range(700):
        desk.arrive(request)
        while (at_s := desk.next_dispatch()[0]) <= arrivals[request]:
            work = desk.dispatch(0, at_s)
            assert work is not None
            if work.number % 5 == 0:
                lost += len(work.requests)
                desk.lost("g0")
                desk.ready("g0", at_s + 0.01)
                continue
            desk.stage_done(StageDone(number=work.number, stage=0, begin_s=at_s, end_s=at_s + 0.01))
            desk.work_done(work.number, at_s + 0.01)
    (group,) = tables.groups
    assert lost > 50
    assert group["num_waits"] + group["num_waiting"] == 700
    waiting_work = (tables.replicas["num_waiting"] * tables.replicas["alone_s"]).sum()
    assert group["waiting_work"] == pytest.approx(waiting_work, abs=1e-9)


def test_a_run_that_is_broken_off_goes_as_far_as_it_went() -> None:
    """Ctrl-C after five of 20 seconds: what was answered has the times it would have had.

    What had not come by then is not held against it, and every stage's time in the three seconds measured is
    accounted for.
    """
    problem, deployment, trace = two_groups()
    whole = executed(problem, deployment, trace).records
    run = executed(problem, deployment, trace, InterruptedBackend(5.0))
    records = run.records
    assert run.is_partial
    assert records.duration_s == pytest.approx(5.0, abs=0.01)
    assert (records.arrival_s == whole.arrival_s[whole.arrival_s < records.duration_s]).all()
    served = np.isfinite(records.completion_s)
    assert (records.completion_s[served] == whole.completion_s[: len(served)][served]).all()
    assert (whole.completion_s[: len(served)][~served] >= 5.0).all()
    assert (records.group[~served] == -1).all()
    assert (~served).sum() < 30
    assert records.measured_s == pytest.approx(3.0, abs=0.01)
    for stage in records.stages:
        assert stage.busy_s + stage.loaded_s == pytest.approx(records.measured_s)
    assert len(records.samples.busy_w) == int(records.duration_s / records.samples.width_s)


def test_a_run_that_is_broken_off_in_its_warm_up_tells_nothing() -> None:
    """There is nothing to print: a machine's error (exit code 3), not a summary of no requests."""
    problem, deployment, trace = two_groups()
    with pytest.raises(MachineError, match=r"Interrupted after 1\.0 s, within the warm-up of 2 s") as caught:
        executed(problem, deployment, trace, InterruptedBackend(1.0))
    assert caught.value.exit_code == 3


class InterruptedBackend(ScriptedBackend):
    """Is interrupted after some seconds, as by Ctrl-C."""

    def __init__(self, after_s: float) -> None:
        super().__init__()
        self.after_s = after_s

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if self.now_s() >= self.after_s:
            raise KeyboardInterrupt
        return event


class Entered(ScriptedBackend):
    """Checks when it is entered that steps of a desk have been called."""

    def __init__(self, patch: pytest.MonkeyPatch, module: ModuleType, steps: Sequence[str]) -> None:
        super().__init__()
        self.called, self.steps, self.is_entered = set[str](), set(steps), False
        for name in steps:
            patch.setattr(module, name, self.noted(name, getattr(module, name)))

    def noted(self, name: str, step: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            self.called.add(name)
            return step(*arguments)

        return call

    def __enter__(self) -> Self:
        assert self.called == self.steps
        self.is_entered = True
        return self


def test_steps_are_loaded_before_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compiled step has been called when the backend is entered; else the first requests wait for it.

    Those of clock control, and of a group that is given up, too.
    """
    steps = (
        "arrive",
        "dispatch_s",
        "begin_batch",
        "complete_batch",
        "requeue",
        "control_clocks",
        "empty_queues",
    )
    backend = Entered(monkeypatch, desk_module, steps)
    executed(*two_groups(), backend, Controller(policy="miad"))
    assert backend.is_entered


def test_refuses_to_move_clocks_that_are_not_set() -> None:
    """A controller whose commands nobody follows is named, with what to do."""
    problem, deployment, trace = two_groups()
    moving = replace(case_of(problem, deployment, trace), controller=Controller(policy="miad"))
    backend = ScriptedBackend()
    backend.sets_clocks = False
    with pytest.raises(InputError, match="'miad' moves clocks, which are not set here"):
        serve_in_real_time(moving, backend, rng=np.random.default_rng(0))


def test_an_interrupted_command_ends_with_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in `muplan execute`: the run is written and says that it is partial; not judged; exit 3."""

    def open_scripted(*_arguments: object, **_options: object) -> InterruptedBackend:
        return InterruptedBackend(200.0)

    monkeypatch.setattr("muplan.serving.workers.machine.open_backend", open_scripted)
    out = tmp_path / "run.json"
    arguments = ["muplan", "execute", str(ROOT / "plans" / "quickstart.json"), "--backend", "torch"]
    monkeypatch.setattr(
        sys, "argv", [*arguments, "--profiles", str(ROOT / "profiles"), "--duration", "300", "-o", str(out)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "partial: broken off before all requests were answered, not judged." in capsys.readouterr().out
    run = read_document(out, Run)
    assert run.is_partial
    assert run.duration_s == pytest.approx(200.0, abs=1.0)
