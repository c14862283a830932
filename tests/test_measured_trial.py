"""How points are measured, judged and put together, on an emulated GPU: no torch, no waiting.

If these fail, a profile may hold figures that were not measured as it says, or lose what was.
"""

from __future__ import annotations

import errno
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muplan.errors import (
    DeviceError,
    GpuBusyError,
    GpuLostError,
    InputError,
    NotSupportedError,
    PermissionDeniedError,
)
from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.profile import Method, Phase, PhaseGrid
from muplan.profiling.analytical import make_profile
from muplan.profiling.measured.draw import STEADY_LOAD_S, draw_idle
from muplan.profiling.measured.gpu import check_device, check_free, check_same, measure_levels, nvml_index
from muplan.profiling.measured.measure import Measured, Place, measure_profile
from muplan.profiling.measured.points import Kept, Measurement, Point
from muplan.profiling.measured.rules import Rules
from muplan.profiling.measured.tables import completed, interpolation_errors
from muplan.profiling.measured.timing import timing_of
from muplan.profiling.measured.trial import measure_load
from tests.emulated_bench import EmulatedLoad, emulated_place
from tests.emulated_gpu import EmulatedGpu, Faults
from tests.tiny_graphs import tiny_decoder, tiny_encoder


@pytest.fixture(scope="module")
def h200() -> Device:
    return load_device("h200-sxm5-141gb")


def load_of(gpu: EmulatedGpu, *, sensitivity: float = 0.5, jitter: Any = lambda: 1.0) -> EmulatedLoad:
    return EmulatedLoad(gpu, 1e-3, sensitivity, jitter)


def measured(place: Place, gpu: EmulatedGpu, **options: Any) -> Measured:
    return measure_profile(tiny_encoder(), gpu.device, place=place, **options)


# --- one point -----------------------------------------------------------------------------------


def test_time_and_power_are_those_of_the_physics(h200: Device) -> None:
    """A pass takes what it takes, and draws what the device's power model says, by the counter."""
    gpu = EmulatedGpu(h200)
    load = load_of(gpu, sensitivity=0.3)
    made = measure_load(load, meter=gpu, host=gpu, rules=Rules(), with_power=True)
    clock = h200.effective_clock_mhz(h200.max_clock_mhz)
    assert made.latency_s == pytest.approx(1e-3)
    assert made.power_w == pytest.approx(float(h200.busy_power_w(clock, load.core, load.memory)), rel=0.01)
    assert made.sm_clock_mhz == clock
    assert (made.tries, made.refused, made.power_refused) == (1, (), ())


def test_a_power_cap_is_recorded_not_refused(h200: Device) -> None:
    """It is part of the device: the pass is slower at the clock that the cap leaves, and draws the cap."""
    gpu = EmulatedGpu(h200)
    made = measure_load(load_of(gpu, sensitivity=1.0), meter=gpu, host=gpu, rules=Rules(), with_power=True)
    assert made.limits == ("power cap",)
    assert (made.refused, made.power_refused) == ((), ())
    assert made.power_w == pytest.approx(h200.power_cap_w, rel=0.01)
    assert made.latency_s > 1e-3
    assert made.sm_clock_mhz is not None
    assert made.sm_clock_mhz < h200.max_clock_mhz


def test_heat_is_refused_and_tried_again(h200: Device) -> None:
    """A try under a thermal limit is thrown away; after a rest the point is measured cool."""
    gpu = EmulatedGpu(h200, faults=Faults(hot=((0.0, 1.0),)))
    made = measure_load(load_of(gpu, sensitivity=0.3), meter=gpu, host=gpu, rules=Rules(), with_power=True)
    assert made.tries == 2
    assert made.latency_s == pytest.approx(1e-3)
    assert (made.refused, made.power_refused) == ((), ())


def test_heat_that_stays_is_reported(h200: Device) -> None:
    """After three tries the point says what is wrong with it, and its power is not believed."""
    gpu = EmulatedGpu(h200, faults=Faults(hot=((0.0, 1e9),)))
    made = measure_load(load_of(gpu), meter=gpu, host=gpu, rules=Rules(), with_power=True)
    assert made.tries == 3
    assert made.refused == made.power_refused == ("thermal limit",)
    assert made.power_w is not None
    assert made.believed_power_w is None


