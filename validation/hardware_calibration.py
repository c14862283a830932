"""Derive the power constants of the V100 and A100 files again from the measurements.

``python -m validation.hardware_calibration`` prints the fitted numbers; the device files hold them
rounded, and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.hardware.quantity import Floats
from validation.hardware import (
    A100_LAYER_CLOCKS_MHZ,
    A100_POWER_CLOCKS_MHZ,
    A100_SERIES_CLOCKS_MHZ,
    V100_POWER_CLOCKS_MHZ,
    V100_SHAPE_APPLICATIONS,
    activities,
    effective_mhz,
    unbounded,
)
from validation.hardware_data import (
    SHARED_DATA,
    Series,
    a100_feed_forward,
    a100_power_w,
    v100_application_power_w,
)

# The range in which each number of `Shape` is sought, in its order.
_BOUNDS = ((900.0, 1250.0), (1.02, 1.8), (10.0, 62.0), (0.0, 0.95), (600.0, 1100.0))
_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What all series of a device share.

    Parameters
    ----------
    voltage_knee_mhz, voltage_ratio
        The voltage is flat to the knee, then linear to ``voltage_ratio`` at the highest clock.
    memory_share, memory_knee_mhz
        The memory's share of power rises linearly from the lowest clock to 1 at the knee.
    """

    voltage_knee_mhz: float
    voltage_ratio: float
    base_w: float
    memory_share: float
    memory_knee_mhz: float


def shape_terms(parameters: Floats, clocks_mhz: Floats, lowest_mhz: float, highest_mhz: float) -> Floats:
    """Core and memory columns, shape (clocks, 2), of the power model at effective clocks."""
    knee, ratio, _, share, memory_knee = parameters
    voltage = 1.0 + np.maximum(0.0, clocks_mhz - knee) / (highest_mhz - knee) * (ratio - 1.0)
    rise = np.clip((clocks_mhz - lowest_mhz) / (memory_knee - lowest_mhz), 0.0, 1.0)
    return np.stack([clocks_mhz * voltage**2, share + (1.0 - share) * rise], axis=1)


def fit_shape(series: Sequence[Series], clocks_mhz: Floats) -> Shape:
    """Fit the shape to power series on the same effective clocks, each with its own two coefficients.

    Minimises the mean relative error over the series, coefficients by non-negative least squares on
    relative residuals, the shape by differential evolution with a fixed seed.
    """
    from scipy.optimize import Bounds, differential_evolution, nnls

    bounds = Bounds([low for low, _ in _BOUNDS], [high for _, high in _BOUNDS])
    lowest, highest = float(clocks_mhz.min()), float(clocks_mhz.max())

    def mean_error(parameters: Floats) -> float:
        columns = shape_terms(parameters, clocks_mhz, lowest, highest)
        errors = []
        for one in series:
            above = one.values - parameters[2]
            coefficients = nnls(columns / one.values[:, None], above / one.values)[0]
            errors.append(np.abs((columns @ coefficients - above) / one.values).mean())
        return float(np.mean(errors))

    found = differential_evolution(mean_error, bounds, rng=_SEED, maxiter=120, popsize=12, polish=True)
    knee, ratio, base, share, memory_knee = (float(number) for number in found.x)
    return Shape(
        voltage_knee_mhz=knee,
        voltage_ratio=ratio,
        base_w=base,
        memory_share=share,
        memory_knee_mhz=memory_knee,
    )


def v100_shape(folder: Path) -> Shape:
    """Fit the V100's shape to the smoothed rows of the four shape applications."""
    series = [
        one.smoothed() for one in v100_application_power_w(folder) if one.name in V100_SHAPE_APPLICATIONS
    ]
    return fit_shape(series, effective_mhz(load_device("v100-pcie-16gb"), series[0].clocks_mhz))


def a100_shape(folder: Path) -> Shape:
    """Fit the A100's shape to six smoothed rows of each series."""
    series = []
    for one in a100_power_w(folder):
        chosen = np.isin(one.clocks_mhz, A100_POWER_CLOCKS_MHZ)
        smoothed = one.smoothed()
        series.append(
            Series(name=one.name, clocks_mhz=one.clocks_mhz[chosen], values=smoothed.values[chosen])
        )
    return fit_shape(series, series[0].clocks_mhz)


def coefficients(device: Device, series: Series, clocks_mhz: tuple[int, int]) -> tuple[float, float]:
    """Core coefficient (W/MHz, idle clocking included) and memory term (W) from two rows."""
    stretched = unbounded(device)
    core, memory = activities(stretched, series, clocks_mhz)
    power = stretched.power
    idle = power.idle_clocking_w_per_mhz.value
    return idle + core * power.core_w_per_mhz.value, memory * power.memory_w.value


def main() -> None:
    """Print the fitted numbers."""
    folder = SHARED_DATA
    print("V100:", v100_shape(folder))
    print("A100:", a100_shape(folder))
    for one in v100_application_power_w(folder):
        core, memory = coefficients(load_device("v100-pcie-16gb"), one, V100_POWER_CLOCKS_MHZ)
        print(f"V100 {one.name}: core {1e3 * core:.1f} W/GHz, memory {memory:.1f} W")
    for one in a100_power_w(folder):
        core, memory = coefficients(load_device("a100-sxm4-80gb-500w"), one, A100_SERIES_CLOCKS_MHZ)
        print(f"A100 {one.name}: core {1e3 * core:.1f} W/GHz, memory {memory:.1f} W")
    power, _ = a100_feed_forward(folder)
    core, memory = coefficients(load_device("a100-sxm4-80gb"), power, A100_LAYER_CLOCKS_MHZ)
    print(f"A100 {power.name}: core {1e3 * core:.1f} W/GHz, memory {memory:.1f} W")


if __name__ == "__main__":
    main()
