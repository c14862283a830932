"""The measurements of clocks, rates and power in ../shared/data, read as series over the clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from muplan.hardware.quantity import Floats

SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"

LOWEST_CLOCK_MHZ = 510

NEIGHBOURHOOD_MHZ = 16
"""Two V100 steps, one A100 step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One quantity over requested clocks, ascending.

    Parameters
    ----------
    clocks_mhz, values
        Shape (clocks,); the unit of the values is in the name of the function that reads them.
    """

    name: str
    clocks_mhz: Floats
    values: Floats

    def at(self, clock_mhz: float) -> float:
        """Return the value at a measured clock."""
        return float(self.values[self.clocks_mhz == clock_mhz][0])

    def neighbours(self, clock_mhz: float) -> NDArray[np.bool_]:
        """Mask the rows within `NEIGHBOURHOOD_MHZ` of a clock, itself included."""
        return np.asarray(np.abs(self.clocks_mhz - clock_mhz) <= NEIGHBOURHOOD_MHZ)

    def smoothed(self) -> Series:
        """Replace each value by the median of its neighbours, itself included."""
        medians = [np.median(self.values[self.neighbours(clock)]) for clock in self.clocks_mhz]
        return Series(name=self.name, clocks_mhz=self.clocks_mhz, values=np.array(medians))


def _series(name: str, clocks_mhz: pd.Series, values: pd.Series) -> Series:
    frame = pd.DataFrame({"clock": clocks_mhz, "value": values}).dropna().sort_values("clock")
    frame = frame[frame["clock"] >= LOWEST_CLOCK_MHZ]
    return Series(
        name=name,
        clocks_mhz=frame["clock"].to_numpy(dtype=np.float64),
        values=frame["value"].to_numpy(dtype=np.float64),
    )


def v100_dgemm_flops_per_s(folder: Path) -> Series:
    """V100-PCIe DGEMM rate."""
    frame = pd.read_csv(folder / "dvfs" / "GV100-dvfs-dgemm-perf.csv")
    return _series("DGEMM", frame["dvfs"], frame["flops"] * 1e9)


def v100_stream_bytes_per_s(folder: Path) -> Series:
    """V100-PCIe STREAM bandwidth."""
    frame = pd.read_csv(folder / "dvfs" / "GV100-dvfs-stream-perf.csv")
    return _series("STREAM", frame["dvfs"], frame["bandwidth"] * 1e9)


def v100_application_power_w(folder: Path) -> tuple[Series, ...]:
    """V100-PCIe power of 21 applications."""
    frame = pd.read_csv(folder / "dvfs" / "v100_ga100_aggregated_power.csv")
    groups = frame.groupby("application", sort=True)
    return tuple(_series(str(name), rows["sm_app_clock"], rows["power_usage"]) for name, rows in groups)


def v100_stress_power_w(folder: Path) -> tuple[Series, ...]:
    """V100-PCIe power of DGEMM and FIRESTARTER."""
    frame = pd.read_csv(folder / "dvfs" / "v100_pcie_dgemm_firestarter_power.csv")
    return (
        _series("DGEMM", frame["freq_mhz"], frame["dgemm_power_w"]),
        _series("FIRESTARTER", frame["freq_mhz"], frame["firestarter_power_w"]),
    )


def v100_inference_power_w(folder: Path) -> tuple[Series, ...]:
    """V100-PCIe power of whole inference jobs, start-up included: medians over repetitions."""
    frame = pd.read_csv(folder / "dvfs" / "ai_inference_energy_runs.csv")
    frame = frame[(frame["gpu"] == "V100") & frame["workload"].isin(["llama", "stablediffusion"])]
    medians = frame.groupby(["workload", "freq_mhz"])["power_w"].median().reset_index()
    groups = medians.groupby("workload", sort=True)
    return tuple(_series(str(name), rows["freq_mhz"], rows["power_w"]) for name, rows in groups)


def a100_dgemm_flops_per_s(folder: Path) -> Series:
    """A100 (500-W class) DGEMM rate."""
    frame = pd.read_csv(folder / "dvfs" / "GA100-dvfs-dgemm-perf.csv")
    return _series("DGEMM", frame["dvfs"], frame["flops"] * 1e9)


def a100_stream_bytes_per_s(folder: Path) -> Series:
    """A100 (500-W class) STREAM bandwidth."""
    frame = pd.read_csv(folder / "dvfs" / "GA100-dvfs-stream-perf.csv")
    return _series("STREAM", frame["dvfs"], frame["bandwidth"] * 1e9)


def a100_power_w(folder: Path) -> tuple[Series, ...]:
    """A100 (500-W class) power of DGEMM, STREAM and an LSTM."""
    series = []
    for name in ("dgemm", "stream", "LSTM"):
        frame = pd.read_csv(folder / "dvfs" / f"GA100-dvfs-{name}-dcgm.csv")
        series.append(_series(name, frame["sm_app_clock"], frame["power_usage"]))
    return tuple(series)


def a100_feed_forward(folder: Path) -> tuple[Series, Series]:
    """A100 (400 W) prefill feed-forward: median power (W), and median time × clock over that at 690 MHz."""
    frame = pd.read_csv(folder / "dvfs" / "prefill_subset.tsv", sep="\t")
    frame = frame[(frame["tp"] == 1) & (frame["gpu_clock"] >= LOWEST_CLOCK_MHZ) & (frame["batch_size"] >= 4)]
    frame = frame.assign(power_w=frame["F_energy_mj"] / frame["F_us"] * 1e3)
    power = frame.groupby("gpu_clock")["power_w"].median()
    time = frame.pivot_table(index=["input_len", "batch_size"], columns="gpu_clock", values="F_us")
    speed = (1.0 / time.div(time[690], axis=0)).median() * 690.0
    clocks = pd.Series(power.index)
    return (
        _series("feed-forward power", clocks, power.reset_index(drop=True)),
        _series("feed-forward effective clock", clocks, speed.reset_index(drop=True)),
    )
