"""Llama2-70B on another serving engine: ``python -m validation.latency_transfer [DATA]``.

The prefill and token times of Splitwise (ISCA'24) come from an engine of 2023 under tensor parallelism
2, 4 and 8. Nothing of the A100 is calibrated on them, so the table says what a profile is worth on an
engine that it was not fitted to. Of the H100 one row gives the launch time.
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from muplan.hardware.catalog import load_device
from muplan.hardware.device import Device
from muplan.model.catalog import load_model
from muplan.model.graph import Phase
from muplan.profiling.roofline import PassGrid, operating_points, works_of
from validation.latency import summary_table
from validation.latency_data import Comparison, held_out

TRANSFER_DEVICES = {"a100-80gb": "a100-sxm4-80gb", "h100-80gb": "h100-sxm5-80gb"}
LAUNCH_ROW = ("h100-80gb", "decode", 8, 512, 1)

_OUTPUT_TOKENS = 128
# Larger batches are queued by the engine: their prefill time grows faster than their tokens.
_LARGEST_BATCH = 4


def transfer_comparisons(data: Path) -> list[Comparison]:
    """Compare prefill and token times of Llama2-70B, medians of the repetitions, batches to 4."""
    times: dict[tuple[str, str, int, int, int], list[float]] = defaultdict(list)
    with (data / "published" / "splitwise_a100_h100_llm.csv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            batch, prompt = int(row["batch_size"]), int(row["prompt_size"])
            is_wanted = row["model"] == "llama2-70b" and row["hardware"] in TRANSFER_DEVICES
            is_plain = int(row["token_size"]) == _OUTPUT_TOKENS and batch <= _LARGEST_BATCH
            if is_wanted and is_plain:
                degree = int(row["tensor_parallel"])
                for phase, column in (("prefill", "prompt_time"), ("decode", "token_time")):
                    times[row["hardware"], phase, degree, prompt, batch].append(float(row[column]) * 1e-3)
    devices = {gpu: load_device(name) for gpu, name in TRANSFER_DEVICES.items()}
    return [
        Comparison(
            key=key,
            quantity="pass time",
            measured=statistics.median(values),
            predicted=llama_pass_s(devices[key[0]], *key[1:]),
            is_calibration=key == LAUNCH_ROW,
        )
        for key, values in sorted(times.items())
    ]


def llama_pass_s(device: Device, phase: str, tensor_parallel: int, prompt: int, batch: int) -> float:
    """Return the seconds of a pass of Llama2-70B; decode half-way through the output."""
    operators = [
        (o, block.repeat) for block in load_model("llama-2-70b").used_blocks() for o in block.operators
    ]
    tokens = prompt if phase == "prefill" else prompt + _OUTPUT_TOKENS // 2
    grid = PassGrid(phase=Phase(phase), batches=(batch,), tokens=(tokens,))
    works = works_of(operators, device, grid, tensor_parallel=tensor_parallel)
    return float(operating_points(works, device, [device.max_clock_mhz], grid.phase).latency_s.flat[0])


def transfer_table(data: Path) -> str:
    """Return the table of errors, one line for each GPU, phase and degree."""
    rows = held_out(transfer_comparisons(data))
    groups = dict.fromkeys(row.key[:3] for row in rows)
    return summary_table(
        {
            f"{gpu}, {phase}, TP {degree}": [row for row in rows if row.key[:3] == (gpu, phase, degree)]
            for gpu, phase, degree in groups
        }
    )


def main(data: Path) -> None:
    """Print the table."""
    print("### Llama2-70B on another engine\n")
    print(f"Calibration row: {' '.join(map(str, LAUNCH_ROW))}, for the launch time of the H100.\n")
    print(transfer_table(data))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data"))