def test_an_unsteady_point_is_tried_again_and_the_steadiest_kept(h200: Device) -> None:
    """One disturbed try alone would be believed otherwise."""
    gpu = EmulatedGpu(h200)
    noise = cycle([1.0, 2.0])
    made = measure_load(
        load_of(gpu, jitter=lambda: next(noise)), meter=gpu, host=gpu, rules=Rules(), with_power=False
    )
    assert made.tries == 3
    assert made.refused == (f"interval of ±{made.spread:.0%}, more than ±5%",)
    tries = iter([1.0, 2.0] * 20)  # the first try takes no more than these, then it is steady
    calm = measure_load(
        load_of(gpu, jitter=lambda: next(tries, 1.0)), meter=gpu, host=gpu, rules=Rules(), with_power=False
    )
    assert calm.tries > 1
    assert (calm.refused, calm.spread) == ((), 0.0)


def test_what_takes_little_of_the_time_may_be_timed_less_well(h200: Device) -> None:
    """An interval of ±33 % of a thousandth moves the whole by 0.03 %: nothing is lost by it."""
    gpu = EmulatedGpu(h200)
    noise = cycle([1.0, 2.0])
    made = measure_load(
        load_of(gpu, jitter=lambda: next(noise)),
        meter=gpu,
        host=gpu,
        rules=Rules(),
        share=1e-3,
        with_power=False,
    )
    assert (made.tries, made.refused) == (1, ())


def test_a_clock_that_wanders_without_a_reason_is_refused(h200: Device) -> None:
    """Somebody changes clocks meanwhile: the energy belongs to no clock."""

    class Wandering(EmulatedGpu):
        """Tells another clock at every look."""

        def read(self) -> Any:
            from dataclasses import replace

            told = super().read()
            return replace(told, sm_clock_mhz=1200 if int(self.now_s() * 4) % 2 else 1980, limits=())

    gpu = Wandering(h200)
    made = measure_load(load_of(gpu), meter=gpu, host=gpu, rules=Rules(), with_power=True)
    assert made.power_refused == ("clock between 1200 and 1980 MHz, with no limit told",)


def test_energy_over_too_short_a_time_is_refused(h200: Device) -> None:
    """The counter's steps would be a large part of it."""
    gpu = EmulatedGpu(h200)
    gpu.has_context = True
    drawn = draw_idle(gpu, gpu, seconds=0.5)
    assert Rules().broken_by_draw(drawn) == ("energy over 0.50 s, less than 2 s",)
    assert Rules().broken_by_draw(draw_idle(gpu, gpu, seconds=STEADY_LOAD_S)) == ()


def test_a_counter_that_stands_still_ends_the_measurement(h200: Device) -> None:
    """It is the device's fault, not a point's: every other point would be as wrong."""
    gpu = EmulatedGpu(h200, faults=Faults(is_counter_frozen=True))
    with pytest.raises(DeviceError, match=r"energy counter moved by 0 J.*\n\n.*Volta"):
        measure_load(load_of(gpu), meter=gpu, host=gpu, rules=Rules(), with_power=True)


@pytest.mark.parametrize("count", [6, 7, 8, 9, 11, 25])
def test_the_interval_holds_the_median(count: int) -> None:
    """In 95 % of samples or more, whatever the distribution: here a skewed one."""
    rng = np.random.default_rng(count)
    held = 0
    for _ in range(2000):
        timing = timing_of(rng.exponential(size=count).tolist())
        held += timing.low_s <= np.log(2.0) <= timing.high_s
    assert held / 2000 > 0.95 - 3 * (0.95 * 0.05 / 2000) ** 0.5


# --- tables --------------------------------------------------------------------------------------

GRID = PhaseGrid(phase=Phase.FORWARD, batches=(1, 2, 4, 8), tokens=(16, 64, 256))
POWERS = np.outer(np.array(GRID.batches) ** 0.7, np.array(GRID.tokens) ** 0.3)


def test_gaps_in_a_power_law_are_filled_exactly() -> None:
    holed = POWERS.copy()
    holed[1, 1] = holed[2, 1] = np.nan
    np.testing.assert_allclose(completed(holed, GRID), POWERS)


def test_gaps_at_the_edge_get_what_is_next_to_them() -> None:
    """Of ratios, whose neighbours are alike: nothing is extrapolated."""
    ratios = np.full(POWERS.shape, 1.5)
    ratios[0] = np.nan
    ratios[:, 0] = np.nan
    np.testing.assert_allclose(completed(ratios, GRID), 1.5)


