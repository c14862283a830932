"""Laws of the device physics, on every shipped device.

If these fail, plans rest on a device that breaks physics: free power, free speed, or a cap ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muplan.errors import InputError
from muplan.hardware.catalog import device_names, load_device
from muplan.hardware.device import Device
from muplan.hardware.quantity import Constant, Curve, Label

DEVICES = [load_device(name) for name in device_names()]
each_device = pytest.mark.parametrize("device", DEVICES, ids=[device.name for device in DEVICES])
activity = st.floats(0, 1)


@st.composite
def operating_points(draw: st.DrawFn) -> tuple[Device, int, float, float]:
    device = draw(st.sampled_from(DEVICES))
    return device, draw(st.sampled_from(device.usable_clocks_mhz)), draw(activity), draw(activity)


# --- clocks --------------------------------------------------------------------------------------


def test_supported_clocks_are_the_drivers() -> None:
    """The ends and counts that nvidia-smi -q -d SUPPORTED_CLOCKS lists."""
    v100 = load_device("v100-pcie-16gb").supported_clocks_mhz
    assert (len(v100), v100[:4], v100[-3:]) == (167, (135, 142, 150, 157), (1365, 1372, 1380))
    a100 = load_device("a100-sxm4-80gb").supported_clocks_mhz
    assert (len(a100), a100[0], a100[-2:]) == (81, 210, (1395, 1410))


@each_device
def test_effective_clock_never_exceeds_the_request_and_never_falls(device: Device) -> None:
    effective = [device.effective_clock_mhz(clock) for clock in device.usable_clocks_mhz]
    assert all(got <= wanted for got, wanted in zip(effective, device.usable_clocks_mhz, strict=True))
    assert effective == sorted(effective)


def test_effective_clock_off_the_list_is_refused() -> None:
    with pytest.raises(InputError, match=r"811 MHz is not a clock of v100-pcie-16gb\."):
        load_device("v100-pcie-16gb").effective_clock_mhz(811)


def test_effective_clock_below_the_measured_range_is_refused() -> None:
    with pytest.raises(InputError, match="135 lies outside the curve, known from 510 to 1380"):
        load_device("v100-pcie-16gb").effective_clock_mhz(135)


def test_nearest_usable_clock() -> None:
    clocks = load_device("a100-sxm4-80gb").clocks
    assert clocks.nearest_usable_mhz(937) == 930
    assert clocks.nearest_usable_mhz(937.5) == 930
    assert clocks.nearest_usable_mhz(938) == 945
    with pytest.raises(InputError, match="1500 MHz lies outside the usable clocks, 510 to 1410 MHz"):
        clocks.nearest_usable_mhz(1500)


# --- power ---------------------------------------------------------------------------------------


@each_device
def test_the_three_idle_levels_ascend(device: Device) -> None:
    loaded = device.loaded_power_w(device.effective_clock_mhz(device.usable_clocks_mhz[0]))
    assert device.parked_w < loaded < device.loaded_w < device.power_cap_w
    assert device.loaded_w < device.busy_power_w(device.max_clock_mhz, 0.1, 0.1)


@given(operating_points(), activity, activity)
def test_power_rises_with_clock_and_activity(
    point: tuple[Device, int, float, float], other_core: float, other_memory: float
) -> None:
    device, clock, core, memory = point
    low, high = sorted((core, other_core))
    less, more = sorted((memory, other_memory))
    effective = device.effective_clock_mhz(clock)
    assert device.busy_power_w(effective, low, less) <= device.busy_power_w(effective, high, more)
    top = device.effective_clock_mhz(device.max_clock_mhz)
    assert device.busy_power_w(effective, core, memory) <= device.busy_power_w(top, core, memory)


@given(operating_points(), st.floats(0.6, 1.2))
def test_capped_clock_holds_the_cap_and_is_the_highest_that_does(
    point: tuple[Device, int, float, float], share: float
) -> None:
    device, clock, core, memory = point
    cap_w = share * device.power_cap_w
    limit_w = min(cap_w, device.power_cap_w)
    if device.busy_power_w(device.power.lowest_clock_mhz, core, memory) > limit_w:
        with pytest.raises(InputError, match="cannot be held"):
            device.capped_clock_mhz(clock, core, memory, cap_w)
        return
    wanted = device.effective_clock_mhz(clock)
    capped = device.capped_clock_mhz(clock, core, memory, cap_w)
    assert capped <= wanted
    assert device.busy_power_w(capped, core, memory) <= limit_w
    if capped < wanted:
        assert device.busy_power_w(capped, core, memory) == pytest.approx(limit_w, rel=1e-6)


def test_capped_clocks_agree_with_one_at_a_time() -> None:
    device = load_device("v100-sxm2-32gb")
    cores = np.array([0.0, 0.5, 1.0])
    together = device.capped_clocks_mhz(1530.0, cores, 0.5)
    assert together.tolist() == [device.capped_clock_mhz(1530, float(core), 0.5) for core in cores]


def test_sgemm_on_sxm2_runs_where_it_was_measured() -> None:
    """SGEMM holds 1,417 to 1,465 MHz under 300 W when 1,530 MHz is allowed (40 W of it memory)."""
    device = load_device("v100-sxm2-32gb")
    memory = 40 / device.power.memory_w.value
    assert 1417 <= device.capped_clock_mhz(1530, device.matmul_core_activity, memory) <= 1465


def test_a_cap_below_the_lowest_clock_is_refused() -> None:
    with pytest.raises(InputError, match=r"A power cap of 60 W cannot be held: at 439\.5 MHz"):
        load_device("v100-sxm2-32gb").capped_clock_mhz(1530, 1.0, 1.0, cap_w=60.0)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_impossible_activities_are_refused(wrong: float) -> None:
    device = load_device("v100-sxm2-32gb")
    with pytest.raises(InputError, match="core activity"):
        device.busy_power_w(1000.0, wrong, 0.5)
    with pytest.raises(InputError, match="memory activity"):
        device.busy_power_w(1000.0, 0.5, wrong)


# --- rates ---------------------------------------------------------------------------------------


@each_device
def test_bandwidth_never_falls_with_the_clock(device: Device) -> None:
    clocks = [device.effective_clock_mhz(clock) for clock in device.usable_clocks_mhz]
    bandwidth = device.memory_bandwidth_bytes_per_s(clocks)
    assert np.all(np.diff(bandwidth) >= 0)
    assert bandwidth[0] < bandwidth[-1] or device.name == "cpu"  # whose memory has a clock of its own


@each_device
def test_arithmetic_is_proportional_to_the_clock(device: Device) -> None:
    rates = device.matmul_flops_per_s([700.0, 1400.0])
    assert rates[1] == pytest.approx(2 * rates[0])
    assert rates[1] > device.vector_flops_per_s(1400.0) > 0


@each_device
def test_memory_fits_the_board(device: Device) -> None:
    assert 0.8 * device.memory_bytes < device.usable_memory_bytes < device.memory_bytes


# --- links ---------------------------------------------------------------------------------------


@each_device
def test_all_reduce_costs_what_a_ring_costs(device: Device) -> None:
    assert device.all_reduce_s(1e6, 1) == 0
    rate, start = device.link.intra_node_bytes_per_s.value, device.link.all_reduce_start_s.value
    assert device.all_reduce_s(1e9, 8) == pytest.approx(start + 1.75e9 / rate)
    assert device.all_reduce_s(1e9, 2) == pytest.approx(start + 1e9 / rate / device.link.two_gpu_factor.value)
    with pytest.raises(InputError, match="over 0 GPUs"):
        device.all_reduce_s(1e6, 0)


@each_device
def test_a_transfer_within_a_node_is_no_slower(device: Device) -> None:
    assert device.transfer_s(1e8, same_node=True) < device.transfer_s(1e8, same_node=False)


# --- curves --------------------------------------------------------------------------------------


def curve(**changes: Any) -> Curve:
    content = {"points": ((1.0, 10.0), (3.0, 30.0)), "label": Label.MEASURED, "source": "a test"}
    return Curve.model_validate(content | changes)


def test_curves_interpolate_and_keep_the_shape() -> None:
    assert curve().at([[1.0, 1.5], [2.0, 3.0]]).tolist() == [[10.0, 15.0], [20.0, 30.0]]
    assert curve().at(2.5).shape == ()


@pytest.mark.parametrize("outside", [0.999, 3.001, float("nan")])
def test_curves_refuse_what_lies_outside(outside: float) -> None:
    with pytest.raises(InputError, match="lies outside the curve, known from 1 to 3"):
        curve().at([2.0, outside])


def test_curves_stay_flat_only_where_stated() -> None:
    above = curve(flat_above=True)
    assert above.at(9.0) == 30.0
    with pytest.raises(InputError):
        above.at(0.0)
    below = curve(flat_below=True)
    assert below.at(0.0) == 10.0
    with pytest.raises(InputError):
        below.at(9.0)


def test_constants_need_a_source() -> None:
    with pytest.raises(ValueError, match="at least 1 character"):
        Constant(value=1.0, label=Label.MEASURED, source="")
