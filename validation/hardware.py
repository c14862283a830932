"""Errors of the shipped V100 and A100 models against measured rates and power.

``python -m validation.hardware`` prints the tables of docs/validation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.hardware.quantity import Constant, Floats, Label
from validation.hardware_data import (
    SHARED_DATA,
    Series,
    a100_dgemm_flops_per_s,
    a100_feed_forward,
    a100_power_w,
    a100_stream_bytes_per_s,
    v100_application_power_w,
    v100_dgemm_flops_per_s,
    v100_inference_power_w,
    v100_stream_bytes_per_s,
    v100_stress_power_w,
)

V100_SHAPE_APPLICATIONS = ("cutcp", "histo", "hotspot", "spmv")
"""Applications whose rows, all of them, gave base power, voltage and memory curves of the V100."""

V100_POWER_CLOCKS_MHZ = (600, 1110)
"""The two calibration clocks of every V100 power series; 1110 MHz is the highest multiple of 30 MHz
at which DGEMM's rate is within 0.5 % of proportional to the clock, so that no power cap binds."""

RATE_CLOCK_MHZ = 960
"""The clock whose DGEMM row gives the rate per MHz."""

V100_CURVE_CLOCKS_MHZ = (510, 570, 600, 630, 660, 690, 720, 750, 780, 810, 825)
"""Rows of the V100 DGEMM file that gave the effective-clock curve."""

V100_STREAM_CLOCKS_MHZ = (510, 570, 600, 630, 660, 690, 720, 750, 780, 810, 840, 870, 900, 960, 1050)
"""Rows of the V100 STREAM file that gave the bandwidth curve."""

A100_STREAM_CLOCKS_MHZ = (510, 630, 645, 675, 690, 735, 750, 795, 810, 840, 855, 960, 1110)
"""Rows of the A100 STREAM file that gave the bandwidth curve."""

A100_POWER_CLOCKS_MHZ = (510, 690, 870, 1050, 1230, 1410)
"""Rows of the three A100 power series that gave base power, voltage and memory curves."""

A100_SERIES_CLOCKS_MHZ = (690, 1050)
"""The two calibration clocks of every A100 power series."""

A100_LAYER_CLOCKS_MHZ = (690, 1170)
"""Rows of the A100 prefill feed-forward power that gave the core coefficient of matrix kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Relative errors on the rows that were not used for calibration.

    Parameters
    ----------
    errors
        Shape (rows,), |predicted / measured − 1|.
    """

    name: str
    errors: Floats

    @property
    def mean(self) -> float:
        """Mean error."""
        return float(self.errors.mean())

    @property
    def median(self) -> float:
        """Median error."""
        return float(np.median(self.errors))

    @property
    def worst(self) -> float:
        """Largest error."""
        return float(self.errors.max())


def compare(
    series: Series, predicted: Floats, calibration_mhz: Sequence[float], *, smoothed: bool = False
) -> Comparison:
    """Relative errors of ``predicted`` (shape (clocks,)) on the rows not used for calibration.

    Where the calibration took medians (``smoothed``), the neighbours of its clocks were used too.
    """
    used = np.isin(series.clocks_mhz, calibration_mhz)
    if smoothed:
        used = np.any([series.neighbours(clock) for clock in calibration_mhz], axis=0)
    held_out = ~used
    errors = np.abs(predicted / series.values - 1.0)
    return Comparison(name=series.name, errors=errors[held_out])


def effective_mhz(device: Device, clocks_mhz: Floats) -> Floats:
    """Effective clocks of requested ones, without a cap."""
    return np.array([device.effective_clock_mhz(int(clock)) for clock in clocks_mhz])


# --- power -------------------------------------------------------------------------------------