def test_interpolation_is_judged_by_points_left_out() -> None:
    """A power law is interpolated without error; a bump is what its neighbours do not say."""
    np.testing.assert_allclose(interpolation_errors(POWERS, GRID.batches, GRID.tokens), 0.0, atol=1e-12)
    bumped = POWERS.copy()
    bumped[1, 1] *= 2.0
    errors = interpolation_errors(bumped, GRID.batches, GRID.tokens)
    assert len(errors) == 4 * 1 + 3 * 2
    assert np.isclose(errors, 0.5).sum() == 2


# --- a profile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [tiny_encoder(), tiny_decoder()], ids=lambda graph: graph.name)
def test_a_profile_holds_what_was_measured(graph: Any, h200: Device) -> None:
    """The running clock has the measured values; all others keep the proportions of the physics."""
    place, _, bench = emulated_place(h200, sensitivity=0.3)
    made = measure_profile(graph, h200, place=place)
    profile = made.profile
    modelled = make_profile(graph, h200, batches=place.batches, tokens=place.tokens, tensor_parallel=(1,))
    assert profile.provenance.method is Method.MEASURED
    assert set(bench.begun) == set(made.points)
    for point in made.points:
        where = {"tensor_parallel": 1, "batch": point.batch, "tokens": point.tokens}
        latency_s = profile.latency_s(point.phase, **where)[point.cluster_type]
        assert latency_s[-1] == pytest.approx(bench.base_s(point), rel=1e-6)
        expected = modelled.latency_s(point.phase, **where)[point.cluster_type]
        np.testing.assert_allclose(latency_s / latency_s[-1], expected / expected[-1], rtol=1e-5)
    told = profile.provenance.measurement
    assert told is not None
    assert (told.num_points, told.refused, told.running_clock_mhz) == (len(made.points), (), 1980)
    assert told.counter_over_readings == pytest.approx(1.0, abs=0.01)
    assert told.num_energy_points == sum(one.power_w is not None for one in made.points.values()) > 0


def test_a_clock_that_somebody_set_is_noticed(h200: Device) -> None:
    """What was measured at 1,215 MHz must not be sold as what 1,980 give."""
    place, gpu, _ = emulated_place(h200, sensitivity=0.9)
    gpu.lock_clock(1215)
    gpu.sleep(1.0)
    made = measured(place, gpu)
    told = made.profile.provenance.measurement
    assert told is not None
    assert told.running_clock_mhz == 1215
    assert "1215 MHz" in made.profile.provenance.description
    index = made.profile.clocks_mhz.index(1215)
    for point, one in made.points.items():
        where = {"tensor_parallel": 1, "batch": point.batch, "tokens": point.tokens}
        latency_s = made.profile.latency_s(point.phase, **where)[point.cluster_type]
        assert latency_s[index] == pytest.approx(one.latency_s, rel=1e-6)
        assert latency_s[-1] <= latency_s[index]


def test_a_power_cap_is_not_taken_for_a_clock_that_somebody_set(h200: Device) -> None:
    place, gpu, _ = emulated_place(h200, sensitivity=1.0)
    told = measured(place, gpu).profile.provenance.measurement
    assert told is not None
    assert (told.running_clock_mhz, told.limits) == (1980, ("power cap",))
    assert told.num_limited == told.num_energy_points
    assert told.slowest_effective_mhz is not None
    assert told.slowest_effective_mhz < 1980


def test_a_refused_point_is_filled_in_and_reported(h200: Device) -> None:
    """One point of a grid never gets steady: the profile says which, and holds what its neighbours say."""
    place, gpu, bench = emulated_place(h200)
    odd = Point(cluster_type=1, phase=Phase.FORWARD, batch=2, tokens=16)
    noise = cycle([1.0, 9.0])
    bench._jitter = lambda: next(noise) if bench.begun[-1] == odd else 1.0
    profile = measured(place, gpu).profile
    told = profile.provenance.measurement
    assert told is not None
    assert len(told.refused) == 1
    name = profile.cluster_types[1].name
    assert told.refused[0].startswith(f"{name}, forward, 2 × 16: interval of ±")
    assert "1 refused and filled in" in profile.provenance.description
    latency_s = profile.latency_s(Phase.FORWARD, tensor_parallel=1, batch=2, tokens=16)[1, -1]
    assert latency_s == pytest.approx(bench.base_s(odd), rel=0.25)  # by the model's shape, not the bench's


