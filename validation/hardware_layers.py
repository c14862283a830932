"""Power of LLM layers on the A100 against measurements: ``python -m validation.hardware_layers [DATA]``.

Attention and feed-forward of decode and prefill over clocks (the rows of the time ratios in
`validation.latency_data`), and as a check on which nothing was calibrated the mean power of whole
Llama2-70B requests of Splitwise (ISCA'24).
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.hardware.quantity import Constant, Label
from muplan.model.catalog import load_model
from muplan.model.graph import Operator, Phase
from muplan.profiling.roofline import PassGrid, operating_points, works_of
from validation.latency import DEVICES
from validation.latency_data import (
    LOWEST_RATIO_CLOCK_MHZ,
    Comparison,
    held_out,
    layer_operators,
    mean_error,
    ratio_graph,
    worst_error,
)

DECODE_POWER_CALIBRATION = ((64, 1, 930), (64, 1, 1410))
"""Output length, batch and clock of the two decode rows whose whole-layer power (attention and
feed-forward together) gave ``memory_w`` and ``memory_core_activity`` of the 400-W card."""

HALVES = {"attention": "A", "feed_forward": "F"}

_REQUEST_TOKENS = 128
_LARGEST_BATCH = 4
# Prompts of 8,192 tokens are recorded at about 70 W, less than a loaded card draws idle.
_LONGEST_PROMPT = 4096
_TDP_W = 400.0


def _energy(
    operators: Sequence[tuple[Operator, int]],
    device: Device,
    grid: PassGrid,
    *,
    clock_mhz: int,
    tensor_parallel: int = 1,
) -> tuple[float, float]:
    """Seconds of a pass, and joules of one GPU in it."""
    works = works_of(operators, device, grid, tensor_parallel=tensor_parallel)
    points = operating_points(works, device, [clock_mhz], grid.phase)
    time_s = float(points.latency_s.flat[0])
    return time_s, time_s * float(points.power_w.flat[0])


# --- layers over clocks ------------------------------------------------------------------------


def layer_comparisons(data: Path, device: Device, phase: Phase) -> list[Comparison]:
    """Compare power (W) and energy (J) of attention, feed-forward and both, 690 MHz and more.

    Keys are phase, part, input length, output length, batch and clock. Decode is half-way through the
    output. Where a row gave a constant, its halves count as used too.
    """
    with (data / "dvfs" / f"{phase}_subset.tsv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["tp"] == "1"]
    return [
        one
        for row in rows
        if int(row["gpu_clock"]) >= LOWEST_RATIO_CLOCK_MHZ
        for one in _row_comparisons(row, device, phase)
    ]


def _row_comparisons(row: Mapping[str, str], device: Device, phase: Phase) -> list[Comparison]:
    length, output, batch, clock = (
        int(row[name]) for name in ("input_len", "output_len", "batch_size", "gpu_clock")
    )
    graph = ratio_graph()
    tokens = length + output // 2 if phase is Phase.DECODE else length
    grid = PassGrid(phase=phase, batches=(batch,), tokens=(tokens,))
    measured, predicted = {}, {}
    for half, column in HALVES.items():
        measured[half] = (float(row[f"{column}_us"]) * 1e-6, float(row[f"{column}_energy_mj"]) * 1e-3)
        predicted[half] = _energy(layer_operators(graph, half), device, grid, clock_mhz=clock)
    for figures in (measured, predicted):
        times, energies = zip(*figures.values(), strict=True)
        figures["layer"] = (sum(times), sum(energies))
    return [
        Comparison(
            key=(str(phase), part, length, output, batch, clock),
            quantity=quantity,
            measured=figure(*measured[part]),
            predicted=figure(*predicted[part]),
            is_calibration=phase is Phase.DECODE and (output, batch, clock) in DECODE_POWER_CALIBRATION,
        )
        for part in measured
        for quantity, figure in (("power", _power_w), ("energy", _joules))
    ]


def _power_w(time_s: float, energy_j: float) -> float:
    return energy_j / time_s


def _joules(_: float, energy_j: float) -> float:
    return energy_j


def fit_memory_power(data: Path, device: Device) -> tuple[float, float]:
    """Return ``memory_w`` and ``memory_core_activity`` that meet the calibration rows exactly.

    Below the cap the power of a pass is affine in both: three evaluations give its coefficients.
    """

    def powers(memory_w: float, activity: float) -> list[Comparison]:
        changed = with_memory_power(device, memory_w, activity)
        rows = layer_comparisons(data, changed, Phase.DECODE)
        return [row for row in rows if _is(row, "power", "layer") and row.is_calibration]

    start = powers(80.0, 0.1)
    origin = np.array([row.predicted for row in start])
    per_watt = np.array([row.predicted for row in powers(81.0, 0.1)]) - origin
    per_activity = (np.array([row.predicted for row in powers(80.0, 0.2)]) - origin) / 0.1
    missing = np.array([row.measured for row in start]) - origin
    change = np.linalg.solve(np.stack([per_watt, per_activity], axis=1), missing)
    return 80.0 + float(change[0]), 0.1 + float(change[1])


def with_memory_power(device: Device, memory_w: float, activity: float) -> Device:
    """Return the device with other constants of memory-bound kernels."""
    changes = {
        "memory_w": Constant(value=memory_w, label=Label.DERIVED, source="fitted"),
        "memory_core_activity": Constant(value=activity, label=Label.DERIVED, source="fitted"),
    }
    return device.model_copy(update={"power": device.power.model_copy(update=changes)})


def _is(row: Comparison, quantity: str, part: str) -> bool:
    return row.quantity == quantity and row.key[1] == part


# --- whole requests ----------------------------------------------------------------------------


def request_comparisons(data: Path, device: Device) -> list[Comparison]:
    """Compare the mean power of Llama2-70B requests: a prefill and the decodes after it.

    Keys are tensor parallelism, prompt and batch.
    """
    powers: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    with (data / "published" / "splitwise_a100_h100_llm.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            prompt, batch = int(row["prompt_size"]), int(row["batch_size"])
            is_wanted = row["model"] == "llama2-70b" and row["hardware"] == "a100-80gb"
            is_plain = int(row["token_size"]) == _REQUEST_TOKENS and batch <= _LARGEST_BATCH
            if is_wanted and is_plain and prompt <= _LONGEST_PROMPT and float(row["average_power"]) > 0:
                key = (int(row["tensor_parallel"]), prompt, batch)
                powers[key].append(float(row["average_power"]) * _TDP_W)
    return [
        Comparison(
            key=key,
            quantity="power",
            measured=statistics.median(values),
            predicted=request_power_w(device, *key),
            is_calibration=False,
        )
        for key, values in sorted(powers.items())
    ]


def request_power_w(device: Device, tensor_parallel: int, prompt: int, batch: int) -> float:
    """Return the mean power of one GPU over a request of Llama2-70B, decodes taken half-way."""
    blocks = load_model("llama-2-70b").used_blocks()
    operators = [(operator, block.repeat) for block in blocks for operator in block.operators]
    time_s = energy_j = 0.0
    for phase, tokens, passes in (
        (Phase.PREFILL, prompt, 1),
        (Phase.DECODE, prompt + _REQUEST_TOKENS // 2, _REQUEST_TOKENS - 1),
    ):
        grid = PassGrid(phase=phase, batches=(batch,), tokens=(tokens,))
        one_s, one_j = _energy(
            operators, device, grid, clock_mhz=device.max_clock_mhz, tensor_parallel=tensor_parallel
        )
        time_s, energy_j = time_s + passes * one_s, energy_j + passes * one_j
    return energy_j / time_s


# --- tables ------------------------------------------------------------------------------------


def table(groups: Mapping[str, Sequence[Comparison]]) -> str:
    """Markdown table of signed mean, mean and worst error, one line for each group of comparisons."""
    lines = ["| rows held out | number | bias % | mean % | worst % |", "|---|---:|---:|---:|---:|"]
    for name, rows in groups.items():
        bias = float(np.mean([row.error for row in rows]))
        figures = f"{100 * bias:+.1f} | {100 * mean_error(rows):.1f} | {100 * worst_error(rows):.1f}"
        lines.append(f"| {name} | {len(rows)} | {figures} |")
    return "\n".join(lines) + "\n"


def layer_table(data: Path, device: Device, phase: Phase) -> str:
    """Return the table of a phase: power by part and clock, then energy of the whole layer by clock."""
    rows = held_out(layer_comparisons(data, device, phase))
    clocks = sorted({int(row.key[-1]) for row in rows})
    groups: dict[str, list[Comparison]] = {}
    for quantity, part in (*(("power", part) for part in (*HALVES, "layer")), ("energy", "layer")):
        chosen = [row for row in rows if _is(row, quantity, part)]
        for clock in clocks:
            groups[f"{part}, {quantity}, {clock} MHz"] = [row for row in chosen if row.key[-1] == clock]
        groups[f"{part}, {quantity}, all"] = chosen
    return table(groups)


def main(data: Path) -> None:
    """Print every table and the fitted constants."""
    device = load_device(DEVICES["a100"])
    memory_w, activity = fit_memory_power(data, device)
    print(f"Fitted: memory_w {memory_w:.1f} W, memory_core_activity {activity:.4f}.\n")
    for phase in (Phase.DECODE, Phase.PREFILL):
        print(f"**A100 (400 W), {phase} of an LLM layer**\n\n{layer_table(data, device, phase)}")
    rows = request_comparisons(data, device)
    degrees = sorted({int(row.key[0]) for row in rows})
    groups = {f"TP {degree}": [row for row in rows if row.key[0] == degree] for degree in degrees}
    print(f"**A100 (400 W), mean power of Llama2-70B requests**\n\n{table({**groups, 'all': rows})}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data"))
