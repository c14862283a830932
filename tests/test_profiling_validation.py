"""The analytical profiler against published latencies, on rows that nothing was calibrated on.

If these fail, docs/validation.md promises more than the profiles hold.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muplan.hardware.catalog import load_device
from validation.latency import DEVICES, bert_tables
from validation.latency_calibration import calibration_rows, fit
from validation.latency_data import (
    LLAMA_GPUS,
    LLAMA_MODELS,
    LLAMA_PHASES,
    balanced_cut,
    bert_comparisons,
    held_out,
    llama_comparisons,
    mean_error,
    ratio_comparisons,
    worst_error,
)


def test_bert_under_tensor_and_pipeline_parallelism(shared_data: Path) -> None:
    comparisons = bert_comparisons(shared_data, load_device(DEVICES["v100"]))
    assert len({row.key for row in comparisons}) == 30
    assert len({row.key for row in comparisons if row.is_calibration}) == 4
    for quantity in ("latency", "slowest stage", "slowest stage, best cut"):
        rows = [row for row in held_out(comparisons) if row.quantity == quantity]
        assert mean_error(rows) <= 0.06, quantity
        assert worst_error(rows) <= 0.15, quantity
        assert mean_error([row for row in rows if int(row.key[1]) > 1]) <= 0.08, quantity


def test_llama_layers(shared_data: Path) -> None:
    everything = []
    for gpu in LLAMA_GPUS:
        rows = llama_comparisons(shared_data, load_device(DEVICES[gpu]), gpu)
        assert sum(row.is_calibration for row in rows) == len(LLAMA_PHASES)
        everything += held_out(rows)
        for model in LLAMA_MODELS:
            for phase in LLAMA_PHASES:
                chosen = [row for row in held_out(rows) if row.key[0] == model and row.key[2] == phase]
                assert mean_error(chosen) <= 0.15, (model, gpu, phase)
    assert mean_error(everything) <= 0.10


def test_a100_time_ratios(shared_data: Path) -> None:
    comparisons = ratio_comparisons(shared_data, load_device(DEVICES["a100"]))
    assert len(comparisons) == 138
    assert len({row.key for row in comparisons}) == 138
    assert mean_error(comparisons) <= 0.10


@pytest.mark.parametrize("gpu", LLAMA_GPUS)
def test_device_files_hold_the_fitted_constants(shared_data: Path, gpu: str) -> None:
    """`python -m validation.latency_calibration` prints what the device files say, to 2 %."""
    device = load_device(DEVICES[gpu])
    constants, rows = calibration_rows(shared_data, gpu)
    values, _ = fit(device, constants, rows)
    for (name, section, _), value in zip(constants, values, strict=True):
        assert getattr(getattr(device, section), name).value == pytest.approx(value, rel=0.02), name


def test_tables_are_printed(shared_data: Path) -> None:
    assert bert_tables(shared_data).count("\n") == 2 + 6 + 1 + 2 + 30


@pytest.mark.parametrize("stages", [1, 2, 3, 5])
def test_balanced_cut_equals_every_cut(stages: int) -> None:
    from itertools import combinations

    rng = np.random.default_rng(stages)
    for _ in range(20):
        times = rng.uniform(size=9)
        cuts = [[0, *inner] for inner in combinations(range(1, 9), stages - 1)]
        slowest = min(float(np.add.reduceat(times, cut).max()) for cut in cuts)
        found = balanced_cut(times, stages)
        assert len(found) == stages
        assert float(np.add.reduceat(times, found).max()) == pytest.approx(slowest, rel=1e-12)