def test_too_many_refused_points_are_no_profile(h200: Device) -> None:
    place, gpu, _ = emulated_place(h200, Faults(hot=((0.0, 1e9),)))
    with pytest.raises(DeviceError, match=r"9 of 9 points were refused \(thermal limit\).*\n\n.*let it cool"):
        measured(place, gpu)


def test_a_measured_profile_is_planned_and_executed(h200: Device, tmp_path: Path) -> None:
    """It serves a workload as a shipped one does, though its model is in no catalogue."""
    import subprocess
    import sys

    from muplan.serde import write_document

    place, gpu, _ = emulated_place(h200)
    write_document(measured(place, gpu).profile, tmp_path / "profiles" / h200.name / "tiny-encoder.json")
    (tmp_path / "tiny.yaml").write_text(WORKLOAD, encoding="utf-8")
    for command in (["solve", "tiny.yaml", "-o", "plan.json"], ["execute", "plan.json"]):
        run = subprocess.run(
            [sys.executable, "-m", "muplan", *command], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr


WORKLOAD = """\
kind: workload
schema_version: 1
name: tiny
description: One small model on two GPUs, from a measured profile.
fleet:
  pools:
    - {name: pool, device: h200-sxm5-141gb, num_gpus: 2}
services:
  - name: tiny
    model: tiny-encoder
    slo: {scale: 5, attainment: 0.99}
    demand: {rate_rps: 20}
    tokens: 64
objective: power
simulation: {duration_s: 60, warm_up_s: 5, replications: 3}
"""


# --- interruptions and faults --------------------------------------------------------------------


def test_a_lost_gpu_loses_no_point(h200: Device, tmp_path: Path) -> None:
    """It is lost midway: the error says so, and a sane one goes on to the profile of an unbroken run."""
    side = tmp_path / "p.points.jsonl"
    place, gpu, bench = emulated_place(h200, Faults(lost_after_s=30.0))
    with pytest.raises(GpuLostError):
        measured(place, gpu, side_file=side)
    num_before = len(side.read_text(encoding="utf-8").splitlines()) - 1
    assert 0 < num_before < len(bench.begun) + 1
    again, sane, sane_bench = emulated_place(h200)
    resumed = measured(again, sane, side_file=side)
    assert len(sane_bench.begun) == len(resumed.points) - num_before
    place, gpu, _ = emulated_place(h200)
    unbroken = measured(place, gpu)
    assert resumed.profile.clusters == unbroken.profile.clusters
    for one, other in zip(resumed.profile.cluster_types, unbroken.profile.cluster_types, strict=True):
        for left, right in zip(one.tables, other.tables, strict=True):
            np.testing.assert_allclose(left.latency_s, right.latency_s, rtol=1e-6)
            np.testing.assert_allclose(left.power_w, right.power_w, rtol=0.02)  # steps of the counter


def test_a_refusal_of_the_driver_ends_the_measurement(h200: Device) -> None:
    place, gpu, _ = emulated_place(h200, Faults(denied=frozenset({"read"})))
    with pytest.raises(PermissionDeniedError, match=r"\n\nRun as root; in a container, add .* SYS_ADMIN"):
        measured(place, gpu)


def test_an_interrupted_measurement_goes_on_where_it_was(h200: Device, tmp_path: Path) -> None:
    """What was measured is not measured again, and the line that was cut short is."""
    side = tmp_path / "p.points.jsonl"

    def stop_after(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    place, gpu, _ = emulated_place(h200)
    with pytest.raises(KeyboardInterrupt):
        measured(place, gpu, side_file=side, report=stop_after)
    begun = Kept(side, side.read_text(encoding="utf-8").splitlines()[0]).measured
    assert len(begun) == 5
    side.write_text(side.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    whole = measured(place, gpu, side_file=side)
    for point in list(begun)[:4]:
        assert whole.points[point] == begun[point]
    assert len(side.read_text(encoding="utf-8").splitlines()) == 1 + len(whole.points)
    again = measured(place, gpu, side_file=side)
    assert again.profile == whole.profile


def test_the_beginning_of_another_measurement_is_refused(tmp_path: Path) -> None:
    side = tmp_path / "p.points.jsonl"
    Kept(side, "one").add(
        Point(cluster_type=0, phase=Phase.FORWARD, batch=1, tokens=1),
        Measurement(latency_s=1.0, low_s=1.0, high_s=1.0),
    )
    with pytest.raises(InputError, match="beginning of another measurement"):
        Kept(side, "other")


def test_a_full_disk_keeps_what_was_measured(
    h200: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for the third point: the error says so, and the two before it are still on file."""
    side, opened = tmp_path / "p.points.jsonl", Path.open
    writes = iter(range(100))

    def open_unless_full(path: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "a" and next(writes) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_unless_full)
    place, gpu, _ = emulated_place(h200)
    with pytest.raises(InputError, match=r"cannot be written: No space left.*\n\nMake room") as caught:
        measured(place, gpu, side_file=side)
    assert "what was measured before is kept" in caught.value.remedy
    assert len(side.read_text(encoding="utf-8").splitlines()) == 1 + 2


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from muplan.cli.main import main
sys.argv[1:] = ["profile", "bert-base", "--device", "v100-sxm2-32gb", "-o", "bert.json"]
main()
"""


def test_a_full_disk_leaves_the_old_profile_whole(tmp_path: Path) -> None:
    """The write breaks off midway: the file of before is untouched, and nothing of the new one is left."""
    import subprocess
    import sys

    old = tmp_path / "bert.json"
    old.write_text("as before\n", encoding="utf-8")
    run = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: bert.json cannot be written: File too large.\n\nMake room there")
    assert old.read_text(encoding="utf-8") == "as before\n"
    assert list(tmp_path.iterdir()) == [old]


# --- before anything is measured -----------------------------------------------------------------


def test_levels_are_parked_and_loaded(h200: Device) -> None:
    """Power without a context and with one; the first is not there to measure where others have theirs."""
    gpu = EmulatedGpu(h200)
    levels = measure_levels(gpu, gpu, lambda: setattr(gpu, "has_context", True))
    assert levels.parked_w == pytest.approx(h200.parked_w, rel=1e-3)
    assert levels.loaded_w == pytest.approx(h200.loaded_w, rel=1e-3)
    used = EmulatedGpu(h200, faults=Faults(others=1))
    assert measure_levels(used, used, lambda: setattr(used, "has_context", True)).parked_w is None


def test_a_gpu_that_others_use_is_refused_unless_wanted(h200: Device) -> None:
    used = EmulatedGpu(h200, faults=Faults(others=2))
    with pytest.raises(GpuBusyError, match=r"in use by 2 other processes.*\n\n.*--shared"):
        check_free(used)
    check_free(used, is_shared=True)
    check_free(used, num_ours=2)


def test_a_partitioned_gpu_is_refused(h200: Device) -> None:
    gpu = EmulatedGpu(h200, faults=Faults(is_partitioned=True))
    with pytest.raises(NotSupportedError, match=r"MIG.*\n\nMeasure on a whole GPU"):
        check_free(gpu, is_shared=True)


def test_a_gpu_without_an_energy_counter_is_refused_at_once(h200: Device) -> None:
    gpu = EmulatedGpu(h200, faults=Faults(unsupported=frozenset({"energy_j"})))
    with pytest.raises(NotSupportedError, match="needs Volta or newer"):
        check_free(gpu)


def test_cuda_may_number_gpus_otherwise_than_nvml() -> None:
    """CUDA_VISIBLE_DEVICES renumbers them; reading the power of another GPU would go unnoticed."""
    assert nvml_index(1, None) == 1
    assert nvml_index(0, "3,1") == 3
    assert nvml_index(1, "3, GPU-8a56") == "GPU-8a56"
    with pytest.raises(DeviceError, match=r"there is no GPU 2 in it"):
        nvml_index(2, "3,1")
    check_same("NVIDIA H200", "NVIDIA H200")
    with pytest.raises(DeviceError, match=r"CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        check_same("NVIDIA H200", "NVIDIA L4")


def test_a_gpu_type_is_not_measured_on_something_else() -> None:
    check_device("cpu", "cpu")
    check_device("cpu", "my-own-accelerator")
    check_device(None, "h200-sxm5-141gb")
    with pytest.raises(InputError, match="is not what is at hand"):
        check_device("cpu", "h200-sxm5-141gb")
