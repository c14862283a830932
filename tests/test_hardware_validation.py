"""The shipped device models against the measurements.

If these fail, a device constant has moved away from what was measured, and every figure of
docs/validation.md about clocks, rates and power with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muplan.hardware.catalog import load_device
from muplan.model.graph import Phase
from validation import hardware
from validation.hardware_calibration import a100_shape, v100_shape
from validation.hardware_layers import fit_memory_power, layer_comparisons, request_comparisons
from validation.latency_data import held_out, mean_error, worst_error


def mean(comparisons: tuple[hardware.Comparison, ...]) -> float:
    return float(np.mean([one.mean for one in comparisons]))


def test_v100_rates(shared_data: Path) -> None:
    assert hardware.v100_dgemm_rate(shared_data).mean <= 0.03
    assert hardware.stream_bandwidth(shared_data, "v100-pcie-16gb").mean <= 0.03


def test_v100_power_of_applications_and_stress_kernels(shared_data: Path) -> None:
    comparisons = hardware.v100_power(shared_data)
    applications, stress = comparisons[:-2], comparisons[-2:]
    assert len(applications) == 17
    assert mean(applications) <= 0.03
    assert [one.name for one in stress] == ["DGEMM", "FIRESTARTER"]
    assert all(one.mean <= 0.03 for one in stress)
    everything = hardware.v100_power(shared_data, with_shape_applications=True)
    assert len(everything) == 23
    assert mean(everything) <= 0.03


def test_a100_rates_and_power(shared_data: Path) -> None:
    assert hardware.a100_dgemm_rate(shared_data).mean <= 0.01
    assert hardware.stream_bandwidth(shared_data, "a100-sxm4-80gb-500w").mean <= 0.01
    assert mean(hardware.a100_power(shared_data)) <= 0.03


def test_a100_clock_under_its_400_w_cap(shared_data: Path) -> None:
    power, clock = hardware.a100_feed_forward_comparison(shared_data)
    assert power.worst <= 0.03
    assert clock.worst <= 0.03


@pytest.mark.parametrize("device_name", ["v100-pcie-16gb", "a100-sxm4-80gb-500w"])
def test_shipped_curves_are_the_fitted_ones(shared_data: Path, device_name: str) -> None:
    """The device file holds what `validation.hardware_calibration` derives, rounded."""
    power = load_device(device_name).power
    fitted = v100_shape(shared_data) if device_name.startswith("v100") else a100_shape(shared_data)
    assert power.base_w.value == pytest.approx(fitted.base_w, abs=0.1)
    assert power.voltage_ratio.points[1][0] == pytest.approx(fitted.voltage_knee_mhz, abs=1)
    assert power.voltage_ratio.points[2][1] == pytest.approx(fitted.voltage_ratio, abs=0.001)
    assert power.memory_share.points[0][1] == pytest.approx(fitted.memory_share, abs=0.001)
    assert power.memory_share.points[1][0] == pytest.approx(fitted.memory_knee_mhz, abs=1)


def test_a100_power_of_layers(shared_data: Path) -> None:
    """Power of decode and prefill layers over clocks, on rows that gave no memory constant."""
    device = load_device("a100-sxm4-80gb")
    for phase, number in ((Phase.DECODE, 50), (Phase.PREFILL, 40)):
        rows = held_out(layer_comparisons(shared_data, device, phase))
        assert len(rows) == number * 3 * 2
        for part, mean_limit in (("attention", 0.08), ("feed_forward", 0.08), ("layer", 0.06)):
            powers = [row for row in rows if row.quantity == "power" and row.key[1] == part]
            assert mean_error(powers) <= mean_limit, (phase, part)
            assert worst_error(powers) <= 0.25, (phase, part)


def test_a100_power_of_whole_requests(shared_data: Path) -> None:
    """Another laboratory's card, engine, model and tensor parallelism; nothing was calibrated on it."""
    rows = request_comparisons(shared_data, load_device("a100-sxm4-80gb"))
    assert len(rows) == 24
    assert mean_error(rows) <= 0.10


def test_a100_memory_power_is_the_fitted_one(shared_data: Path) -> None:
    """The device file holds what `fit_memory_power` derives from two decode rows, to 1 %."""
    device = load_device("a100-sxm4-80gb")
    memory_w, activity = fit_memory_power(shared_data, device)
    assert device.power.memory_w.value == pytest.approx(memory_w, rel=0.01)
    assert device.memory_core_activity == pytest.approx(activity, rel=0.01)
