"""Curves over the clock through a few measured clocks, against the clocks between them.

Run ``python -m validation.clock_curves`` in the repository; it reads the published measurements of V100 and
A100 in ../shared/data. Clocks are chosen as ``muplan profile --measure --apply-clocks`` chooses them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.quantity import Floats
from muplan.model.catalog import load_model
from muplan.profiling.analytical import make_profile
from muplan.profiling.measured.clock_choice import MOST_CLOCKS, MOST_RESIDUAL, first_clocks, next_clock
from muplan.profiling.measured.clock_curve import along_clocks
from validation.hardware_data import (
    SHARED_DATA,
    Series,
    a100_dgemm_flops_per_s,
    a100_power_w,
    a100_stream_bytes_per_s,
    v100_application_power_w,
    v100_dgemm_flops_per_s,
    v100_stream_bytes_per_s,
    v100_stress_power_w,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Errors at the measured clocks that a curve was not drawn through, as shares."""

    num_clocks: int
    errors: tuple[float, ...]


def held_out(series: Series, wanted_mhz: Sequence[int], *, is_adaptive: bool) -> HeldOut:
    """Draw a curve through the clocks nearest to those wanted, and more where one is foretold badly."""
    clocks = [round(clock) for clock in series.clocks_mhz.tolist()]
    measured_mhz = np.array(clocks)
    taken = sorted({clocks[int(np.abs(measured_mhz - wanted).argmin())] for wanted in wanted_mhz})
    inside = [clock for clock in clocks if taken[0] <= clock <= taken[-1]]
    values = np.array([series.values[clocks.index(clock)] for clock in inside])

    def errors() -> Floats:
        places = [inside.index(clock) for clock in taken]
        return np.asarray(np.abs(along_clocks(inside, places, values[places], values) / values - 1.0))

    judged: list[int] = []
    while is_adaptive and (clock := next_clock(inside, taken, judged)) is not None:
        if errors()[inside.index(clock)] <= MOST_RESIDUAL or len(taken) == MOST_CLOCKS:
            judged.append(clock)
        else:
            taken = sorted([*taken, clock])
    left = [error for clock, error in zip(inside, errors(), strict=True) if clock not in taken]
    return HeldOut(num_clocks=len(taken), errors=tuple(map(float, left)))


def print_rows(name: str, device_name: str, series: Sequence[Series]) -> None:
    """Print a line for the fixed four clocks, and one for as many as the residual asks."""
    device = load_device(device_name)
    modelled = make_profile(load_model("bert-base"), device, tensor_parallel=(1,))
    wanted = first_clocks(modelled, modelled.clocks_mhz)
    for is_adaptive in (False, True):
        made = [held_out(one, wanted, is_adaptive=is_adaptive) for one in series]
        errors = np.concatenate([one.errors for one in made])
        count = np.mean([one.num_clocks for one in made])
        print(
            f"| {name} | {len(series)} | {count:.1f} | {len(errors)} | {np.median(errors):.1%} |"
            f" {np.percentile(errors, 95):.1%} | {errors.max():.1%} |"
        )


def main() -> None:
    """Print a table of errors at clocks left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED_DATA)
    data = parser.parse_args().data
    print("| what | series | clocks drawn through | held out | median error | 95 % | worst |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    v100, a100 = "v100-pcie-16gb", "a100-sxm4-80gb-500w"
    rates = (v100_dgemm_flops_per_s(data), v100_stream_bytes_per_s(data))
    print_rows("V100, rates of DGEMM and STREAM", v100, rates)
    print_rows("V100, power of 21 applications", v100, v100_application_power_w(data))
    print_rows("V100, power of DGEMM and FIRESTARTER", v100, v100_stress_power_w(data))
    rates = (a100_dgemm_flops_per_s(data), a100_stream_bytes_per_s(data))
    print_rows("A100, rates of DGEMM and STREAM", a100, rates)
    print_rows("A100, power of three applications", a100, a100_power_w(data))


if __name__ == "__main__":
    main()
