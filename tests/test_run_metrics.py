"""What a run tells of its services: time between tokens, classes, energy; and that its figures are checked.

If these fail, a run's document says something else than its requests, or an edited one passes for true.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muplan.cli.run_tables import format_switching
from muplan.problem.problem import Limits, Problem
from muplan.run import Run
from muplan.serde import parse_document, read_document, to_json, write_document
from muplan.serving.attribution import attribute_energy
from muplan.serving.executor import Execution, execute, execute_recorded
from muplan.serving.prediction import predict
from muplan.serving.request_classes import class_bounds
from muplan.traces.lengths import LengthDistribution
from muplan.verify.check import check_file
from muplan.verify.runs import check_run
from muplan.workload import Controller
from tests import serving_cases as cases
from tests.test_serving_execution import plan_for

LENGTHS = LengthDistribution(
    name="short",
    source="chosen by the test",
    num_requests=100,
    input_probabilities=(0.0, 1.0),
    input_tokens=(10, 150),
    output_probabilities=(0.0, 0.5, 1.0),
    output_tokens=((1, 40, 200),),
)


def problem_of_both() -> Problem:
    """A generate service, and two forward services."""
    chat = cases.generate_service(
        "chat",
        prefill=lambda clock, batch, tokens: (0.004 + 2e-4 * batch * tokens) * 1530 / clock,
        decode=lambda clock, batch, context: (0.01 + 5e-4 * batch + 3e-6 * batch * context) * 1530 / clock,
        max_batch=6,
        max_context=400,
        mean_input=LENGTHS.mean_input_tokens,
        mean_output=LENGTHS.mean_output_tokens,
        limits=Limits(latency_s=np.inf, ttft_s=0.2, tpot_s=0.02),
        rate_rps=3.0,
        lengths=LENGTHS,
    )
    forward = [
        cases.forward_service(
            name,
            lambda clock, batch: (0.02 + 0.01 * batch) * 1530 / clock,
            max_batch=2,
            limit_s=0.2,
            rate_rps=6.0,
        )
        for name in ("a", "b")
    ]
    return cases.problem([chat, *forward], warm_up_s=10.0)


GROUPS = [
    cases.group("talk", [0], ["chat"], clocks_mhz=[1200], max_batch=6),
    cases.group("see", [1], ["a", "b"], clocks_mhz=[945], max_batch=2),
]


@pytest.fixture(scope="module")
def execution() -> Execution:
    problem = problem_of_both()
    deployment = cases.deployment(GROUPS)
    plan = plan_for(predict(problem, deployment, seed=1)).model_copy(update={"deployment": deployment})
    controller = Controller(policy="miad", window_s=1.0)
    return execute_recorded(problem, plan, seed=2, duration_s=60.0, controller=controller)


def test_mean_time_between_tokens_is_that_of_the_requests(execution: Execution) -> None:
    """All decode time of the counted requests over all their tokens but the first."""
    records, chat = execution.records, execution.run.services[0]
    mine = records.counted & (records.service == 0)
    decode_s = (records.completion_s - records.first_token_s)[mine].sum()
    num_intervals = (records.output_tokens[mine] - 1).sum()
    assert chat.itl is not None
    assert chat.itl.mean_s == pytest.approx(decode_s / num_intervals, rel=1e-9)
    assert chat.itl.p50_s < chat.itl.mean_s < chat.itl.p99_s  # prefills stall few intervals, and long
    assert execution.run.services[1].itl is None


def test_classes_are_those_of_the_predictor(execution: Execution) -> None:
    """Bounds at the quantiles of the expected lengths; every class's figures from the records."""
    records, chat = execution.records, execution.run.services[0]
    bounds = class_bounds(problem_of_both().services[0])
    quantiles = np.interp((0.25, 0.5, 0.75, 0.99), LENGTHS.output_probabilities, LENGTHS.output_tokens[0])
    np.testing.assert_allclose(bounds, quantiles, atol=2.0)
    edges = [1, *bounds, 10**9]
    assert [one.from_tokens for one in chat.classes] == edges[: len(chat.classes)]
    assert len(chat.classes) >= 4
    for one, begin, end in zip(chat.classes, edges, edges[1:], strict=False):
        tokens = records.output_tokens
        members = records.counted & (records.service == 0) & (tokens >= begin) & (tokens < end)
        ttft_s = (records.first_token_s - records.arrival_s)[members]
        tpot_s = (records.completion_s - records.first_token_s)[members] / np.maximum(tokens[members] - 1, 1)
        assert one.num_requests == members.sum()
        assert one.attainment == pytest.approx(((ttft_s <= 0.2) & (tpot_s <= 0.02)).mean())
        assert one.ttft is not None
        assert one.ttft.p99_s == pytest.approx(np.quantile(ttft_s, 0.99))
    assert sum(one.num_requests for one in chat.classes) == chat.num_requests
    assert execution.run.services[1].classes == ()


