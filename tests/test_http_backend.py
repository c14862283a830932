"""Plans executed on servers that are deployed already, here servers of the tests whose delays are known.

If these fail, `muplan execute --backend http` judges a deployment by latencies that are not its servers',
loses requests or counts them twice, sends later than the trace says, or gives away what should stay secret.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from muplan.cli.main import main
from muplan.endpoints import Endpoint, Endpoints, LocalGpu
from muplan.errors import EndpointError
from muplan.hardware.catalog import load_device
from muplan.plan import Deployment, Interval, Plan, Prediction, ServicePrediction
from muplan.problem.problem import Limits, Problem
from muplan.run import Run
from muplan.serde import digest, read_document, to_json, write_text
from muplan.serving import gpu_energy
from muplan.serving.executor import Execution
from muplan.serving.gpu_energy import Meters
from muplan.serving.http import energy as energy_module
from muplan.serving.http import execution as execution_module
from muplan.serving.http.execution import execute_on_servers
from muplan.serving.http.failure import FailureKind
from muplan.serving.http.target import make_targets
from muplan.traces.trace import Trace
from muplan.workload import Workload
from tests import serving_cases as cases
from tests.emulated_gpu import EmulatedGpu, Faults
from tests.openai_server import FAULTS, OpenAiServer
from tests.test_serving_execution import plan_for

pytest.importorskip("aiohttp", reason="the http backend needs aiohttp")

ROOT = Path(__file__).parent.parent
CHAT = cases.generate_service(
    "chat", prefill=lambda *_: 0.1, decode=lambda *_: 0.02, max_batch=8, max_context=64, mean_input=8.0,
    mean_output=5.0, limits=Limits(latency_s=np.inf, ttft_s=0.5, tpot_s=0.2),
)  # fmt: skip
SEARCH = cases.forward_service("search", lambda *_: 0.01, limit_s=0.5)
PROBLEM = cases.problem([CHAT], num_gpus=2)
TWO = cases.deployment([cases.group(f"g{gpu}", [gpu], ["chat"], max_batch=8, shares=[0.5]) for gpu in (0, 1)])


def chat_trace(arrivals: Sequence[float] | np.ndarray, duration_s: float, tokens: int = 5) -> Trace:
    count = len(arrivals)
    return cases.trace(
        [CHAT], arrivals, [0] * count, duration_s=duration_s, input_tokens=[8] * count,
        output_tokens=[tokens] * count,
    )  # fmt: skip


def endpoints_of(deployment: Deployment, servers: Sequence[OpenAiServer], **options: object) -> Endpoints:
    """An endpoint for each group; lags are not judged, for the tests' machine may be busy."""
    places = [(group.name, replica.service) for group in deployment.groups for replica in group.replicas]
    named = {"model": "tiny", **options}
    return Endpoints(
        endpoints=tuple(
            Endpoint.model_validate({"group": group, "service": service, "url": server.url, **named})
            for (group, service), server in zip(places, servers, strict=True)
        ),
        timeout_s=5.0,
        send_lag_limit_s=60.0,
    )  # fmt: skip


def plan_of(problem: Problem, deployment: Deployment) -> Plan:
    """A plan that predicts what the tests do not look at."""
    one = Interval(mean=1.0, low=0.9, high=1.0)
    services = tuple(
        ServicePrediction(
            service=service.name, rate_rps=1.0, attainment=one, target=0.9, latency_mean_s=one,
            latency_p50_s=0.2, latency_p99_s=0.3,
        )
        for service in problem.services
    )  # fmt: skip
    prediction = Prediction(
        seed=0, duration_s=20.0, replications=2, power_w=one, energy_per_request_j=1.0, goodput_rps=one,
        services=services,
    )  # fmt: skip
    return plan_for(prediction).model_copy(update={"deployment": deployment})


def executed(
    trace: Trace,
    endpoints: Endpoints,
    *,
    problem: Problem = PROBLEM,
    deployment: Deployment = TWO,
    parked: tuple[str, ...] = (),
) -> Execution:
    plan = plan_of(problem, deployment).model_copy(update={"parked": parked})
    targets = make_targets(problem, deployment, endpoints, {})
    return execute_on_servers(problem, plan, endpoints, targets, trace=trace)


