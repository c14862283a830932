"""The measured profiler: what is run is the model's graph, and what is written is what was timed.

On the processor tiny models are timed for real. A GPU's energy, clocks and faults come from a double of the
meter, and NVML's errors from a double of its binding. The last test runs where a GPU is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from muplan.errors import DeviceError, InputError
from muplan.hardware.catalog import load_device
from muplan.hardware.meter import Reading
from muplan.hardware.nvml import NvmlMeter
from muplan.model.catalog import load_model, model_names
from muplan.model.graph import ModelGraph, Phase
from muplan.profile import Method, Profile
from muplan.profiling.analytical import make_profile
from muplan.profiling.clustering import segments_of
from muplan.profiling.measured import draw
from muplan.profiling.measured.measure import measure_profile
from muplan.profiling.measured.points import Kept, Measurement, Point
from muplan.serde import read_document
from tests.tiny_graphs import tiny_decoder, tiny_encoder

torch = pytest.importorskip("torch", reason="the measured profiler runs torch: pip install 'muplan[torch]'")

from muplan.profiling.measured.bench import Bench  # noqa: E402
from muplan.profiling.measured.modules import SegmentModule, pass_shape  # noqa: E402
from muplan.profiling.measured.place import check_device, open_place  # noqa: E402
from muplan.profiling.measured.stopwatch import Stopwatch  # noqa: E402

GRID: dict[str, Any] = {"batches": (1, 2), "tokens": (4, 16)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads of several tests would wait for each other."""
    torch.set_num_threads(1)


class Emulated:
    """A meter of a GPU that draws a steady power, with the faults of real ones."""

    name, max_sm_clock_mhz = "emulated", 1980

    def __init__(
        self, watts: float = 300.0, limits: tuple[str, ...] = (), *, stands_still: bool = False
    ) -> None:
        self.watts, self.limits, self.stands_still = watts, limits, stands_still

    def energy_j(self) -> float:
        """Counts while time passes, unless it stands still."""
        return 0.0 if self.stands_still else self.watts * time.perf_counter()

    def read(self) -> Reading:
        """Whatever a busy GPU tells."""
        return Reading(power_w=self.watts, sm_clock_mhz=1500, temperature_c=60, limits=self.limits)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy over 20 ms instead of 2 s: the double's counter is exact."""
    for module in (draw, sys.modules[Stopwatch.__module__]):
        monkeypatch.setattr(module, "STEADY_LOAD_S", 0.02)


def on_processor(meter: Emulated | None = None) -> Stopwatch:
    return Stopwatch(torch.device("cpu"), meter)


# --- what is run ---------------------------------------------------------------------------------


def runnable() -> list[str]:
    return [name for name in model_names() if name not in ("resnet-50", "t5-large", "whisper-small")]


@pytest.mark.parametrize("name", runnable())
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
    with pytest.raises(InputError, match=r"cannot be run yet.*\n\n.*muplan profile import"):
        measure_profile(
            load_model(name), load_device("cpu"), stopwatch=on_processor(), label="x", batches=(1,)
        )


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [tiny_encoder(), tiny_decoder()], ids=lambda graph: graph.name)
def test_a_profile_holds_what_was_timed(graph: ModelGraph) -> None:
    """The highest clock has the measured latencies; others keep the model's proportions."""
    device = load_device("cpu")
    measured = measure_profile(graph, device, stopwatch=on_processor(), label="a processor", **GRID)
    profile, modelled = measured.profile, make_profile(graph, device, tensor_parallel=(1,), **GRID)
    assert profile.provenance.method is Method.MEASURED
    assert "a processor" in profile.provenance.description
    assert "power modelled" in profile.provenance.description
    for point, made in measured.points.items():
        where = {"tensor_parallel": 1, "batch": point.batch, "tokens": point.tokens}
        latency_s = profile.latency_s(point.phase, **where)[point.cluster_type]
        assert latency_s[-1] == pytest.approx(made.latency_s, rel=1e-6)
        expected = modelled.latency_s(point.phase, **where)[point.cluster_type]
        np.testing.assert_allclose(latency_s / latency_s[-1], expected / expected[-1], rtol=1e-5)
        assert made.low_s <= made.latency_s <= made.high_s


