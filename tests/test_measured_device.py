"""A device measured on an emulated GPU is that GPU: rates, clocks and power come back.

If these fail, profiles and plans for a GPU type of one's own stand on constants that nobody measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from muplan.errors import DeviceError
from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.hardware.quantity import Label
from muplan.profiling.analytical import make_profile
from muplan.profiling.measured.device_fit import fit_device
from muplan.profiling.measured.device_probe import Probe, Probed, probe_device
from muplan.profiling.measured.gpu import measure_levels
from muplan.serde import write_document
from tests.emulated_gpu import EmulatedGpu
from tests.tiny_graphs import tiny_encoder


@dataclass
class EmulatedWork:
    """A load of given activities on an emulated GPU, at a rate that its device says for a clock."""

    gpu: EmulatedGpu
    kind: str
    work: float
    num_passes = 1

    @property
    def activities(self) -> dict[str, float]:
        device = self.gpu.device
        return {
            "compute": {"core": device.matmul_core_activity, "memory": 0.0},
            "memory": {"core": device.memory_core_activity, "memory": 1.0},
            "launches": {"core": 0.0, "memory": 0.0},
        }[self.kind]

    def run_s(self) -> float:
        device = self.gpu.device
        clock = self.gpu.effective_mhz(**self.activities)
        if self.kind == "launches":
            return self.work * device.launch_s
        if self.kind == "memory":
            return self.work / float(device.memory_bandwidth_bytes_per_s(clock))
        peak = device.compute.matmul_flops_per_cycle.value * 1e6 * clock
        return self.work / (0.9 * peak)

    def time_s(self, count: int) -> float:
        run_s = self.run_s()
        self.start(count)
        return run_s

    def start(self, count: int) -> None:
        self.gpu.spend(count * self.run_s(), **self.activities)

    def wait(self) -> None:
        """Nothing is left to wait for."""


class EmulatedProbes:
    """The three probes."""

    def __init__(self, gpu: EmulatedGpu) -> None:
        self.compute, self.memory, self.launches = (
            Probe(load=EmulatedWork(gpu, kind, work), work=work)
            for kind, work in (("compute", 1e12), ("memory", 1e9), ("launches", 1000.0))
        )


def measured(truth: Device, like: Device, *, sets_clocks: bool) -> tuple[Device, Probed]:
    gpu = EmulatedGpu(truth)
    levels = measure_levels(gpu, gpu, lambda: setattr(gpu, "has_context", True))
    probed = probe_device(EmulatedProbes(gpu), meter=gpu, host=gpu, actuator=gpu if sets_clocks else None)
    return fit_device("mine", like, probed, meter=gpu, levels=levels), probed


def drawn_w(device: Device, clock_mhz: float, products: float, copies: float) -> float:
    """Power while products and copies take these shares of the time, by the device's own activities."""
    core = products * device.matmul_core_activity + copies * device.memory_core_activity
    return float(device.busy_power_w(clock_mhz, core, copies))


@pytest.mark.parametrize("name", ["h200-sxm5-141gb", "a100-sxm4-80gb", "v100-sxm2-32gb"])
def test_a_gpu_comes_back(name: str) -> None:
    """Of another GPU's file and the probes: rates within 5 %, power within 6 %, at every usable clock."""
    truth, like = load_device(name), load_device("h100-sxm5-80gb")
    made, _ = measured(truth, like, sets_clocks=True)
    assert (made.supported_clocks_mhz[0], made.supported_clocks_mhz[-1]) == (
        truth.supported_clocks_mhz[0],
        truth.supported_clocks_mhz[-1],
    )
    assert made.memory_bytes == pytest.approx(truth.memory_bytes, rel=1e-5)
    assert made.launch_s == pytest.approx(truth.launch_s, rel=1e-3)
    assert made.clock_change_s == pytest.approx(truth.clock_change_s, abs=0.02)
    assert made.power_cap_w == truth.power_cap_w
    peak = truth.compute.matmul_flops_per_cycle.value
    assert made.compute.matmul_flops_per_cycle.value == pytest.approx(peak, rel=0.02)
    lowest = max(made.usable_clocks_mhz[0], truth.usable_clocks_mhz[0])
    assert lowest < 0.6 * truth.max_clock_mhz
    for clock in [one for one in truth.usable_clocks_mhz if one >= lowest][::10]:
        at = truth.effective_clock_mhz(clock)
        assert made.clocks.effective_mhz.at(clock) == pytest.approx(at, rel=0.02)
        bandwidth = truth.memory_bandwidth_bytes_per_s(at)
        assert made.memory_bandwidth_bytes_per_s(at) == pytest.approx(bandwidth, rel=0.05)
        for products, copies in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.0, 0.0)):
            power_w = drawn_w(truth, at, products, copies)
            if power_w <= truth.power_cap_w:
                assert drawn_w(made, at, products, copies) == pytest.approx(power_w, rel=0.06)