# --- what is measured -----------------------------------------------------------------------------


def test_every_request_is_answered_once_and_timed_as_the_servers_take() -> None:
    """Servers of 100 ms to the first token and 20 ms a token: the medians of TTFT, ITL, TPOT, E2E say so.

    A busy machine adds a few milliseconds; nothing can make them less.
    """
    arrivals = np.arange(24) * 0.03
    with OpenAiServer(prefill_s=0.1, token_s=0.02) as one, OpenAiServer(prefill_s=0.1, token_s=0.02) as other:
        execution = executed(chat_trace(arrivals, 1.0), endpoints_of(TWO, [one, other]))
    run, records, bodies = execution.run, execution.records, one.bodies + other.bodies
    assert len(bodies) == 24
    assert len({tuple(body["prompt"]) for body in bodies}) == 24
    assert all(len(body["prompt"]) == 8 and body["max_tokens"] == 5 and body["ignore_eos"] for body in bodies)
    assert [len(server.bodies) for server in (one, other)] == [
        int((records.group == g).sum()) for g in (0, 1)
    ]
    assert len(one.bodies) == pytest.approx(12, abs=2)
    (service,) = run.services
    assert (service.num_requests, service.num_rejected, service.attainment.observed) == (24, 0, 1.0)
    assert run.over_http is not None
    (gaps,) = run.over_http.token_gaps
    assert service.ttft is not None
    assert service.tpot is not None
    assert service.latency is not None
    for seen_s, known_s in (
        (service.ttft.p50_s, 0.1),
        (gaps.gaps.p50_s, 0.02),
        (service.tpot.p50_s, 0.02),
        (service.latency.p50_s, 0.18),
    ):
        assert known_s - 0.001 < seen_s < 1.5 * known_s + 0.01
    assert gaps.tokens_per_chunk == 1.0
    assert run.over_http.failures == ()
    assert run.over_http.num_other_lengths == 0
    assert run.over_http.prompt_tokens_ratio == 1.0
    assert (run.backend, run.label, run.power_label) == ("http", "measured", "not measured")
    assert run.power_w is None
    assert run.energy_per_request_j is None
    assert run.groups[0].saturation is None


def test_a_slow_server_does_not_slow_sending() -> None:
    """Open loop: 16 requests come in 0.3 s to a server that takes 60 ms for each, one at a time.

    All have been sent before the sixth can be answered, and each is complete when Lindley's recursion says.
    """
    arrivals = np.linspace(0.0, 0.3, 16)
    alone = cases.deployment([cases.group("g0", [0], ["chat"], max_batch=8)])
    with OpenAiServer(prefill_s=0.04, token_s=0.01, is_serial=True) as server:
        execution = executed(
            chat_trace(arrivals, 0.5, tokens=3), endpoints_of(alone, [server]), deployment=alone
        )
        came_s = np.array(server.came_s)
    records = execution.records
    complete_s, expected_s = 0.0, []
    for arrival_s in arrivals:
        complete_s = max(complete_s, arrival_s) + 0.06
        expected_s.append(complete_s)
    assert (records.completion_s >= np.array(expected_s) - 0.002).all()
    assert records.completion_s[-1] < 1.5 * expected_s[-1]
    assert (records.start_s >= arrivals).all()
    assert np.median(records.start_s - arrivals) < 0.05
    assert np.ptp(came_s) < 0.6 * (expected_s[-1] - expected_s[0])
    assert records.batch[-1] >= 9  # in flight when the last was sent: 16 came, at most 6 were answered


def test_forward_services_are_embedded() -> None:
    """`/v1/embeddings`, with as many token ids as the trace says."""
    problem = cases.problem([SEARCH], num_gpus=1)
    deployment = cases.deployment([cases.group("g0", [0], ["search"])])
    trace = cases.trace([SEARCH], [0.0, 0.1, 0.2], [0, 0, 0], duration_s=0.4)
    with OpenAiServer(prefill_s=0.05) as server:
        execution = executed(
            trace, endpoints_of(deployment, [server]), problem=problem, deployment=deployment
        )
    assert [body["path"] for body in server.bodies] == ["/v1/embeddings"] * 3
    assert [len(body["input"][0]) for body in server.bodies] == [128] * 3
    (service,) = execution.run.services
    assert service.latency is not None
    assert 0.049 < service.latency.p50_s < 0.1
    assert service.ttft is None
    assert execution.run.over_http is not None
    assert execution.run.over_http.token_gaps == ()