@pytest.mark.usefixtures("quick")
def test_power_comes_from_the_energy_counter() -> None:
    """Three hundred watts drawn are three hundred in the profile; a limit that held is told."""
    meter = Emulated(limits=("power cap",))
    measured = measure_profile(
        tiny_encoder(), load_device("h200-sxm5-141gb"), stopwatch=on_processor(meter), label="x", **GRID
    )
    drawn = [made for made in measured.points.values() if made.power_w is not None]
    assert drawn
    assert [made.power_w for made in drawn] == pytest.approx([300.0] * len(drawn), rel=0.02)
    profile = measured.profile
    counts = np.bincount(profile.cluster_type_index)
    power_w = profile.power_w(Phase.FORWARD, tensor_parallel=1, batch=2, tokens=16)[:, -1]
    assert power_w[counts.argmax()] == pytest.approx(300.0, rel=0.02)
    assert f"power of {len(drawn)} from the energy counter, SM clock 1500" in profile.provenance.description
    assert f"{len(drawn)} of them under a limit" in profile.provenance.description


@pytest.mark.usefixtures("quick")
def test_a_counter_that_stands_still_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"energy counter moved by 0 J.*\n\n.*Volta"):
        measure_profile(
            tiny_encoder(),
            load_device("cpu"),
            stopwatch=on_processor(Emulated(stands_still=True)),
            label="x",
            **GRID,
        )