def activities(device: Device, series: Series, clocks_mhz: tuple[int, int]) -> tuple[float, float]:
    """Core and memory activity, none negative, that give the smoothed power at two clocks."""
    from scipy.optimize import nnls

    smoothed = series.smoothed()
    clocks = effective_mhz(device, np.array(clocks_mhz, dtype=np.float64))
    measured = np.array([smoothed.at(clock) for clock in clocks_mhz])
    idle = device.busy_power_w(clocks, 0.0, 0.0)
    columns = [device.busy_power_w(clocks, core, 1.0 - core) - idle for core in (1.0, 0.0)]
    matrix = np.stack(columns, axis=1) / measured[:, None]
    core, memory = nnls(matrix, (measured - idle) / measured)[0]
    return float(core), float(memory)


def unbounded(device: Device) -> Device:
    """Return the device with its activity scale stretched tenfold.

    The scale is a convention (1 is the highest activity of a served model); benchmarks may exceed it.
    """
    power = device.power
    core = Constant(value=10 * power.core_w_per_mhz.value, label=Label.DERIVED, source="stretched")
    memory = Constant(value=10 * power.memory_w.value, label=Label.DERIVED, source="stretched")
    stretched = power.model_copy(update={"core_w_per_mhz": core, "memory_w": memory})
    return device.model_copy(update={"power": stretched})


def predicted_power_w(device: Device, series: Series, clocks_mhz: tuple[int, int]) -> Floats:
    """Power at every clock of ``series`` from its rows at two clocks, the board's cap applied."""
    stretched = unbounded(device)
    core, memory = activities(stretched, series, clocks_mhz)
    clocks = stretched.capped_clocks_mhz(effective_mhz(device, series.clocks_mhz), core, memory)
    return stretched.busy_power_w(clocks, core, memory)


def v100_power(folder: Path, *, with_shape_applications: bool = False) -> tuple[Comparison, ...]:
    """V100 power: applications (without the four that shaped the model unless asked), DGEMM, FIRESTARTER."""
    device = load_device("v100-pcie-16gb")
    clocks = V100_POWER_CLOCKS_MHZ
    series = [
        one
        for one in v100_application_power_w(folder) + v100_stress_power_w(folder)
        if with_shape_applications or one.name not in V100_SHAPE_APPLICATIONS
    ]
    return tuple(
        compare(one, predicted_power_w(device, one, clocks), clocks, smoothed=True) for one in series
    )


def v100_inference_power(folder: Path) -> tuple[Comparison, ...]:
    """V100 power of whole inference jobs of another laboratory's card, from two clocks each."""
    device = load_device("v100-pcie-16gb")
    clocks = V100_POWER_CLOCKS_MHZ
    return tuple(
        compare(one, predicted_power_w(device, one, clocks), clocks, smoothed=True)
        for one in v100_inference_power_w(folder)
    )


def a100_power(folder: Path) -> tuple[Comparison, ...]:
    """A100 power of DGEMM, STREAM and the LSTM, from two clocks each."""
    device = load_device("a100-sxm4-80gb-500w")
    clocks = A100_SERIES_CLOCKS_MHZ
    used = A100_POWER_CLOCKS_MHZ
    return tuple(
        compare(one, predicted_power_w(device, one, clocks), used, smoothed=True)
        for one in a100_power_w(folder)
    )


def a100_feed_forward_comparison(folder: Path) -> tuple[Comparison, Comparison]:
    """A100 (400 W) prefill feed-forward: power, and effective clock under the 400 W cap."""
    device = load_device("a100-sxm4-80gb")
    power, clock = a100_feed_forward(folder)
    core, memory = activities(unbounded(device), power, A100_LAYER_CLOCKS_MHZ)
    stretched = unbounded(device)
    capped = stretched.capped_clocks_mhz(effective_mhz(device, power.clocks_mhz), core, memory)
    predicted = stretched.busy_power_w(capped, core, memory)
    return compare(power, predicted, A100_LAYER_CLOCKS_MHZ), compare(clock, capped, A100_LAYER_CLOCKS_MHZ)