def test_chats_and_texts_and_replies_of_other_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat's first chunk, which names a role, is no token; replies that end by themselves are told."""
    monkeypatch.setenv("SECRET", "Bearer s3cret")
    alone = cases.deployment([cases.group("g0", [0], ["chat"], max_batch=8)])
    options = {"api": "chat", "ignore_eos": False, "headers_from": {"Authorization": "SECRET"}}
    with OpenAiServer(prefill_s=0.05, token_s=0.01, ends_early=True) as server:
        endpoints = endpoints_of(alone, [server], **options)
        targets = make_targets(PROBLEM, alone, endpoints, os.environ)
        plan = plan_of(PROBLEM, alone)
        execution = execute_on_servers(
            PROBLEM, plan, endpoints, targets, trace=chat_trace([0.0, 0.1], 0.3, tokens=8)
        )
    assert [body["path"] for body in server.bodies] == ["/v1/chat/completions"] * 2
    assert [len(body["messages"][0]["content"].split()) for body in server.bodies] == [8, 8]
    assert [body["headers"]["authorization"] for body in server.bodies] == ["bearer s3cret"] * 2
    told = execution.run.over_http
    assert told is not None
    assert told.num_other_lengths == 2
    assert execution.records.output_tokens.tolist() == [4, 4]
    assert (execution.records.first_token_s - execution.records.start_s >= 0.049).all()
    assert "s3cret" not in to_json(execution.run)
    assert "s3cret" not in repr(targets)


# --- what goes wrong ------------------------------------------------------------------------------

KINDS = {
    "429": FailureKind.REFUSED,
    "500": FailureKind.SERVER_ERROR,
    "hang": FailureKind.TIMEOUT,
    "cut": FailureKind.BROKEN_STREAM,
    "garbage": FailureKind.MALFORMED,
    "error event": FailureKind.SERVER_ERROR,
    "nothing": FailureKind.NO_TOKENS,
}


def test_each_failure_is_a_miss_of_its_kind() -> None:
    """Of 21 requests 14 fail, twice in each way; the others are answered; none counts twice or is lost."""
    alone = cases.deployment([cases.group("g0", [0], ["chat"], max_batch=8)])
    faults = [*FAULTS, *[None] * 7, *FAULTS]
    with OpenAiServer(token_s=0.002, fault=lambda number: faults[number]) as server:
        endpoints = endpoints_of(alone, [server]).model_copy(update={"timeout_s": 1.0})
        execution = executed(chat_trace(np.arange(21) * 0.02, 0.5), endpoints, deployment=alone)
    told, (service,) = execution.run.over_http, execution.run.services
    assert told is not None
    counts = {one.kind: one.count for one in told.failures}
    expected = {kind.value: 2 * list(KINDS.values()).count(kind) for kind in KINDS.values()}
    assert counts == expected
    assert (service.num_requests, service.num_rejected) == (21, 14)
    assert service.attainment.observed == pytest.approx(7 / 21)
    assert np.isfinite(execution.records.completion_s).sum() == 7
    assert not execution.run.is_partial
    examples = {one.kind: one.example for one in told.failures}
    assert "told to answer 500" in examples["server error"]
    assert examples["broken stream"]


