"""Problems: a workload resolved against devices, models, profiles, lengths and traces.

If these fail, the planner works on other limits or demands than the workload states, or a mistake
between files passes unnoticed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from muplan.errors import InputError
from muplan.hardware.catalog import load_device
from muplan.model.catalog import load_model
from muplan.problem.loading import read_problem
from muplan.problem.problem import Problem
from muplan.profile import Method, Phase, Profile
from muplan.profiling.analytical import make_profile
from muplan.profiling.store import ProfileStore
from muplan.serde import write_document
from muplan.traces.files import write_trace
from muplan.traces.generate import generate_trace, trace_rng
from muplan.traces.lengths import load_lengths
from muplan.traces.trace import Trace

FLEET = "fleet:\n  pools:\n    - {name: v100, device: v100-sxm2-32gb, num_gpus: 2}\n"


def write(folder: Path, services: str, fleet: str = FLEET) -> Path:
    path = folder / "workload.yaml"
    text = f"kind: workload\nschema_version: 1\nname: w\n{fleet}services:\n{services}"
    path.write_text(text, encoding="utf-8")
    return path


def service(**changes: str) -> str:
    keys = {"name": "a", "model": "bert-base", "slo": "{scale: 5}", "demand": "{rate_rps: 4}"} | changes
    return "  - {" + ", ".join(f"{key}: {value}" for key, value in keys.items()) + "}\n"


def read(folder: Path, services: str, fleet: str = FLEET, profiles: Path | None = None) -> Problem:
    return read_problem(write(folder, services, fleet), profiles=profiles)


def faults_of(folder: Path, services: str, fleet: str = FLEET) -> list[tuple[int, str, str]]:
    with pytest.raises(InputError) as caught:
        read(folder, services, fleet)
    return [(fault.line, fault.key, fault.message) for fault in caught.value.faults]


def record(folder: Path, *, inputs: list[int], outputs: list[int], names: tuple[str, ...] = ("a",)) -> None:
    count = len(inputs)
    trace = Trace(
        services=names,
        arrival_s=np.cumsum(np.linspace(0.5, 1.5, count)),
        service=np.arange(count, dtype=np.int32) % len(names),
        input_tokens=np.array(inputs, dtype=np.int32),
        output_tokens=np.array(outputs, dtype=np.int32),
        duration_s=2.0 * count,
    )
    write_trace(trace, folder / "trace.csv")


def single_latency_s(profile: Profile, phase: Phase, tokens: float) -> float:
    """Sum over the clusters of the graph, one by one: slow but plain."""
    latency_s = profile.latency_s(phase, tensor_parallel=1, batch=1, tokens=tokens)
    return sum(float(latency_s[cluster.type][-1]) for cluster in profile.clusters)


# --- limits ------------------------------------------------------------------------------------


def test_a_scale_multiplies_the_single_latency_of_a_forward_service(tmp_path: Path) -> None:
    (resolved,) = read(tmp_path, service(tokens="256", slo="{scale: 7}")).services
    latency_s = single_latency_s(resolved.profiles["v100"], Phase.FORWARD, 256)
    assert resolved.limits.latency_s == pytest.approx(7 * latency_s, rel=1e-12)
    assert resolved.limits.ttft_s == resolved.limits.tpot_s == math.inf
    assert (resolved.input_tokens, resolved.output_tokens, resolved.max_context) == (256.0, 0.0, 256)


def test_a_scale_multiplies_prefill_and_decode_of_a_generate_service(tmp_path: Path) -> None:
    chat = service(model="llama-2-7b", slo="{scale: 5}", lengths="azure-conversation")
    (resolved,) = read(tmp_path, chat).services
    lengths = load_lengths("azure-conversation").limited_to(4096)
    assert resolved.lengths == lengths
    assert (resolved.input_tokens, resolved.output_tokens) == (
        lengths.mean_input_tokens,
        lengths.mean_output_tokens,
    )
    assert resolved.max_context == 4096
    profile = resolved.profiles["v100"]
    prefill_s = single_latency_s(profile, Phase.PREFILL, lengths.mean_input_tokens)
    context = lengths.mean_input_tokens + lengths.mean_output_tokens / 2
    assert resolved.limits.ttft_s == pytest.approx(5 * prefill_s, rel=1e-12)
    assert resolved.limits.tpot_s == pytest.approx(
        5 * single_latency_s(profile, Phase.DECODE, context), rel=1e-12
    )
    assert resolved.limits.latency_s == math.inf


def test_absolute_limits_are_taken_as_they_are(tmp_path: Path) -> None:
    chat = service(name="chat", model="opt-1.3b", slo="{ttft_s: 1, tpot_s: 0.1}", lengths="azure-code")
    first, second = read(tmp_path, service(slo="{latency_s: 0.3}") + chat).services
    assert (first.limits.latency_s, first.limits.ttft_s, first.limits.tpot_s) == (0.3, math.inf, math.inf)
    assert (second.limits.latency_s, second.limits.ttft_s, second.limits.tpot_s) == (math.inf, 1.0, 0.1)


def test_limits_count_on_the_first_pool_so_that_more_pools_never_tighten_them(tmp_path: Path) -> None:
    more = FLEET + "    - {name: a100, device: a100-sxm4-80gb, num_gpus: 2}\n"
    (alone,) = read(tmp_path, service()).services
    (among,) = read(tmp_path, service(), fleet=more).services
    assert alone.limits == among.limits
    assert list(among.profiles) == ["v100", "a100"]
    assert among.profiles["a100"].device == "a100-sxm4-80gb"


# --- demand ------------------------------------------------------------------------------------


def test_tokens_default_to_the_length_of_the_model(tmp_path: Path) -> None:
    text, image = read(tmp_path, service() + service(name="b", model="vit-large")).services
    assert text.input_tokens == load_model("bert-base").max_context
    assert image.input_tokens == load_model("vit-large").fixed_tokens


def test_a_recorded_trace_gives_rate_burstiness_and_lengths(tmp_path: Path) -> None:
    record(tmp_path, inputs=[100] * 30, outputs=[20] * 30)
    chat = service(model="opt-1.3b", demand="{trace: trace.csv}")
    (resolved,) = read(tmp_path, chat).services
    assert resolved.rate_rps == pytest.approx(0.5)
    gaps = np.linspace(0.5, 1.5, 30)[1:]
    assert resolved.cv == pytest.approx(gaps.std() / gaps.mean())
    assert (resolved.input_tokens, resolved.output_tokens, resolved.max_context) == (100.0, 20.0, 120)
    trace = generate_trace([resolved], duration_s=60.0, rng=trace_rng(0, 0))
    assert set(trace.input_tokens) == {100}
    assert set(trace.output_tokens) == {20}


def test_a_recorded_trace_with_bursts_beyond_its_intervals_gives_its_dispersion(tmp_path: Path) -> None:
    """Seconds of ten requests and silent seconds: intervals vary less than the counts of seconds do."""
    arrivals = np.concatenate([2.0 * second + np.arange(0.05, 1.0, 0.1) for second in range(50)])
    tokens = np.full(len(arrivals), 9, dtype=np.int32)
    none = np.zeros(len(arrivals), dtype=np.int32)
    trace = Trace(
        services=("a",),
        arrival_s=arrivals,
        service=none,
        input_tokens=tokens,
        output_tokens=none,
        duration_s=100.0,
    )
    write_trace(trace, tmp_path / "trace.csv")
    (resolved,) = read(tmp_path, service(tokens="64", demand="{trace: trace.csv}")).services
    # Counts of 10 and 0 in turn: variance 25 · 100/99 over a mean of 5.
    assert resolved.cv == pytest.approx(math.sqrt(5.0 * 100 / 99))
    assert np.diff(arrivals).std() / np.diff(arrivals).mean() < resolved.cv


@pytest.mark.parametrize(
    ("process", "rate_rps", "cv"),
    [
        ("{kind: poisson, rate_rps: 3}", 3.0, 1.0),
        ("{kind: gamma, rate_rps: 3, cv: 2}", 3.0, 2.0),
        ("{kind: weibull, rate_rps: 3, cv: 2}", 3.0, 2.0),
        ("{kind: markov-modulated, rates_rps: [2, 20], sojourns_s: [8, 1]}", 4.0, 2.6),
        ("{kind: piecewise, rates_rps: [2, 8, 5], interval_s: 600, noise_cv: 0.2}", 5.0, 1.5),
    ],
)
def test_a_process_gives_rate_burstiness_and_arrivals(
    tmp_path: Path, process: str, rate_rps: float, cv: float
) -> None:
    """And what is drawn of it has that rate, twice as much where demand is doubled."""
    (resolved,) = read(tmp_path, service(tokens="64", demand=f"{{process: {process}}}")).services
    assert resolved.rate_rps == pytest.approx(rate_rps)
    assert resolved.cv == pytest.approx(cv, abs=0.1)
    doubled = resolved.scaled(2.0)
    assert doubled.rate_rps == pytest.approx(2 * rate_rps)
    assert doubled.process is not None
    assert doubled.cv == doubled.process.cv
    trace = generate_trace([resolved], duration_s=36_000.0, rng=trace_rng(0, 0))
    twice = generate_trace([doubled], duration_s=18_000.0, rng=trace_rng(0, 0))
    np.testing.assert_allclose(2 * twice.arrival_s, trace.arrival_s, rtol=1e-9)
    assert len(trace) == pytest.approx(36_000 * rate_rps, rel=0.1)
    assert set(trace.input_tokens) == {64}


def test_a_trace_of_several_services_gives_each_its_own(tmp_path: Path) -> None:
    record(tmp_path, inputs=[100, 200] * 20, outputs=[20, 30] * 20, names=("a", "b"))
    both = [service(name=n, model="opt-1.3b", demand="{trace: trace.csv}") for n in "ab"]
    first, second = read(tmp_path, "".join(both)).services
    assert (first.input_tokens, second.input_tokens) == (100.0, 200.0)


def test_recorded_prompts_are_shortened_to_the_context(tmp_path: Path) -> None:
    record(tmp_path, inputs=[5000] * 10, outputs=[48] * 10)
    (resolved,) = read(tmp_path, service(model="opt-1.3b", demand="{trace: trace.csv}")).services
    assert (resolved.input_tokens, resolved.output_tokens, resolved.max_context) == (2000.0, 48.0, 2048)


def test_a_recorded_trace_of_a_forward_service_gives_arrivals_only(tmp_path: Path) -> None:
    record(tmp_path, inputs=[10] * 10, outputs=[0] * 10)
    (resolved,) = read(tmp_path, service(tokens="64", demand="{trace: trace.csv}")).services
    assert resolved.input_tokens == 64.0
    trace = generate_trace([resolved], duration_s=20.0, rng=trace_rng(0, 0))
    assert set(trace.input_tokens) == {64}
    assert len(trace) == 10


def test_long_contexts_are_covered_by_the_profile(tmp_path: Path) -> None:
    chat = service(model="llama-3.1-8b", lengths="azure-conversation")
    (resolved,) = read(tmp_path, chat).services
    assert resolved.max_context == load_lengths("azure-conversation").max_context
    assert resolved.profiles["v100"].grid(Phase.DECODE).tokens[-1] >= resolved.max_context


# --- faults ------------------------------------------------------------------------------------


def test_all_faults_are_reported_at_once_with_lines_and_nearest_names(tmp_path: Path) -> None:
    fleet = "fleet:\n  pools:\n    - {name: v100, device: v100-sxm-32gb, num_gpus: 2}\n"
    services = (
        service(model="bert-1.4b")
        + service(name="b", model="llama-2-7b", lengths="azure-conversatin")
        + service(name="c", model="llama-2-7b", tokens="100", slo="{latency_s: 1}")
        + service(name="d", model="bert-base", lengths="azure-code", slo="{ttft_s: 1, tpot_s: 1}")
        + service(name="e", demand="{trace: none.csv}")
        + service(name="f", model="mine.json")
    )
    found = faults_of(tmp_path, services, fleet)
    assert [(line, key) for line, key, _ in found] == [
        (6, "fleet.pools[0].device"),
        (8, "services[0].model"),
        (9, "services[1].lengths"),
        (10, "services[2].tokens"),
        (10, "services[2].slo.latency_s"),
        (10, "services[2].lengths"),
        (11, "services[3].lengths"),
        (11, "services[3].slo.ttft_s"),
        (12, "services[4].demand.trace"),
        (13, "services[5].model"),
    ]
    messages = [message for _, _, message in found]
    assert "Did you mean v100-sxm2-32gb" in messages[0]
    assert "There is no model 'bert-1.4b'. Did you mean bert-1.3b" in messages[1]
    assert "Did you mean azure-conversation" in messages[2]
    assert messages[3] == "llama-2-7b generates; give lengths instead of tokens"
    assert messages[4] == "llama-2-7b generates; give scale, or ttft_s and tpot_s"
    assert messages[5] == "is required, for llama-2-7b generates; 'azure-conversation' is one"
    assert messages[6] == "bert-base answers in one pass; remove lengths, or set tokens"
    assert messages[7] == "bert-base answers in one pass; give scale or latency_s"
    assert f"{tmp_path / 'none.csv'} does not exist" in messages[8]
    assert f"{tmp_path / 'mine.json'} does not exist" in messages[9]


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"tokens": "513"}, "tokens", "bert-base takes at most 512 (found 513)"),
        (
            {"model": "vit-large", "tokens": "100"},
            "tokens",
            "a request of vit-large always has 197 (found 100)",
        ),
        (
            {"model": "llama-2-7b", "lengths": "azure-code", "demand": "{trace: trace.csv}"},
            "lengths",
            "the recorded trace holds the lengths; remove one of the two",
        ),
        (
            {"model": "whisper-small", "lengths": "azure-code"},
            "lengths",
            "every input of whisper-small has 1500 tokens (found 3 to 7437)",
        ),
        (
            {"demand": "{trace: trace.csv}", "tokens": "50"},
            "demand.trace",
            "its requests have output tokens, but bert-base answers in one pass",
        ),
        (
            {"demand": "{trace: trace.csv}", "tokens": "50"},
            "demand.trace",
            "holds a request of 60 tokens, where the service takes 50",
        ),
    ],
)
def test_what_does_not_go_together_is_told(
    tmp_path: Path, changes: dict[str, str], key: str, message: str
) -> None:
    record(tmp_path, inputs=[60] * 5, outputs=[5] * 5)
    found = faults_of(tmp_path, service(**changes))
    assert (8, f"services[0].{key}", message) in found


def test_a_trace_without_the_service_or_with_too_few_requests_is_refused(tmp_path: Path) -> None:
    record(tmp_path, inputs=[60] * 4, outputs=[5] * 4, names=("x", "y"))
    ((_, key, message),) = faults_of(tmp_path, service(model="opt-1.3b", demand="{trace: trace.csv}"))
    assert key == "services[0].demand.trace"
    assert "no service 'a'; it has x, y" in message
    ((_, _, message),) = faults_of(tmp_path, service(name="x", model="opt-1.3b", demand="{trace: trace.csv}"))
    assert message == "holds 2 requests, too few to tell how bursty they are"


def test_a_cap_above_the_device_is_refused(tmp_path: Path) -> None:
    fleet = FLEET.replace("num_gpus: 2", "num_gpus: 2, power_cap_w: 500")
    ((line, key, message),) = faults_of(tmp_path, service(), fleet)
    assert (line, key) == (6, "fleet.pools[0].power_cap_w")
    assert message.startswith("500 W is above the 300 W of v100-sxm2-32gb")


def test_faults_of_a_file_that_the_workload_names_are_passed_on(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("kind: device\nschema_version: 1\nname: mine\n", encoding="utf-8")
    fleet = FLEET.replace("v100-sxm2-32gb", "mine.yaml")
    ((line, key, message),) = faults_of(tmp_path, service(), fleet)
    assert (line, key) == (6, "fleet.pools[0].device")
    assert f"{tmp_path / 'mine.yaml'}:1: memory: this key is required" in message


# --- files of the user -------------------------------------------------------------------------


def test_devices_models_and_lengths_may_be_files_beside_the_workload(tmp_path: Path) -> None:
    device = load_device("v100-sxm2-32gb").model_copy(update={"name": "mine"})
    write_document(device, tmp_path / "mine.json")
    write_document(load_model("opt-1.3b").model_copy(update={"name": "own"}), tmp_path / "own.json")
    write_document(load_lengths("azure-code").model_copy(update={"name": "ours"}), tmp_path / "ours.json")
    fleet = FLEET.replace("v100-sxm2-32gb", "mine.json")
    problem = read(tmp_path, service(model="own.json", lengths="ours.json"), fleet)
    (resolved,) = problem.services
    assert problem.devices["v100"].name == "mine"
    assert (resolved.profiles["v100"].model, resolved.profiles["v100"].device) == ("own", "mine")
    assert resolved.lengths is not None
    assert resolved.lengths.name == "ours"


# --- profiles ----------------------------------------------------------------------------------


def saved(folder: Path, profile: Profile) -> Path:
    path = folder / "v100-sxm2-32gb" / "bert-base.json"
    write_document(profile, path)
    return path


def test_a_saved_profile_is_used(tmp_path: Path) -> None:
    profile = make_profile(load_model("bert-base"), load_device("v100-sxm2-32gb"), clocks_mhz=(900, 1200))
    saved(tmp_path, profile)
    (resolved,) = read(tmp_path, service(), profiles=tmp_path).services
    assert resolved.profiles["v100"] == profile


@pytest.mark.parametrize("side", ["model", "device"])
def test_a_stale_profile_is_refused(tmp_path: Path, side: str) -> None:
    """A modelled profile of a model or device that has since changed would plan for the old one."""
    profile = make_profile(load_model("bert-base"), load_device("v100-sxm2-32gb"))
    changed = profile.provenance.model_copy(update={f"{side}_digest": "sha256:0"})
    path = saved(tmp_path, profile.model_copy(update={"provenance": changed}))
    with pytest.raises(InputError) as caught:
        read(tmp_path, service(), profiles=tmp_path)
    (fault,) = caught.value.faults
    assert fault.key == "services[0].model"
    assert fault.message.startswith(
        f"{path} is stale: the {side} has changed since. Profile again: muplan profile"
    )


def test_a_measured_profile_needs_no_digest(tmp_path: Path) -> None:
    profile = make_profile(load_model("bert-base"), load_device("v100-sxm2-32gb"))
    update = {"method": Method.MEASURED, "device_digest": "sha256:0"}
    measured = profile.provenance.model_copy(update=update)
    saved(tmp_path, profile.model_copy(update={"provenance": measured}))
    (resolved,) = read(tmp_path, service(), profiles=tmp_path).services
    assert resolved.profiles["v100"].provenance.method is Method.MEASURED


def test_a_profile_of_something_else_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, make_profile(load_model("bert-large"), load_device("v100-sxm2-32gb")))
    with pytest.raises(InputError, match="is the profile of bert-large on v100-sxm2-32gb"):
        read(tmp_path, service(), profiles=tmp_path)


def test_a_profile_that_ends_below_the_requests_is_refused(tmp_path: Path) -> None:
    graph, device = load_model("bert-base"), load_device("v100-sxm2-32gb")
    saved(tmp_path, make_profile(graph, device, tokens=(64, 128)))
    with pytest.raises(InputError, match="covers 64–128 tokens in forward, the requests reach 512"):
        read(tmp_path, service(), profiles=tmp_path)
    with pytest.raises(InputError, match="covers 64–128 tokens in forward, the requests reach 32"):
        read(tmp_path, service(tokens="32"), profiles=tmp_path)


def test_a_scale_needs_a_profile_of_single_requests(tmp_path: Path) -> None:
    saved(tmp_path, make_profile(load_model("bert-base"), load_device("v100-sxm2-32gb"), batches=(2, 4)))
    with pytest.raises(InputError) as caught:
        read(tmp_path, service(), profiles=tmp_path)
    (fault,) = caught.value.faults
    assert (fault.line, fault.key) == (8, "services[0].slo")
    assert "covers 2–4 batch in forward, not 1" in fault.message


def test_a_profile_is_made_once_for_services_that_share_it() -> None:
    store = ProfileStore()
    graph, device = load_model("bert-base"), load_device("v100-sxm2-32gb")
    assert store.profile(graph, device) is store.profile(graph, device)


# --- the whole ---------------------------------------------------------------------------------


def test_equal_workloads_give_equal_problems(tmp_path: Path) -> None:
    services = service() + service(name="chat", model="opt-1.3b", lengths="azure-code")
    first, second = read(tmp_path, services), read(tmp_path, services)
    assert first == second


@pytest.mark.parametrize(
    "name", ["chat", "light", "mixed", "overload", "pools", "power_capped", "quickstart"]
)
def test_every_shipped_workload_resolves(workloads: Path, name: str) -> None:
    problem = read_problem(workloads / f"{name}.yaml")
    assert [service.name for service in problem.services] == [spec.name for spec in problem.workload.services]
    for resolved in problem.services:
        limits = (resolved.limits.latency_s, resolved.limits.ttft_s, resolved.limits.tpot_s)
        assert min(limits) > 0.0
        assert [math.isinf(limit) for limit in limits] == (
            [False, True, True] if resolved.request_kind == "forward" else [True, False, False]
        )


def test_more_requests_than_a_machine_holds_are_refused(tmp_path: Path) -> None:
    """Rate × duration × replications is bounded before any request is drawn."""
    faults = faults_of(tmp_path, service(demand="{rate_rps: 1000000}"))
    assert [(key, "requests" in message) for _, key, message in faults] == [("services[0].demand", True)]


def test_an_edited_profile_on_the_default_grid_is_refused(tmp_path: Path) -> None:
    """Its digests of model and device still hold, its figures are not what the profiler makes."""
    device, graph = load_device("v100-sxm2-32gb"), load_model("bert-base")
    profile = make_profile(graph, device)
    path = tmp_path / device.name / f"{graph.name}.json"
    write_document(profile, path)
    assert ProfileStore(tmp_path).profile(graph, device) == profile
    first = profile.cluster_types[0]
    edited = first.model_copy(update={"weight_bytes_per_gpu": (1, *first.weight_bytes_per_gpu[1:])})
    types = (edited, *profile.cluster_types[1:])
    write_document(profile.model_copy(update={"cluster_types": types}), path)
    with pytest.raises(InputError, match="was edited"):
        ProfileStore(tmp_path).profile(graph, device)