def test_an_unsteady_point_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steadiest of three tries counts; one lucky or disturbed try alone would be believed otherwise."""
    from muplan.profiling.measured.stopwatch import Timing

    tries = iter([(2.0, 1.0, 3.0), (1.5, 1.2, 1.8), (1.0, 0.99, 1.01), (9.0, 9.0, 9.0)])

    def timed(*_: object) -> Timing:
        median_s, low_s, high_s = next(tries)
        return Timing(median_s=median_s, low_s=low_s, high_s=high_s)

    monkeypatch.setattr(Stopwatch, "time", timed)
    graph = tiny_encoder()
    bench = Bench(graph, [segments_of(graph)[:1]], [1], on_processor())
    point = Point(cluster_type=0, phase=Phase.FORWARD, batch=1, tokens=4)
    made = bench.measure(point, with_power=False)
    assert made.spread == pytest.approx(0.01)


# --- interruptions -------------------------------------------------------------------------------


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was measured is not measured again, and the line that was cut short is."""
    side, seen = tmp_path / "p.points.jsonl", []

    def stop_after(done: int, _: int) -> None:
        seen.append(done)
        if done == 5:
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {"stopwatch": on_processor(), "label": "x", "side_file": side, **GRID}
    with pytest.raises(KeyboardInterrupt):
        measure_profile(tiny_encoder(), load_device("cpu"), report=stop_after, **arguments)
    begun = Kept(side, side.read_text(encoding="utf-8").splitlines()[0]).measured
    assert len(begun) == 5
    side.write_text(side.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    whole = measure_profile(tiny_encoder(), load_device("cpu"), **arguments)
    kept = list(begun)[:4]
    assert [whole.points[point] for point in kept] == [begun[point] for point in kept]
    assert len(side.read_text(encoding="utf-8").splitlines()) == 1 + len(whole.points)
    again = measure_profile(tiny_encoder(), load_device("cpu"), **arguments)
    assert again.profile == whole.profile


def test_the_beginning_of_another_measurement_is_refused(tmp_path: Path) -> None:
    side = tmp_path / "p.points.jsonl"
    Kept(side, "one").add(
        Point(cluster_type=0, phase=Phase.FORWARD, batch=1, tokens=1),
        Measurement(latency_s=1.0, low_s=1.0, high_s=1.0),
    )
    with pytest.raises(InputError, match="beginning of another measurement"):
        Kept(side, "other")


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for the third point: the error says so, and the two before it are still on file."""
    side, opened = tmp_path / "p.points.jsonl", Path.open
    writes = iter(range(100))

    def open_unless_full(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "a" and next(writes) == 2:
            raise OSError(28, "No space left on device")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_unless_full)
    with pytest.raises(InputError, match=r"cannot be written: No space left.*\n\nMake room") as caught:
        measure_profile(
            tiny_encoder(), load_device("cpu"), stopwatch=on_processor(), label="x", side_file=side, **GRID
        )
    assert "what was measured before is kept" in caught.value.remedy
    assert len(side.read_text(encoding="utf-8").splitlines()) == 1 + 2


# --- the command ---------------------------------------------------------------------------------


def muplan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "muplan", *arguments], capture_output=True, text=True)


def test_the_command_writes_a_profile_that_can_be_read(tmp_path: Path) -> None:
    model, path = tmp_path / "tiny.json", tmp_path / "out.json"
    model.write_text(tiny_encoder().model_dump_json(exclude_none=True), encoding="utf-8")
    options = ["--measure", "--on", "cpu", "--device", "cpu", "--batches", "1", "--tokens", "8,16"]
    run = muplan("profile", str(model), *options, "-o", str(path), "--json")
    assert run.returncode == 0, run.stderr
    assert "Written: " in run.stderr
    assert json.loads(run.stdout)["provenance"]["method"] == "measured"
    assert read_document(path, Profile).device == "cpu"
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clocks", "810"], "--clocks does not go with --measure"),
        (["--on", "tpu"], "--on tpu: there is no such place"),
        (["--on", "cuda:x"], "--on cuda:x: there is no such place"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str) -> None:
    run = muplan("profile", "bert-base", "--measure", "--device", "cpu", *options)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr


def test_a_gpu_type_is_not_measured_on_something_else() -> None:
    check_device("cpu", "cpu")
    check_device("cpu", "my-own-accelerator")
    check_device(None, "h200-sxm5-141gb")
    with pytest.raises(InputError, match="is not what is at hand"):
        check_device("cpu", "h200-sxm5-141gb")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"torch sees no GPU.*\n\n.*--on cpu"), open_place("cuda"):
        pass


# --- NVML ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", "Install the NVIDIA driver"),
        ("NVML_ERROR_NO_PERMISSION", "SYS_ADMIN"),
        ("NVML_ERROR_NOT_SUPPORTED", "Volta"),
        ("NVML_ERROR_FUNCTION_NOT_FOUND", "too old"),
        ("NVML_ERROR_GPU_IS_LOST", "fell off the bus"),
        ("NVML_ERROR_UNKNOWN", "nvidia-smi"),
    ],
)
def test_errors_of_nvml_come_with_advice(monkeypatch: pytest.MonkeyPatch, code: str, advice: str) -> None:
    import pynvml

    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(getattr(pynvml, code))

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    with pytest.raises(DeviceError) as caught, NvmlMeter():
        pass
    assert "could not load NVML" in caught.value.problem
    assert advice in caught.value.remedy


def test_nvmls_units_stay_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliwatts and millijoules become watts and joules, reasons words."""
    import pynvml

    reasons = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle
    answers = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetHandleByIndex": SimpleNamespace(),
        "nvmlDeviceGetTotalEnergyConsumption": 2_500_000,
        "nvmlDeviceGetPowerUsage": 287_500,
        "nvmlDeviceGetClockInfo": 1395,
        "nvmlDeviceGetTemperature": 55,
        "nvmlDeviceGetCurrentClocksEventReasons": reasons,
    }
    for name, value in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, value=value: value)
    with NvmlMeter() as meter:
        assert meter.energy_j() == 2500.0
        assert meter.read() == Reading(
            power_w=287.5, sm_clock_mhz=1395, temperature_c=55, limits=("power cap",)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_clusters_add_up_to_the_model_on_a_gpu() -> None:
    """A whole pass takes what its clusters take, within 10 %; power is between idle and the cap."""
    from validation.measured import composed, whole_pass

    graph, device = load_model("bert-large"), load_device("h200-sxm5-141gb")
    with open_place("cuda") as place:
        measured = measure_profile(
            graph, device, stopwatch=place.stopwatch, label=place.label, batches=(1, 8), tokens=(64, 128)
        )
    whole = whole_pass(graph, Phase.FORWARD, 8, 128)
    added = composed(measured.profile, Phase.FORWARD, 8, 128)
    assert added.latency_s == pytest.approx(whole.latency_s, rel=0.1)
    assert 50 < added.power_w < 1000