def test_servers_that_cannot_be_used_are_named_before_the_run() -> None:
    """Exit 3: one is not there, then one serves another model; every endpoint at fault is in the message."""
    with OpenAiServer() as gone:
        pass
    with OpenAiServer() as here, pytest.raises(EndpointError) as caught:
        executed(chat_trace([0.0], 1.0), endpoints_of(TWO, [here, gone]))
    assert caught.value.exit_code == 3
    assert f"1 of 2 endpoints cannot be used:\n  chat on g1 ({gone.url}): GET /v1/models:" in str(
        caught.value
    )
    assert "Start these servers" in str(caught.value)
    with OpenAiServer(model="other") as here, pytest.raises(EndpointError) as caught:
        executed(chat_trace([0.0], 1.0), endpoints_of(TWO, [here, here]))
    assert "2 of 2 endpoints cannot be used" in str(caught.value)
    assert "model 'tiny': refused: 404" in str(caught.value)
    assert here.bodies == []


# --- energy ---------------------------------------------------------------------------------------


class GpuInRealTime(EmulatedGpu):
    """An idle GPU whose time is the host's."""

    def energy_j(self) -> float:
        self.sleep(max(time.monotonic() - self.begin_s - self.now_s(), 0.0))
        return super().energy_j()

    begin_s = time.monotonic()


def metered(monkeypatch: pytest.MonkeyPatch, faults: Faults, **options: object) -> Run:
    """A run of 1 s, of which 0.8 s count, on two groups with a GPU each, and a parked one."""
    monkeypatch.setattr(gpu_energy, "_LEAST_S", 0.5)
    monkeypatch.setattr(energy_module, "EVERY_S", 0.1)
    warmed = cases.problem([CHAT], num_gpus=2, warm_up_s=0.2)
    device = load_device(cases.DEVICE)
    gpus: dict[LocalGpu, GpuInRealTime] = {
        number: GpuInRealTime(device, index=number, faults=faults) for number in range(3)
    }
    for gpu in gpus.values():
        gpu.begin_s = time.monotonic()

    @contextmanager
    def emulated(_: Endpoints) -> Iterator[Meters]:
        yield gpus

    monkeypatch.setattr(execution_module, "nvml_meters", emulated)
    with OpenAiServer() as one, OpenAiServer() as other:
        bare = endpoints_of(TWO, [one, other])
        both = tuple(
            endpoint.model_copy(update={"gpus": (gpu,)}) for gpu, endpoint in enumerate(bare.endpoints)
        )
        endpoints = bare.model_copy(update={"endpoints": both, **options})
        return executed(chat_trace([0.3, 0.4], 1.0), endpoints, problem=warmed, parked=("v100/0/2",)).run


def test_power_is_measured_where_all_gpus_of_the_fleet_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three idle GPUs draw what the device says, by their counters."""
    run = metered(monkeypatch, Faults(), parked_gpus=(2,))
    parked_w = load_device(cases.DEVICE).parked_w
    assert run.power_label == "measured"
    assert run.power_w is not None
    assert run.power_w.observed == pytest.approx(3 * parked_w, rel=0.05)
    assert run.energy_per_request_j == pytest.approx(run.power_w.observed * 0.8 / 2)
    assert [group.energy_j for group in run.groups] == pytest.approx([0.8 * parked_w] * 2, rel=0.05)
    assert run.energy is None


def test_power_is_not_measured_where_a_gpu_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests are answered nonetheless, and the reason is told."""
    run = metered(monkeypatch, Faults(lost_after_s=0.3), parked_gpus=(2,))
    assert run.power_label == "not measured"
    assert run.power_w is None
    assert run.over_http is not None
    assert run.over_http.metering_fault is not None
    assert "GPU is lost" in run.over_http.metering_fault
    assert run.services[0].num_rejected == 0


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan for chat.yaml, with a short simulation of which the first fifth of a second is not counted."""
    folder = tmp_path_factory.mktemp("http")
    shutil.copytree(ROOT / "workloads", folder / "workloads")
    path = folder / "workloads" / "chat.yaml"
    text = path.read_text(encoding="utf-8")
    text = text.replace("duration_s: 600", "duration_s: 2").replace("warm_up_s: 60", "warm_up_s: 0.2")
    path.write_text(text, encoding="utf-8")
    plan = json.loads((ROOT / "plans" / "chat.json").read_text(encoding="utf-8"))
    plan["provenance"]["workload_digest"] = digest(read_document(path, Workload))
    write_text(json.dumps(plan), folder / "plans" / "chat.json")
    return folder


def endpoints_file(folder: Path, server: OpenAiServer, **options: object) -> str:
    plan = read_document(folder / "plans" / "chat.json", Plan)
    content = {
        "kind": "endpoints",
        "schema_version": 1,
        "endpoints": [
            {"group": group.name, "service": replica.service, "url": server.url, "model": "tiny"}
            for group in plan.deployment.groups
            for replica in group.replicas
        ],
        "send_lag_limit_s": 60.0,
        **options,
    }
    write_text(json.dumps(content), folder / "endpoints.json")
    return str(folder / "endpoints.json")


def command(folder: Path, *arguments: str) -> list[str]:
    code = "from muplan.cli.main import main; main()"
    base = [sys.executable, "-c", code, "execute", "plans/chat.json", "--backend", "http"]
    return [*base, "--profiles", str(ROOT / "profiles"), *arguments]


def test_the_command_verifies_a_deployment(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 0, with latencies beside predictions."""
    monkeypatch.chdir(folder)
    with OpenAiServer() as server:
        arguments = ["--endpoints", endpoints_file(folder, server), "-o", "run.json"]
        assert exit_code(monkeypatch, folder, *arguments) == 0
    out = capsys.readouterr().out
    for text in ("http run of 2 s, seed 0 (measured)", "TTFT p99", "ITL p99", "targets met", "not measured"):
        assert text in out
    run = read_document(folder / "run.json", Run)
    assert 0 < sum(service.num_requests for service in run.services) <= len(server.bodies)
    assert run.is_judged


