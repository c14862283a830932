"""Generate services in real time against the compiled simulator, on scripted backends.

If these fail, continuous batches that are executed in real time admit, preempt or route otherwise than those
that the plan was made with; or a reply is lost, or its tokens are computed from the wrong place.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from muplan.plan import Deployment
from muplan.problem.problem import Limits, Problem
from muplan.serving.generate_tables import generate_group
from muplan.serving.realtime import generate_desk as desk_module
from muplan.serving.realtime.backend import Event, GroupLost, Iteration, Work, WorkDone
from muplan.serving.realtime.scripted import ScriptedBackend
from muplan.serving.records import Records
from muplan.traces.trace import Trace
from muplan.workload import Batching, Controller, ControlPolicy, Rejection
from tests import serving_cases as cases
from tests.test_realtime import FIXED, Entered, executed, simulated
from tests.test_serving_generate import MAX_BATCH, ROUTINGS, random_serving, random_trace, service


def check_same(one: Records, other: Records) -> None:
    """Every decision and time of every request, and the energy of every stage."""
    for name in ("group", "batch", "num_preemptions"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("start_s", "first_token_s", "completion_s"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9, err_msg=name)
    for mine, theirs in zip(one.stages, other.stages, strict=True):
        for name in ("busy_s", "busy_j", "loaded_s", "loaded_j"):
            assert getattr(mine, name) == pytest.approx(getattr(theirs, name), rel=1e-7, abs=1e-6), name


def random_case(seed: int) -> tuple[Problem, Deployment, Trace]:
    """One to three groups of one or two stages, scarce memory or not, all orders, batchings and routings."""
    rng = np.random.default_rng(seed)
    num_groups, num_stages = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    kv_tokens = None if rng.random() < 0.3 else int(rng.integers(450, 900))
    one = service(
        num_clusters=num_stages,
        kv_tokens=kv_tokens,
        limits=Limits(latency_s=math.inf, ttft_s=float(rng.uniform(0.2, 2.0)), tpot_s=0.1),
    )
    groups = [
        cases.group(
            f"g{number}",
            list(range(4 * number, 4 * number + num_stages)),
            ["chat"],
            clocks_mhz=[int(rng.choice(cases.CLOCKS_MHZ)) for _ in range(num_stages)],
            max_batch=MAX_BATCH,
        )
        for number in range(num_groups)
    ]
    serving = random_serving(rng, FIXED).model_copy(
        update={
            "routing": ROUTINGS[seed % len(ROUTINGS)],
            "rejection": Rejection.AT_DISPATCH if rng.random() < 0.4 else Rejection.NONE,
            "overhead_s": 0.003,
        }
    )
    rate_rps = float(rng.uniform(1, 6)) * num_groups / num_stages
    trace = random_trace(rng, one, rate_rps=rate_rps, duration_s=25.0)
    return cases.problem([one], num_gpus=16), cases.deployment(groups, serving), trace


@pytest.mark.parametrize("seed", range(18))
def test_decides_as_the_simulator(seed: int) -> None:
    """Requests, batches, preemptions, routes, rejections and energy, at loads below and above 1."""
    check_same(executed(*random_case(seed)).records, simulated(*random_case(seed)))


@pytest.mark.parametrize("policy", ["miad", "slack", "forecast"])
@pytest.mark.parametrize("seed", range(4))
def test_moves_clocks_as_the_simulator(policy: ControlPolicy, seed: int) -> None:
    """Every command, in the middle of iterations too, and what becomes of requests and energy."""
    problem, deployment, trace = random_case(seed)
    serving = deployment.serving.model_copy(
        update={"batching": Batching.CONTINUOUS, "prefill_chunk_tokens": None, "batch_timeout_s": 0.0}
    )
    deployment = deployment.model_copy(update={"serving": serving})
    controller = Controller(policy=policy, window_s=0.7, decrease_mhz=100.0, tick_s=0.2, dwell_s=0.5)
    run = executed(problem, deployment, trace, controller=controller).records
    foretold = simulated(problem, deployment, trace, controller)
    check_same(run, foretold)
    assert run.clock_changes == foretold.clock_changes


class CacheBackend(ScriptedBackend):
    """Keeps account of whose keys and values a group holds, and of the tokens that came of it."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.held: dict[tuple[str, int], int] = {}
        self.most_held = 0
        self.tokens: Counter[int] = Counter()
        self.under_way: dict[int, Iteration] = {}

    def launch(self, work: Work) -> None:
        assert isinstance(work, Iteration)
        assert work.group not in {other.group for other in self.under_way.values()}
        for request in work.released:
            self.held.pop((work.group, request), None)  # a lost group has none of those before
        for span in work.spans:
            if span.begin > 0:
                assert self.held[work.group, span.request] == span.begin
            self.held[work.group, span.request] = span.end
        groups: Counter[str] = Counter()
        for (group, _), tokens in self.held.items():
            groups[group] += tokens
        self.most_held = max(self.most_held, *groups.values())
        self.under_way[work.number] = work
        super().launch(work)

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if isinstance(event, WorkDone):
            for span in self.under_way.pop(event.number).spans:
                self.tokens[span.request] += span.is_last
        if isinstance(event, GroupLost):
            for number in event.numbers:
                del self.under_way[number]
            self.held = {key: tokens for key, tokens in self.held.items() if key[0] != event.group}
        return event


