"""The measured profiler in torch: what is run is the model's graph, and what is written is what was timed.

On the processor tiny models are timed for real. The last test runs where a GPU is. How points are judged, and
every fault of a GPU, is in test_measured_trial.py, on an emulated one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muplan.errors import DeviceError, InputError
from muplan.hardware.catalog import load_device
from muplan.model.catalog import load_model
from muplan.model.graph import ModelGraph, Phase
from muplan.profile import Method, Profile
from muplan.profiling.analytical import make_profile
from muplan.profiling.clustering import segments_of
from muplan.profiling.measured.measure import measure_profile
from muplan.profiling.measured.rules import Rules
from muplan.serde import read_document
from tests.tiny_graphs import tiny_decoder, tiny_encoder

torch = pytest.importorskip("torch", reason="the measured profiler runs torch: pip install 'muplan[torch]'")

from muplan.profiling.measured.bench import TorchBench  # noqa: E402
from muplan.profiling.measured.modules import SegmentModule, pass_shape  # noqa: E402
from muplan.profiling.measured.place import open_place  # noqa: E402
from muplan.profiling.measured.points import Point  # noqa: E402

GRID: dict[str, Any] = {"batches": (1, 2), "tokens": (4, 16)}
ANYTHING = Rules(most_spread=1e9)
"""Believes every timing: a test machine may be busy."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads of several tests would wait for each other."""
    torch.set_num_threads(1)


# --- what is run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert-base", "vit-large", "opt-1.3b", "llama-3.1-8b"])
def test_modules_hold_the_graphs_weights_and_do_its_work(name: str) -> None:
    """Bytes of weights equal, FLOPs within 2 % by torch's counter; else another model is timed."""
    from torch.utils.flop_counter import FlopCounterMode

    graph, nowhere = load_model(name), torch.device("meta")
    with nowhere:
        modules = {
            (segment.block, segment.part): SegmentModule(graph, segment.operators)
            for segment in segments_of(graph)
        }
    for segment in segments_of(graph):
        held = sum(weight.numel() for weight in modules[segment.block, segment.part].parameters())
        assert held * graph.element_bytes == sum(one.weight_bytes for one in segment.operators)
    for phase in graph.phases:
        shape = pass_shape(phase, 2, graph.fixed_tokens or 128)
        flowing = modules[0, 0].reads(shape, nowhere, None)
        with nowhere, FlopCounterMode(display=False) as counter:
            for segment in segments_of(graph):
                flowing = modules[segment.block, segment.part](flowing, shape)
        expected = graph.flops(phase, 2, shape.tokens, shape.context)
        # The counter knows matrix products alone, and no mask that spares half of them.
        assert counter.get_total_flops() == pytest.approx(expected, rel=0.02)


def test_decode_continues_what_prefill_began() -> None:
    """A token decoded from the cache equals the same token at the end of one pass over all."""
    graph = tiny_decoder()
    torch.manual_seed(0)
    modules = [SegmentModule(graph, segment.operators, torch.float32) for segment in segments_of(graph)]
    ids = torch.randint(graph.vocabulary_size, (2, 9))
    with torch.inference_mode():
        whole = ids
        for module in modules:
            whole = module(whole, pass_shape(Phase.PREFILL, 2, 9))
        last = ids[:, -1:]
        for module in modules:  # the caches hold the nine tokens; the last is written again
            if module._cache is not None:
                shape = pass_shape(Phase.DECODE, 2, 9)
                module._cache = (shape, *module._cache[1:])
            last = module(last, pass_shape(Phase.DECODE, 2, 9))
    torch.testing.assert_close(last, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet-50", "t5-large", "whisper-small"])
def test_what_cannot_be_run_is_refused(name: str) -> None:
    with (
        open_place("cpu") as place,
        pytest.raises(InputError, match=r"cannot be run yet.*\n\n.*muplan profile import"),
    ):
        measure_profile(load_model(name), load_device("cpu"), place=place, batches=(1,))


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [tiny_encoder(), tiny_decoder()], ids=lambda graph: graph.name)
def test_a_profile_holds_what_was_timed(graph: ModelGraph) -> None:
    """The highest clock has the measured latencies; others keep the model's proportions."""
    device = load_device("cpu")
    with open_place("cpu") as place:
        measured = measure_profile(graph, device, place=replace(place, rules=ANYTHING), **GRID)
    profile, modelled = measured.profile, make_profile(graph, device, tensor_parallel=(1,), **GRID)
    assert profile.provenance.method is Method.MEASURED
    assert "processor, 1 threads, float32" in profile.provenance.description
    assert "power modelled" in profile.provenance.description
    for point, made in measured.points.items():
        where = {"tensor_parallel": 1, "batch": point.batch, "tokens": point.tokens}
        latency_s = profile.latency_s(point.phase, **where)[point.cluster_type]
        assert latency_s[-1] == pytest.approx(made.latency_s, rel=1e-6)
        expected = modelled.latency_s(point.phase, **where)[point.cluster_type]
        np.testing.assert_allclose(latency_s / latency_s[-1], expected / expected[-1], rtol=1e-5)
        assert made.low_s <= made.latency_s <= made.high_s


