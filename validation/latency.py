"""Latency against published measurements: ``python -m validation.latency [DATA]`` prints the tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from muplan.hardware.catalog import load_device
from validation.latency_data import (
    BERT_CALIBRATION,
    BERT_MODELS,
    LLAMA_CALIBRATION,
    LLAMA_GPUS,
    LLAMA_MODELS,
    LLAMA_PHASES,
    Comparison,
    bert_comparisons,
    held_out,
    llama_comparisons,
    mean_error,
    ratio_comparisons,
    worst_error,
)

DEVICES = {"v100": "v100-sxm2-16gb", "a100": "a100-sxm4-80gb"}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


_SUMMARY = ("rows held out", "number", "mean error", "worst error")


def summary_table(groups: Mapping[str, Sequence[Comparison]]) -> str:
    """Return a table of mean and worst error, one line for each group of comparisons."""
    return _table(
        _SUMMARY,
        [
            [name, str(len(rows)), _percent(mean_error(rows)), _percent(worst_error(rows))]
            for name, rows in groups.items()
        ],
    )


def bert_tables(data: Path) -> str:
    """Return the tables of the BERT comparison: a summary, and every row."""
    comparisons = bert_comparisons(data, load_device(DEVICES["v100"]))
    kept = held_out(comparisons)
    summary: dict[str, list[Comparison]] = {}
    for quantity in dict.fromkeys(row.quantity for row in comparisons):
        rows = [row for row in kept if row.quantity == quantity]
        summary[quantity] = rows
        summary[f"{quantity}, tensor-parallel"] = [row for row in rows if int(row.key[1]) > 1]
    latency, stage, best = (
        [row for row in comparisons if row.quantity == quantity]
        for quantity in ("latency", "slowest stage", "slowest stage, best cut")
    )
    full = [
        [
            *map(str, one.key),
            *(f"{1e3 * value:.1f}" for value in (one.measured, one.predicted)),
            f"{100 * one.error:+.1f}",
            *(f"{1e3 * value:.1f}" for value in (two.measured, two.predicted)),
            f"{100 * two.error:+.1f}",
            f"{1e3 * three.predicted:.1f}",
            "yes" if one.is_calibration else "",
        ]
        for one, two, three in zip(latency, stage, best, strict=True)
    ]
    header = (
        *("model", "TP", "PP", "latency, ms", "muplan", "error, %"),
        *("slowest stage, ms", "muplan", "error, %", "muplan, best cut", "calibration"),
    )
    return summary_table(summary) + "\n" + _table(header, full)


def llama_tables(data: Path) -> str:
    """Return the table of the LLaMA comparison, one line for each model, GPU and phase."""
    groups: dict[str, list[Comparison]] = {}
    for gpu in LLAMA_GPUS:
        rows = held_out(llama_comparisons(data, load_device(DEVICES[gpu]), gpu))
        for model in LLAMA_MODELS:
            for phase in LLAMA_PHASES:
                groups[f"{model}, {gpu}, {phase}"] = [
                    row for row in rows if row.key[0] == model and row.key[2] == phase
                ]
    everything = [row for rows in groups.values() for row in rows]
    return summary_table({**groups, "all": everything})


def ratio_tables(data: Path) -> str:
    """Return the table of the A100 time ratios: each phase and half of a layer, then each clock."""
    comparisons = ratio_comparisons(data, load_device(DEVICES["a100"]))
    halves = dict.fromkeys((row.key[0], row.key[1]) for row in comparisons)
    clocks = sorted({int(row.key[-1]) for row in comparisons})
    groups = {
        **{
            f"{one}, {half}": [row for row in comparisons if row.key[:2] == (one, half)]
            for one, half in halves
        },
        **{f"{clock} MHz": [row for row in comparisons if row.key[-1] == clock] for clock in clocks},
        "all": comparisons,
    }
    return summary_table(groups)


def main(data: Path) -> None:
    """Print every table."""
    bert_rows = "; ".join(f"{model} TP {tp} PP {pp}" for model, tp, pp in BERT_CALIBRATION)
    llama_rows = "; ".join(f"{model} {phase} {count}" for model, phase, count in LLAMA_CALIBRATION)
    print(f"### {', '.join(BERT_MODELS)} on {DEVICES['v100']}\n\nCalibration rows: {bert_rows}.\n")
    print(bert_tables(data))
    print(f"### LLaMA layers\n\nCalibration rows, on each GPU: {llama_rows}.\n")
    print(llama_tables(data))
    print("### t(f) / t(1410) on A100, 690 MHz and more\n\nCalibration rows: none.\n")
    print(ratio_tables(data))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("../shared/data"))