@pytest.mark.parametrize("seed", range(9))
def test_spans_go_on_where_keys_and_values_end(seed: int) -> None:
    """Each reply has all its tokens once, whatever was preempted, and memory is never exceeded."""
    problem, deployment, trace = random_case(seed)
    backend = CacheBackend()
    records = executed(problem, deployment, trace, backend).records
    served = np.flatnonzero(np.isfinite(records.completion_s))
    if deployment.serving.batching is not Batching.DYNAMIC:  # which computes on to the longest of a batch
        assert {one: backend.tokens[one] for one in served.tolist()} == dict(
            zip(served.tolist(), trace.output_tokens[served].tolist(), strict=True)
        )
    member = generate_group(problem, deployment.groups[0], deployment.serving.batching)
    assert backend.most_held <= member.kv_tokens


@pytest.mark.parametrize("seed", range(9))
def test_no_reply_is_lost_when_workers_die(seed: int) -> None:
    """All are answered in full, once; none is begun on a group while it is down."""
    problem, deployment, trace = random_case(seed)
    serving = deployment.serving.model_copy(update={"rejection": Rejection.NONE})
    deployment = deployment.model_copy(update={"serving": serving})
    rng = np.random.default_rng(seed)
    names = [group.name for group in deployment.groups]
    losses = {at_s + rng.uniform(): str(rng.choice(names)) for at_s in np.arange(1.0, 24.0, 1.5)}
    backend = CacheBackend(losses=losses, restart_s=0.4)
    run = executed(problem, deployment, trace, backend)
    records = run.records
    assert run.num_lost > 0
    assert np.isfinite(records.completion_s).all()
    assert (records.start_s >= records.arrival_s).all()
    assert (records.first_token_s > records.start_s).all()
    if serving.batching is not Batching.DYNAMIC:
        assert [backend.tokens[one] for one in range(len(trace))] == trace.output_tokens.tolist()
    for at_s, name in losses.items():
        starts_s = records.start_s[records.group == names.index(name)]
        assert not ((starts_s > at_s) & (starts_s < at_s + 0.4)).any()


@pytest.mark.parametrize("seed", range(4))
def test_replies_of_a_group_that_is_given_up_go_on_elsewhere(seed: int) -> None:
    """With the tokens that they had; what waited there too."""
    one = service(kv_tokens=900)
    groups = [cases.group(f"g{number}", [number], ["chat"], max_batch=MAX_BATCH) for number in range(3)]
    problem, deployment = cases.problem([one]), cases.deployment(groups)
    trace = random_trace(np.random.default_rng(seed), one, rate_rps=10.0, duration_s=30.0)
    backend = CacheBackend(losses={5.0: "g0", 9.0: "g2"}, restart_s=np.inf)
    run = executed(problem, deployment, trace, backend)
    records = run.records
    assert [(outage.group, outage.is_final) for outage in run.outages] == [("g0", True), ("g2", True)]
    assert np.isfinite(records.completion_s).all()
    assert [backend.tokens[one] for one in range(len(trace))] == trace.output_tokens.tolist()
    assert not (records.completion_s[records.group == 0] > 5.0).any()
    assert not (records.completion_s[records.group == 2] > 9.0).any()


def test_times_that_differ_from_the_foretold_agree_in_distribution() -> None:
    """Iterations that take 2 % more or less, at random, on three replicas at a load of some 0.9."""
    one = service(kv_tokens=900)
    groups = [cases.group(f"g{number}", [number], ["chat"], max_batch=MAX_BATCH) for number in range(3)]
    problem, deployment = cases.problem([one]), cases.deployment(groups)
    trace = random_trace(np.random.default_rng(4), one, rate_rps=10.0, duration_s=150.0)
    backend = ScriptedBackend(spread=0.02, rng=np.random.default_rng(2))
    run, foretold = (
        executed(problem, deployment, trace, backend).records,
        simulated(problem, deployment, trace),
    )
    seen_s, simulated_s = run.completion_s - run.arrival_s, foretold.completion_s - foretold.arrival_s
    assert not np.array_equal(run.start_s, foretold.start_s)
    assert seen_s.mean() == pytest.approx(simulated_s.mean(), rel=0.03)
    assert np.quantile(seen_s, 0.99) == pytest.approx(np.quantile(simulated_s, 0.99), rel=0.05)
    busy_s, foretold_s = (sum(stage.busy_s for stage in one.stages) for one in (run, foretold))
    assert busy_s == pytest.approx(foretold_s, rel=0.01)


def test_forward_and_generate_services_share_a_run() -> None:
    """Both kinds in one plan: each decides as in the simulator, and each answer is its own request's."""
    chat = service(kv_tokens=900)
    label = cases.forward_service("label", lambda _, batch: 0.02 + 0.01 * batch, max_batch=4)
    rng = np.random.default_rng(0)
    arrivals = np.sort(rng.uniform(0.0, 25.0, 400))
    kinds = rng.integers(0, 2, 400)
    trace = cases.trace(
        [chat, label], arrivals, kinds, duration_s=25.0,
        input_tokens=np.where(kinds == 0, rng.integers(1, 200, 400), 128),
        output_tokens=np.where(kinds == 0, rng.integers(1, 60, 400), 0),
    )  # fmt: skip
    groups = [
        cases.group("a", [0], ["label"], max_batch=4),
        cases.group("b", [1], ["chat"], max_batch=MAX_BATCH),
        cases.group("c", [2], ["label"], max_batch=4),
    ]
    problem, deployment = cases.problem([chat, label]), cases.deployment(groups)
    check_same(executed(problem, deployment, trace).records, simulated(problem, deployment, trace))


def test_steps_are_loaded_before_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compiled step has been called when the backend is entered, those of clock control too."""
    steps = ("arrive", "boundary_s", "begin_iteration", "end_iteration", "lose_batch", "control_clocks")
    backend = Entered(monkeypatch, desk_module, steps)
    executed(*random_case(0), backend, Controller(policy="miad"))
    assert backend.is_entered
