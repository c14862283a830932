"""The timeline of a run: what it draws is what the simulator did.

If these fail, someone who looks for the cause of a missed objective looks at events that did not happen.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from muplan.plan import Deployment
from muplan.problem.problem import Problem
from muplan.report import timeline
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import Controller, Serving
from tests import serving_cases as cases


def events_of(records: Records, problem: Problem, deployment: Deployment) -> list[dict[str, Any]]:
    return json.loads(timeline.timeline_json(records, problem, deployment))["traceEvents"]  # type: ignore[no-any-return]


def pipelines(policy: str = "fixed") -> tuple[Problem, Deployment, Trace]:
    """Two services on two groups of two stages, busy enough that clocks rise under MIAD."""
    services = [
        cases.forward_service(
            name, lambda clock, batch: 15.3 / clock + 0.002 * batch, num_clusters=2, max_batch=4, limit_s=0.06
        )
        for name in ("s0", "s1")
    ]
    groups = [
        cases.group(
            f"g{number}", [2 * number, 2 * number + 1], ["s0", "s1"], clusters=[[(0, 1)], [(1, 2)]],
            clocks_mhz=[945, 1200], max_batch=4,
        )
        for number in range(2)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / 160, 1500))
    trace = cases.trace(services, arrivals, rng.integers(0, 2, 1500), duration_s=float(arrivals[-1]) + 1)
    serving = Serving(
        controller=Controller(policy="miad", window_s=1.0) if policy == "miad" else Controller()
    )
    return cases.problem(services, num_gpus=4), cases.deployment(groups, serving), trace


@pytest.mark.parametrize("policy", ["fixed", "miad"])
def test_passes_end_when_their_requests_do_and_fill_the_busy_time(policy: str) -> None:
    """Stages never overlap themselves; the last pass ends at the completion; lengths add up to busy time."""
    problem, deployment, trace = pipelines(policy)
    records = simulate(problem, deployment, trace, rng=np.random.default_rng(0), warm_up_s=0.0)
    assert bool(records.clock_changes) == (policy == "miad")
    passes = defaultdict(list)
    for event in events_of(records, problem, deployment):
        if event["ph"] == "X":
            passes[event["pid"] - 10, event["tid"]].append((event["ts"] / 1e6, event["dur"] / 1e6))
    for (group, stage), made in passes.items():
        begin_s, length_s = np.array(made).T
        assert (begin_s[1:] >= begin_s[:-1] + length_s[:-1] - 1e-9).all()
        inside_s = np.minimum(begin_s + length_s, trace.duration_s) - begin_s
        busy_s = next(one.busy_s for one in records.stages if (one.group, one.stage) == (f"g{group}", stage))
        assert inside_s.sum() == pytest.approx(busy_s, rel=1e-9)
        if stage == 1:
            ends_s = np.unique(np.round(records.completion_s[records.group == group], 9))
            np.testing.assert_allclose(np.unique(np.round(begin_s + length_s, 9)), ends_s, atol=1e-8)


def test_counters_are_those_of_the_records() -> None:
    """Nobody waits at the end; power adds up to the energy; clocks are the logged ones."""
    problem, deployment, trace = pipelines("miad")
    records = simulate(problem, deployment, trace, rng=np.random.default_rng(0), warm_up_s=0.0)
    counters = defaultdict(list)
    for event in events_of(records, problem, deployment):
        if event["ph"] == "C":
            counters[event["name"]].append(event)
    for service in records.services:
        waiting = [event["args"]["requests"] for event in counters[f"waiting {service}"]]
        assert min(waiting) >= 0
        assert waiting[-1] == 0
    power = [sum(event["args"].values()) for event in counters["power (W)"]]
    whole_j = sum(power) * records.samples.width_s
    assert whole_j == pytest.approx(records.energy_j, rel=1e-9)
    for group in deployment.groups:
        shown = [event["args"]["MHz"] for event in counters[f"clock (MHz) {group.name} stage 0"]]
        logged = [
            change.to_mhz
            for change in records.clock_changes
            if (change.group, change.stage) == (group.name, 0)
        ]
        assert shown == [945, *logged]


def test_requests_of_generate_groups_are_drawn_from_arrival_to_end() -> None:
    """Wait, prefill and decode follow each other without a gap."""
    service = cases.generate_service(
        "chat",
        prefill=lambda _clock, batch, _tokens: 0.01 * batch,
        decode=lambda *_: 0.02,
        max_batch=4,
        max_context=100,
        mean_input=10.0,
        mean_output=5.0,
    )
    arrivals = np.linspace(0.0, 2.0, 40)
    trace = cases.trace(
        [service],
        arrivals,
        np.zeros(40),
        duration_s=3.0,
        input_tokens=np.full(40, 10),
        output_tokens=np.full(40, 5),
    )
    deployment = cases.deployment([cases.group("g", [0], ["chat"], max_batch=4)])
    problem = cases.problem([service], num_gpus=1)
    records = simulate(problem, deployment, trace, rng=np.random.default_rng(0), warm_up_s=0.0)
    moments = defaultdict(list)
    for event in events_of(records, problem, deployment):
        if event["ph"] in "be":
            moments[event["id"]].append(event["ts"] / 1e6)
    assert len(moments) == 40
    drawn = np.array([moments[key] for key in sorted(moments)])
    np.testing.assert_allclose(drawn[:, 0], records.arrival_s)
    np.testing.assert_allclose(drawn[:, 1], drawn[:, 2])
    np.testing.assert_allclose(drawn[:, 3], records.first_token_s)
    np.testing.assert_allclose(drawn[:, 5], records.completion_s)


def test_a_long_run_is_shown_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Perfetto would not open all of it."""
    monkeypatch.setattr(timeline, "MOST_REQUESTS", 100)
    problem, deployment, trace = pipelines()
    records = simulate(problem, deployment, trace, rng=np.random.default_rng(0), warm_up_s=0.0)
    until_s = timeline.covered_s(records)
    assert until_s == records.arrival_s[100]
    times_s = [event["ts"] / 1e6 for event in events_of(records, problem, deployment) if "ts" in event]
    assert max(times_s) < until_s