# --- rates -------------------------------------------------------------------------------------


def v100_dgemm_rate(folder: Path) -> Comparison:
    """V100 DGEMM rate: proportional to the effective clock, which the 250 W cap limits.

    DGEMM's activities come from its power at the two power calibration clocks.
    """
    device = load_device("v100-pcie-16gb")
    rate = v100_dgemm_flops_per_s(folder)
    power = next(one for one in v100_stress_power_w(folder) if one.name == "DGEMM")
    core, memory = activities(unbounded(device), power, V100_POWER_CLOCKS_MHZ)
    clocks = unbounded(device).capped_clocks_mhz(effective_mhz(device, rate.clocks_mhz), core, memory)
    per_mhz = rate.at(RATE_CLOCK_MHZ) / RATE_CLOCK_MHZ
    return compare(rate, clocks * per_mhz, (*V100_CURVE_CLOCKS_MHZ, RATE_CLOCK_MHZ))


def a100_dgemm_rate(folder: Path) -> Comparison:
    """A100 DGEMM rate: proportional to the clock."""
    device = load_device("a100-sxm4-80gb-500w")
    rate = a100_dgemm_flops_per_s(folder)
    per_mhz = rate.at(RATE_CLOCK_MHZ) / RATE_CLOCK_MHZ
    return compare(rate, effective_mhz(device, rate.clocks_mhz) * per_mhz, (RATE_CLOCK_MHZ,))


def stream_bandwidth(folder: Path, device_name: str) -> Comparison:
    """STREAM bandwidth of a V100 or an A100 against the device's curve."""
    device = load_device(device_name)
    is_v100 = device_name.startswith("v100")
    series = v100_stream_bytes_per_s(folder) if is_v100 else a100_stream_bytes_per_s(folder)
    predicted = device.memory_bandwidth_bytes_per_s(effective_mhz(device, series.clocks_mhz))
    return compare(series, predicted, V100_STREAM_CLOCKS_MHZ if is_v100 else A100_STREAM_CLOCKS_MHZ)


# --- tables ------------------------------------------------------------------------------------


def table(title: str, comparisons: Sequence[Comparison]) -> str:
    """Markdown table, one comparison a row, and the mean of the means."""
    lines = [f"**{title}**", "", "| what | rows | mean % | median % | worst % |", "|---|---:|---:|---:|---:|"]
    for one in comparisons:
        figures = " | ".join(f"{100 * figure:.2f}" for figure in (one.mean, one.median, one.worst))
        lines.append(f"| {one.name} | {len(one.errors)} | {figures} |")
    if len(comparisons) > 1:
        mean = float(np.mean([one.mean for one in comparisons]))
        lines.append(f"| mean of {len(comparisons)} | | {100 * mean:.2f} | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print every table."""
    folder = SHARED_DATA
    dgemm, stream = v100_dgemm_rate(folder), stream_bandwidth(folder, "v100-pcie-16gb")
    print(table("V100-PCIe rates, 510 MHz and above", (dgemm, stream)))
    print(table("V100-PCIe power, two calibration clocks a series", v100_power(folder)))
    every = v100_power(folder, with_shape_applications=True)
    shaping = tuple(one for one in every if one.name in V100_SHAPE_APPLICATIONS)
    print(table("V100-PCIe power, the applications that shaped the curves", shaping))
    jobs = v100_inference_power(folder)
    print(table("V100-PCIe power of whole inference jobs, two calibration clocks a series", jobs))
    a100_rates = (a100_dgemm_rate(folder), stream_bandwidth(folder, "a100-sxm4-80gb-500w"))
    print(table("A100 (500 W) rates", a100_rates))
    print(table("A100 (500 W) power", a100_power(folder)))
    print(table("A100 (400 W) prefill feed-forward", a100_feed_forward_comparison(folder)))


if __name__ == "__main__":
    main()