def test_energy_of_a_service_over_its_requests_and_tokens(execution: Execution) -> None:
    records, energies = execution.records, attribute_energy(execution.records)
    for number, service in enumerate(execution.run.services):
        mine = records.counted & (records.service == number)
        output, total = (int(records.output_tokens[mine].sum()), int(records.input_tokens[mine].sum()))
        own, energy_j = service.energy, energies[service.service].energy_j
        assert own is not None
        assert own.power_w == pytest.approx(energy_j / 50.0)
        assert own.energy_per_request_j == pytest.approx(energy_j / mine.sum())
        assert own.energy_per_total_token_j == pytest.approx(energy_j / (output + total))
        if number == 0:
            assert own.energy_per_token_j == pytest.approx(energy_j / output)
        else:
            assert own.energy_per_token_j is None
    chat, talk = execution.run.services[0], execution.run.groups[0]
    assert chat.energy is not None
    assert chat.energy.busy_share == pytest.approx(talk.busy_share)


def test_the_split_of_time_is_all_time(execution: Execution) -> None:
    time, energy = execution.run.gpu_time, execution.run.energy
    assert time is not None
    assert energy is not None
    assert time.busy_s + time.loaded_s == pytest.approx(2 * 50.0)
    assert time.parked_s == pytest.approx(6 * 50.0)
    changes = [one for one in execution.records.clock_changes if one.time_s >= 10.0]
    assert time.switching_s == pytest.approx(0.1 * len(changes))
    assert energy.switching_j == pytest.approx(
        sum(group.switching_j or 0.0 for group in execution.run.groups)
    )
    assert "Until changes took effect" in format_switching(execution.run)


def test_a_run_holds_and_reads_back(execution: Execution, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_document(execution.run, path)
    run, violations = check_run(path)
    assert violations == ()
    assert run == execution.run
    assert check_file(path).holds


def test_a_run_of_an_earlier_version_is_read(execution: Execution) -> None:
    """What was added later is optional."""
    content = json.loads(to_json(execution.run))
    del content["gpu_time"], content["energy"]["switching_j"]
    for group in content["groups"]:
        del group["switching_j"]
    for service in content["services"]:
        for name in ("itl", "goodput_rps", "energy", "classes"):
            service.pop(name, None)
    run = parse_document(json.dumps(content), Run, file="old.json")
    assert run.services[0].itl is None
    assert run.services[0].classes == ()


def first(run: dict[str, Any]) -> dict[str, Any]:
    service: dict[str, Any] = run["services"][0]
    return service


EDITS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "service": ("energy_adds_up", lambda run: first(run)["energy"].update(busy_j=1.0)),
    "request": ("energy_adds_up", lambda run: first(run)["energy"].update(energy_per_request_j=1.0)),
    "power": ("energy_adds_up", lambda run: run["power_w"].update(observed=1.0)),
    "switching": ("energy_adds_up", lambda run: run["energy"].update(switching_j=1e9)),
    "time": ("time_adds_up", lambda run: run["gpu_time"].update(busy_s=1.0)),
    "attainment": ("attainment_follows", lambda run: first(run)["attainment"].update(observed=0.98765)),
    "goodput": ("attainment_follows", lambda run: run["goodput_rps"].update(observed=99.0)),
    "class": ("attainment_follows", lambda run: first(run)["classes"].pop()),
    "target": (
        "attainment_follows",
        lambda run: first(run).update(meets_target=not first(run)["meets_target"]),
    ),
    "percentile": ("percentiles_ascend", lambda run: first(run)["itl"].update(p50_s=99.0)),
    "of class": ("percentiles_ascend", lambda run: first(run)["classes"][0]["ttft"].update(p50_s=99.0)),
    "peak": ("power_follows", lambda run: run.update(power_peak_w=1e6)),
    "p99": ("power_follows", lambda run: run.update(power_p99_w=1e6)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_run_does_not_hold(execution: Execution, tmp_path: Path, edit: str) -> None:
    constraint, change = EDITS[edit]
    content = json.loads(to_json(execution.run))
    change(content)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    verdict = check_file(path)
    assert not verdict.holds
    assert constraint in {violation.constraint for violation in verdict.violations}


def test_a_run_without_requests_holds(tmp_path: Path) -> None:
    problem = problem_of_both()
    deployment = cases.deployment(GROUPS)
    plan = plan_for(predict(problem, deployment, seed=1)).model_copy(update={"deployment": deployment})
    empty = cases.trace(problem.services, [], [], duration_s=30.0)
    run = execute(problem, plan, trace=empty)
    write_document(run, tmp_path / "run.json")
    assert read_document(tmp_path / "run.json", Run).services[0].itl is None
    assert check_run(tmp_path / "run.json")[1] == ()