def test_without_clocks_the_like_devices_curves_are_scaled() -> None:
    """At the running clock the probes are met; what was not measured says that it is assumed."""
    truth, like = load_device("h200-sxm5-141gb"), load_device("h100-sxm5-80gb")
    made, probed = measured(truth, like, sets_clocks=False)
    at = float(truth.effective_clock_mhz(truth.max_clock_mhz))
    assert probed.change_s is None
    assert made.memory_bandwidth_bytes_per_s(at) == pytest.approx(
        truth.memory_bandwidth_bytes_per_s(at), rel=0.01
    )
    assert drawn_w(made, at, 0.0, 1.0) == pytest.approx(drawn_w(truth, at, 0.0, 1.0), rel=0.03)
    assert made.clocks.change_s.label is Label.ASSUMED
    assert made.clocks.change_s.source.startswith("as h100-sxm5-80gb: ")
    assert made.power.cap_w.label is Label.MEASURED
    shape = np.array([rate for _, rate in made.memory.bandwidth_bytes_per_s.points])
    model = np.array([rate for _, rate in like.memory.bandwidth_bytes_per_s.points])
    np.testing.assert_allclose(shape / shape[-1], model / model[-1], rtol=1e-5)


def test_a_like_device_may_have_other_clocks() -> None:
    """Curves of one that clocks lower go on flat, where no clock was set."""
    made, _ = measured(load_device("h200-sxm5-141gb"), load_device("a100-sxm4-80gb"), sets_clocks=False)
    assert made.max_clock_mhz == 1980
    assert made.busy_power_w(1980.0, 1.0, 0.0) > made.busy_power_w(1000.0, 1.0, 0.0)


def test_probes_that_contradict_each_other_are_refused() -> None:
    """Somebody else's load at rest: the levels are above what products draw."""
    truth = load_device("h200-sxm5-141gb")
    gpu = EmulatedGpu(truth)
    probed = probe_device(EmulatedProbes(gpu), meter=gpu, host=gpu, actuator=None)
    from muplan.profiling.measured.summary import Levels

    stuck = Probed(
        at_clocks=tuple(replace(probed.at_clocks[0], requested_mhz=clock) for clock in (2100, 2200)),
        launch_s=1e-6,
        change_s=0.1,
    )
    with pytest.raises(DeviceError, match="fewer than two of the clocks that were set"):
        fit_device("mine", truth, stuck, meter=gpu, levels=Levels(parked_w=80.0, loaded_w=120.0))
    with pytest.raises(DeviceError, match=r"products draw no more than a GPU at rest.*\n\nLet nothing else"):
        fit_device("mine", truth, probed, meter=gpu, levels=Levels(parked_w=800.0, loaded_w=820.0))


# --- the command ---------------------------------------------------------------------------------


def test_probes_in_torch_do_the_work_that_they_state() -> None:
    """On the processor, small: the counter's FLOPs, bytes read and written, kernels launched."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from muplan.profiling.measured.torch_probes import TorchProbes

    probes = TorchProbes(torch.device("cpu"), size=64, copied_bytes=1 << 20, num_launches=10)
    with FlopCounterMode(display=False) as counter:
        probes.compute.load.start(1)
    assert counter.get_total_flops() == probes.compute.work == 2 * 64**3
    assert probes.memory.work == 2 << 20
    assert all(probe.load.time_s(2) > 0 for probe in (probes.compute, probes.memory, probes.launches))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["h200-sxm5-141gb", "--like", "h100-sxm5-80gb"], 2, "cannot be called 'h200-sxm5-141gb'"),
        (["Mine", "--like", "h100-sxm5-80gb"], 2, "cannot be called 'Mine'"),
        (["mine", "--like", "h300"], 2, "There is no device 'h300'"),
        (["mine", "--like", "h100-sxm5-80gb", "--on", "cpu"], 2, "--on cpu: there is no such GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], code: int, message: str) -> None:
    from muplan.cli.device_measure import measure_command
    from muplan.errors import InputError

    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    with pytest.raises(InputError, match=message) as caught:
        measure_command(arguments[0], options["--like"], on=options.get("--on", "cuda"))
    assert caught.value.exit_code == code


def test_a_measured_device_is_profiled_and_planned_for(tmp_path: Path) -> None:
    """Its file is read by name of the file, as one that a user wrote."""
    made, _ = measured(load_device("h200-sxm5-141gb"), load_device("h100-sxm5-80gb"), sets_clocks=True)
    write_document(made, tmp_path / "mine.json")
    again = load_device(tmp_path / "mine.json")
    assert again == made
    profile = make_profile(tiny_encoder(), again, batches=(1, 2), tokens=(16, 64))
    assert profile.device == "mine"
    assert profile.max_clock_mhz == 1980