def test_late_sending_is_not_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No request can be sent within a nanosecond: exit 3, and the reason."""
    monkeypatch.chdir(folder)
    with OpenAiServer() as server:
        arguments = ["--endpoints", endpoints_file(folder, server, send_lag_limit_s=1e-9), "--duration", "1"]
        assert exit_code(monkeypatch, folder, *arguments) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "Verdict: invalid: requests were not sent when they came, not judged." in said
    assert "Requests were sent too late" in said


def test_faulty_files_and_options_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, with the lines of a file's faults."""
    monkeypatch.chdir(folder)
    assert exit_code(monkeypatch, folder) == 2
    assert "--backend http and --endpoints FILE go together." in capsys.readouterr().err
    text = "kind: endpoints\nschema_version: 1\nendpoints:\n  - {group: group-99, service: chat, "
    Path("endpoints.yaml").write_text(text + "url: 'http://a', model: tiny}\n", encoding="utf-8")
    assert exit_code(monkeypatch, folder, "--endpoints", "endpoints.yaml") == 2
    said = capsys.readouterr().err
    assert "endpoints.yaml:4: endpoints[0].group: the plan has no group 'group-99'" in said
    with OpenAiServer() as server:
        endpoints = endpoints_file(folder, server)
    assert exit_code(monkeypatch, folder, "--endpoints", endpoints, "--controller", "miad") == 2
    assert "'miad' cannot move the clocks of deployed servers" in capsys.readouterr().err
    assert exit_code(monkeypatch, folder, "--endpoints", endpoints, "--plot", "run.png") == 2
    assert "--plot draws power over time" in capsys.readouterr().err


def exit_code(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> object:
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["muplan", *command(folder, *arguments)[3:]])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_an_interrupted_command_ends_with_a_summary(folder: Path) -> None:
    """Ctrl-C while requests are under way: exit 3; the run is written, as partial."""
    with OpenAiServer(token_s=0.05) as server:
        endpoints = endpoints_file(folder, server)
        arguments = command(folder, "--endpoints", endpoints, "--duration", "60", "-o", "partial.json")
        with subprocess.Popen(
            arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            wait_until(lambda: len(server.came_s) > 12)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "partial: broken off before all requests were answered, not judged" in " ".join(out.split())
    run = read_document(folder / "partial.json", Run)
    assert run.is_partial
    assert run.duration_s < 60.0
    assert run.over_http is not None
    assert run.over_http.num_unfinished > 0


def wait_until(holds: Callable[[], bool]) -> None:
    limit_s = time.monotonic() + 60.0
    while not holds():
        assert time.monotonic() < limit_s
        time.sleep(0.02)