def test_a_pass_on_the_processor_is_of_the_next_copy() -> None:
    """Copies take turns, so that weights come from memory; of a model with three layers there are three."""
    graph, calls = tiny_encoder(), []
    segments = [segment for segment in segments_of(graph) if segment.instance == 0]
    bench = TorchBench(graph, [tuple(segments[1:2])], [3], torch.device("cpu"))
    load = bench.load(Point(cluster_type=0, phase=Phase.FORWARD, batch=1, tokens=4))
    for copy in bench._copies:
        copy[0].register_forward_hook(lambda module, *_: calls.append(id(module)))
    load.start(6)
    assert load.num_passes == 1
    assert len(set(calls)) == 3
    assert calls[:3] == calls[3:]


# --- the command ---------------------------------------------------------------------------------


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Threads of torch would wait for each other, and for other tests."""


def muplan(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "muplan", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(tiny_encoder().model_dump_json(exclude_none=True), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("where", [["--device", "cpu"], ["--device", "cpu", "--on", "cpu"]], ids=" ".join)
def test_the_command_writes_a_profile_that_can_be_read(model: str, where: list[str], tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    options = ["--batches", "1", "--tokens", "8,16", "-o", str(path), "--json"]
    for _ in range(5):  # a busy machine refuses points
        run = muplan("profile", model, "--measure", *where, *options)
        if run.returncode != 3:
            break
        path.with_suffix(".points.jsonl").unlink()
    assert run.returncode == 0, run.stderr
    assert run.stderr == f"Written: {path}\n"
    told = json.loads(run.stdout)["provenance"]
    assert told["method"] == "measured"
    assert told["measurement"]["num_points"] > 0
    assert read_document(path, Profile).device == "cpu"
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_measurement_is_interrupted_and_goes_on(model: str, tmp_path: Path) -> None:
    """Ctrl-C leaves the points and no profile; the same command then ends with a whole one."""
    path, side = tmp_path / "out.json", tmp_path / "out.points.jsonl"
    command = [
        *(sys.executable, "-m", "muplan", "profile", model, "--measure", "--device", "cpu", "-o", str(path)),
        *("--batches", "1,2,3,4", "--tokens", "1,2,4,8,16"),
    ]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s and not (side.exists() and side.read_text().count("\n") > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (3, "")
    assert errors.startswith("error: Interrupted after ")
    assert f"They are kept in {side}: the same command goes on from there." in errors
    assert not path.exists()
    kept = side.read_text().splitlines()[1:4]
    run = muplan(*command[3:])
    if run.returncode == 3:  # a busy machine: points were refused, which is told, and they are kept
        assert "points were refused" in run.stderr
        assert side.read_text().splitlines()[1:4] == kept
        return
    assert run.returncode == 0, run.stderr
    assert not side.exists()
    profile, first = read_document(path, Profile), json.loads(kept[0])
    point = first["point"]
    latency_s = profile.latency_s(
        Phase(point["phase"]), tensor_parallel=1, batch=point["batch"], tokens=point["tokens"]
    )
    assert latency_s[point["cluster_type"], -1] == pytest.approx(first["measured"]["latency_s"], rel=1e-6)


def test_a_terminal_sees_how_far_it_is(model: str, tmp_path: Path) -> None:
    """A bar with points done, of how many, and the time left; the profile is written all the same."""
    import pty

    ours, theirs = pty.openpty()
    path = tmp_path / "out.json"
    command = [sys.executable, "-m", "muplan", "profile", model, "--measure", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--batches", "1,2", "--tokens", "8,16", "-o", str(path), "--json"],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # the end of a terminal
    assert process.wait(60) in (0, 3)  # 3: a busy machine, points were refused
    text = shown.decode("utf-8", "replace")
    assert "measuring tiny-encoder on cpu" in text
    assert re.search(r"\d+/16", text)
    assert re.search(r"\d:\d\d:\d\d", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cpu", "--clocks", "810"], "--clocks does not go with --measure"),
        (["--device", "cpu", "--on", "tpu"], "tpu: there is no such place"),
        (["--device", "cuda:x"], "cuda:x: there is no such place"),
        (["--device", "h200-sxm5-141gb", "--on", "cpu"], "which is cpu"),
        (["--device", "h300"], "There is no device 'h300'"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str) -> None:
    run = muplan("profile", "bert-base", "--measure", *options)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr


def test_a_modelled_profile_needs_a_device() -> None:
    run = muplan("profile", "bert-base")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: --device is missing.\n\nName a device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"torch sees no GPU.*\n\n.*--device cpu"), open_place("cuda"):
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_clusters_add_up_to_the_model_on_a_gpu() -> None:
    """A whole pass takes what its clusters take, within 10 %; power is between idle and the cap."""
    from validation.measured import composed, whole_pass

    graph = load_model("bert-large")
    with open_place("cuda") as place:
        device = load_device(place.device or "h200-sxm5-141gb")
        measured = measure_profile(graph, device, place=place, batches=(1, 8), tokens=(64, 128))
    whole = whole_pass(graph, Phase.FORWARD, 8, 128)
    added = composed(measured.profile, Phase.FORWARD, 8, 128)
    assert added.latency_s == pytest.approx(whole.latency_s, rel=0.1)
    assert 50 < added.power_w < 1000
