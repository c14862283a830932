"""The emulated GPU obeys its device's physics, and is as hard to read as a real one.

If these fail, tests that measure on it prove nothing of measuring on a GPU.
"""

from __future__ import annotations

import pytest

from muplan.errors import GpuLostError, InputError, NotSupportedError, PermissionDeniedError
from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from tests.emulated_gpu import EmulatedGpu, Faults

CAPPED = {"core": 1.0, "memory": 0.5}
"""More than an H200 may draw at its highest clock."""


@pytest.fixture(scope="module")
def h200() -> Device:
    return load_device("h200-sxm5-141gb")


def test_energy_is_power_times_time_at_every_level(h200: Device) -> None:
    """Parked, loaded, busy: the counter moves by the device's own power, within its steps."""
    gpu = EmulatedGpu(h200)
    levels_w = []
    gpu.sleep(10.0)
    levels_w.append(gpu.energy_j() / 10.0)
    before_j = gpu.energy_j()
    gpu.spend(10.0, core=0.2, memory=0.4)
    levels_w.append((gpu.energy_j() - before_j) / 10.0)
    before_j = gpu.energy_j()
    gpu.sleep(10.0)
    levels_w.append((gpu.energy_j() - before_j) / 10.0)
    highest = h200.effective_clock_mhz(h200.max_clock_mhz)
    busy_w = float(h200.busy_power_w(highest, 0.2, 0.4))
    assert levels_w == pytest.approx([h200.parked_w, busy_w, h200.loaded_w], rel=1e-3)


def test_the_counter_moves_in_steps(h200: Device) -> None:
    """Between refreshes it stands: a reading over too short a time is worth nothing."""
    gpu = EmulatedGpu(h200, counter_step_s=0.1)
    gpu.spend(0.55, core=0.5, memory=0.5)
    before_j = gpu.energy_j()
    gpu.spend(0.04, core=0.5, memory=0.5)
    assert gpu.energy_j() == before_j
    gpu.spend(0.02, core=0.5, memory=0.5)
    assert gpu.energy_j() > before_j


def test_power_is_an_average_over_the_window(h200: Device) -> None:
    """Half a second of work after rest reads as the mean of both; after a window it reads as the work."""
    gpu = EmulatedGpu(h200, window_s=1.0)
    gpu.sleep(5.0)
    gpu.spend(0.5, core=0.2, memory=0.4)
    work_w = float(h200.busy_power_w(h200.effective_clock_mhz(h200.max_clock_mhz), 0.2, 0.4))
    assert gpu.read().power_w == pytest.approx((h200.parked_w + work_w) / 2, rel=1e-6)
    gpu.spend(1.0, core=0.2, memory=0.4)
    assert gpu.read().power_w == pytest.approx(work_w, rel=1e-6)


def test_the_power_cap_lowers_the_clock(h200: Device) -> None:
    """The clock falls until power is the cap, and the reading says why."""
    gpu = EmulatedGpu(h200)
    gpu.spend(5.0, **CAPPED)
    reading = gpu.read()
    assert reading.power_w == pytest.approx(h200.power_cap_w, rel=1e-3)
    assert reading.sm_clock_mhz < h200.max_clock_mhz
    assert reading.limits == ("power cap",)


def test_a_requested_clock_is_not_the_effective_one() -> None:
    """On a V100 low clocks give less than what is asked for; and a change takes time."""
    v100 = load_device("v100-pcie-16gb")
    gpu = EmulatedGpu(v100)
    requested = v100.usable_clocks_mhz[0]
    gpu.spend(1.0, core=0.1, memory=0.1)
    gpu.lock_clock(requested)
    gpu.spend(v100.clock_change_s / 2, core=0.1, memory=0.1)
    assert gpu.read().sm_clock_mhz == round(v100.effective_clock_mhz(v100.max_clock_mhz))
    gpu.spend(v100.clock_change_s, core=0.1, memory=0.1)
    assert gpu.read().sm_clock_mhz == round(v100.effective_clock_mhz(requested))
    assert gpu.read().limits == ("application clocks",)


def test_a_clock_that_is_not_listed_is_refused(h200: Device) -> None:
    with pytest.raises(InputError, match=r"1001 MHz is no clock of h200"):
        EmulatedGpu(h200).lock_clock(1001)


def test_heat_holds_the_clock_down_while_it_lasts(h200: Device) -> None:
    gpu = EmulatedGpu(h200, faults=Faults(hot=((1.0, 2.0),)))
    gpu.spend(1.5, core=0.2, memory=0.2)
    assert gpu.read().limits == ("thermal",)
    gpu.spend(1.0, core=0.2, memory=0.2)
    assert gpu.read().limits == ()


def test_it_grows_warm_under_load_and_cools(h200: Device) -> None:
    gpu = EmulatedGpu(h200)
    cold_c = gpu.read().temperature_c
    gpu.spend(60.0, **CAPPED)
    warm_c = gpu.read().temperature_c
    gpu.sleep(60.0)
    assert cold_c < gpu.read().temperature_c < warm_c


def test_faults_are_those_of_nvml(h200: Device) -> None:
    """Missing rights, a reading that is not there, a lost GPU: the errors that NVML's meter raises."""
    gpu = EmulatedGpu(
        h200, index=3, faults=Faults(denied=frozenset({"read"}), unsupported=frozenset({"energy_j"}))
    )
    with pytest.raises(PermissionDeniedError, match=r"GPU 3: NVML could not read.*\n\nRun as root"):
        gpu.read()
    with pytest.raises(NotSupportedError, match=r"energy needs Volta or newer"):
        gpu.energy_j()
    lost = EmulatedGpu(h200, faults=Faults(lost_after_s=1.0))
    lost.energy_j()
    lost.sleep(1.0)
    with pytest.raises(GpuLostError, match=r"GPU is lost.*\n\n.*reset"):
        lost.energy_j()
