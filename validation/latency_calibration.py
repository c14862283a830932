"""Fit the constants of the roofline to the calibration rows: ``python -m validation.latency_calibration``.

V100: matmul efficiency, rate and start-up of an all-reduce, and launch time, by least squares of the
relative errors of four BERT rows and two LLaMA rows. A100: matmul efficiency and launch time, from two
LLaMA rows. The figures printed are those of the device files; every other constant, the nine passes
over attention scores among them, is fixed beforehand.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from validation.latency import DEVICES
from validation.latency_data import (
    BERT_CALIBRATION,
    LLAMA_CALIBRATION,
    bert_latency_s,
    llama_layer_s,
)

Floats = NDArray[np.float64]

# Name, section, and first guess of each constant; all are positive and are fitted as logarithms.
_V100 = (
    ("matmul_efficiency", "compute", 0.75),
    ("launch_s", "compute", 2e-5),
    ("intra_node_bytes_per_s", "link", 6e10),
    ("all_reduce_start_s", "link", 1e-4),
)
_A100 = _V100[:2]


def with_constants(device: Device, constants: Sequence[tuple[str, str, float]], values: Floats) -> Device:
    """Return the device with some constants of its sections replaced."""
    for (name, section, _), value in zip(constants, values, strict=True):
        part = getattr(device, section)
        constant = getattr(part, name).model_copy(update={"value": float(value)})
        device = device.model_copy(update={section: part.model_copy(update={name: constant})})
    return device


def fit(
    device: Device,
    constants: Sequence[tuple[str, str, float]],
    rows: Sequence[tuple[Callable[[Device], float], float]],
) -> tuple[Floats, Floats]:
    """Return the constants that minimise the squared log errors of ``rows``, and those errors.

    A row is a function from a device to seconds, and the seconds published.
    """
    from scipy.optimize import least_squares

    def errors(logarithms: Floats) -> Floats:
        changed = with_constants(device, constants, np.exp(logarithms))
        return np.array([np.log(predict(changed) / measured) for predict, measured in rows])

    start = np.log([guess for _, _, guess in constants])
    solution = least_squares(errors, start, diff_step=[1e-4], xtol=1e-10, ftol=1e-10)
    return np.exp(solution.x), solution.fun


def _bert_rows(data: Path) -> list[tuple[Callable[[Device], float], float]]:
    with (data / "published" / "alpaserve_v100_latency.csv").open(encoding="utf-8") as stream:
        published = {
            (row["model"], int(row["tensor_parallel"]), int(row["pipeline_parallel"])): float(
                row["latency_s"]
            )
            for row in csv.DictReader(stream)
        }
    return [
        (partial(bert_latency_s, model=model, tensor_parallel=degree), published[model, degree, stages])
        for model, degree, stages in BERT_CALIBRATION
    ]


def _llama_rows(data: Path, gpu: str) -> list[tuple[Callable[[Device], float], float]]:
    with (data / "published" / "helix_llama_layer_times.csv").open(encoding="utf-8") as stream:
        published = {
            (row["model"], row["phase"], int(row["batch_or_tokens"])): float(row["layer_time_ms"]) * 1e-3
            for row in csv.DictReader(stream)
            if row["gpu"] == gpu
        }
    return [
        (
            partial(llama_layer_s, model=model, phase=phase, batch_or_tokens=count),
            published[model, phase, count],
        )
        for model, phase, count in LLAMA_CALIBRATION
    ]


def calibration_rows(
    data: Path, gpu: str
) -> tuple[Sequence[tuple[str, str, float]], list[tuple[Callable[[Device], float], float]]]:
    """Return the constants that are fitted for a GPU, and the rows that they are fitted to."""
    if gpu == "v100":
        return _V100, [*_bert_rows(data), *_llama_rows(data, gpu)]
    return _A100, _llama_rows(data, gpu)


def main(data: Path) -> None:
    """Print the fitted constants and the errors that are left on the calibration rows."""
    for gpu in ("v100", "a100"):
        constants, rows = calibration_rows(data, gpu)
        values, errors = fit(load_device(DEVICES[gpu]), constants, rows)
        print(f"{DEVICES[gpu]}:")
        for (name, section, _), value in zip(constants, values, strict=True):
            print(f"  {section}.{name}: {value:.4g}")
        print("  errors of the calibration rows: " + ", ".join(f"{100 * error:+.1f} %" for error in errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data"))
