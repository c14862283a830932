"""Published latencies, and muplan's figures for the same operating points.

Every function takes the folder of the data (`../shared/data` seen from the project's root) and returns
a list of `Comparison`, one for each published row.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.device import Device
from muplan.model.architectures.build import build_graph
from muplan.model.architectures.config import BuildOptions
from muplan.model.catalog import load_model
from muplan.model.graph import ModelGraph, Operator, Phase
from muplan.profiling.clustering import Segment, segments_of
from muplan.profiling.roofline import PassGrid, operating_points, works_of

Floats = NDArray[np.float64]

BERT_MODELS = ("bert-1.3b", "bert-2.6b", "bert-6.7b")
LLAMA_MODELS = {"llama1_30b": "llama-30b", "llama2_70b": "llama-2-70b"}
LLAMA_GPUS = ("v100", "a100")
LLAMA_PHASES = {"decode": Phase.DECODE, "prompt": Phase.PREFILL}

# Rows that device constants are calibrated on; no other row is looked at.
BERT_CALIBRATION = (("bert-1.3b", 1, 1), ("bert-6.7b", 1, 1), ("bert-1.3b", 8, 1), ("bert-6.7b", 2, 1))
LLAMA_CALIBRATION = (("llama1_30b", "decode", 16), ("llama1_30b", "prompt", 8000))

_SEQUENCE = 2048
# Mean prompt and half the mean output of the requests that the layer times were collected for
# (Helix, ASPLOS'25: Azure conversations, 763 tokens in, 232 out); the file itself does not say.
_PROMPT_TOKENS = 763
_DECODE_CONTEXT = 763 + 232 // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One published figure and muplan's.

    ``key`` names the row; ``quantity`` what is compared; both figures have the same unit.
    """

    key: tuple[str | int, ...]
    quantity: str
    measured: float
    predicted: float
    is_calibration: bool

    @property
    def error(self) -> float:
        """Relative error, signed."""
        return self.predicted / self.measured - 1.0


def mean_error(rows: Sequence[Comparison]) -> float:
    """Return the mean absolute relative error."""
    return float(np.mean([abs(row.error) for row in rows]))


def worst_error(rows: Sequence[Comparison]) -> float:
    """Return the greatest absolute relative error."""
    return max(abs(row.error) for row in rows)


def held_out(rows: Sequence[Comparison]) -> list[Comparison]:
    """Return the rows that nothing was calibrated on."""
    return [row for row in rows if not row.is_calibration]


def _latency_s(
    operators: Sequence[tuple[Operator, int]],
    device: Device,
    grid: PassGrid,
    *,
    tensor_parallel: int = 1,
    clock_mhz: int | None = None,
) -> float:
    works = works_of(operators, device, grid, tensor_parallel=tensor_parallel)
    points = operating_points(works, device, [clock_mhz or device.max_clock_mhz], grid.phase)
    return float(points.latency_s.flat[0])


# --- BERT under tensor and pipeline parallelism ----------------------------------------------------


def bert_comparisons(data: Path, device: Device) -> list[Comparison]:
    """Compare batch-1 latency, and slowest stage at the published and at the best cut, of every BERT row."""
    with (data / "published" / "alpaserve_v100_latency.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["model"] in BERT_MODELS]
    weights = {
        (row["model"], int(row["pipeline_parallel"])): _numbers(row["stage_weight_bytes_per_gpu"])
        for row in rows
        if row["tensor_parallel"] == "1"
    }
    comparisons: list[Comparison] = []
    for row in rows:
        model, stages = row["model"], int(row["pipeline_parallel"])
        comparisons += _bert_row(row, device, weights[model, stages])
    return comparisons


def bert_latency_s(device: Device, model: str, tensor_parallel: int) -> float:
    """Return the batch-1 latency of a BERT model without pipeline parallelism."""
    segments = segments_of(load_model(model))
    return float(segment_latencies_s(segments, device, tensor_parallel=tensor_parallel).sum())


def _bert_row(row: dict[str, str], device: Device, stage_weights: Floats) -> list[Comparison]:
    model, degree, stages = row["model"], int(row["tensor_parallel"]), int(row["pipeline_parallel"])
    segments = segments_of(load_model(model))
    times = segment_latencies_s(segments, device, tensor_parallel=degree)
    transfer_s = device.transfer_s(
        float(segments[0].operators[-1].output_bytes(1, _SEQUENCE, _SEQUENCE)), True
    )
    received = np.array([0.0] + [transfer_s] * (stages - 1))
    published_cut = np.add.reduceat(times, cut_of_weights(segments, stage_weights)) + received
    best_cut = np.add.reduceat(times, balanced_cut(times, stages)) + received
    key = (model, degree, stages)
    figures = {
        "latency": (float(row["latency_s"]), float(published_cut.sum())),
        "slowest stage": (float(row["max_stage_latency_s"]), float(published_cut.max())),
        "slowest stage, best cut": (float(row["max_stage_latency_s"]), float(best_cut.max())),
    }
    return [
        Comparison(
            key=key,
            quantity=quantity,
            measured=measured,
            predicted=predicted,
            is_calibration=key in BERT_CALIBRATION,
        )
        for quantity, (measured, predicted) in figures.items()
    ]


def _numbers(text: str) -> Floats:
    return np.array([float(number) for number in text.split()])


def segment_latencies_s(segments: Sequence[Segment], device: Device, *, tensor_parallel: int) -> Floats:
    """Return the batch-1 latency of every segment, each at the clock that the power cap leaves it."""
    grid = PassGrid(phase=Phase.FORWARD, batches=(1,), tokens=(_SEQUENCE,))
    latencies: dict[tuple[int, int], float] = {}
    for segment in segments:
        if (segment.block, segment.part) not in latencies:
            operators = [(operator, 1) for operator in segment.operators]
            latencies[segment.block, segment.part] = _latency_s(
                operators, device, grid, tensor_parallel=tensor_parallel
            )
    return np.array([latencies[segment.block, segment.part] for segment in segments])


def cut_of_weights(segments: Sequence[Segment], stage_weights: Floats) -> list[int]:
    """Return the first segment of each stage, cut where the cumulated weights are nearest."""
    weights = np.array([sum(o.weight_bytes for o in segment.operators) for segment in segments])
    before = np.concatenate([[0.0], np.cumsum(weights)[:-1]]) / weights.sum()
    targets = np.concatenate([[0.0], np.cumsum(stage_weights)[:-1]]) / stage_weights.sum()
    return [int(np.abs(before - target).argmin()) for target in targets]


def balanced_cut(times: Floats, stages: int) -> list[int]:
    """Return the first segment of each stage of the contiguous cut with the smallest slowest stage."""
    before = np.concatenate([[0.0], np.cumsum(times)])
    count = len(times)
    best = before.copy()
    choices: list[NDArray[np.int64]] = []
    for _ in range(1, stages):
        slowest = np.maximum(best[None, :], before[:, None] - before[None, :])
        slowest[np.triu_indices(count + 1)] = np.inf
        choices.append(slowest.argmin(axis=1))
        best = slowest.min(axis=1)
    cut, end = [], count
    for choice in reversed(choices):
        end = int(choice[end])
        cut.append(end)
    return [0, *reversed(cut)]


# --- LLaMA layers ----------------------------------------------------------------------------------


def llama_comparisons(data: Path, device: Device, gpu: str) -> list[Comparison]:
    """Compare the time of one layer, of every decode and prefill row of a GPU, at its highest clock."""
    with (data / "published" / "helix_llama_layer_times.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["gpu"] == gpu]
    return [
        Comparison(
            key=(row["model"], gpu, row["phase"], int(row["batch_or_tokens"])),
            quantity="layer time",
            measured=float(row["layer_time_ms"]) * 1e-3,
            predicted=llama_layer_s(device, row["model"], row["phase"], int(row["batch_or_tokens"])),
            is_calibration=(row["model"], row["phase"], int(row["batch_or_tokens"])) in LLAMA_CALIBRATION,
        )
        for row in rows
    ]


def llama_layer_s(device: Device, model: str, phase: str, batch_or_tokens: int) -> float:
    """Return the seconds of one layer: a decode batch at the assumed context, or a prefill of so many tokens.

    Prefill tokens are taken in sequences of the assumed prompt length, or one shorter sequence; the
    last sequence may be a fraction of one, for the source gives only the tokens in all.
    """
    graph = load_model(LLAMA_MODELS[model])
    operators = layer_operators(graph, "")
    if LLAMA_PHASES[phase] is Phase.DECODE:
        return _latency_s(
            operators,
            device,
            PassGrid(phase=Phase.DECODE, batches=(batch_or_tokens,), tokens=(_DECODE_CONTEXT,)),
        )
    length = min(_PROMPT_TOKENS, batch_or_tokens)
    one = PassGrid(phase=Phase.PREFILL, batches=(batch_or_tokens / length,), tokens=(length,))
    return _latency_s(operators, device, one)


def layer_operators(graph: ModelGraph, half: str) -> list[tuple[Operator, int]]:
    """Return the operators of one layer whose names begin with ``half``."""
    (block,) = [block for block in graph.used_blocks() if block.name == "layer"]
    return [(operator, 1) for operator in block.operators if operator.name.startswith(half)]


# --- attention and feed-forward over clocks ---------------------------------------------------------

LOWEST_RATIO_CLOCK_MHZ = 690
_RATIO_MODEL = {
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}


@cache
def ratio_graph() -> ModelGraph:
    """Return the model that the measured layers are taken to belong to."""
    return build_graph(_RATIO_MODEL, BuildOptions(name="32b-class", source="assumed shape"))


def ratio_comparisons(data: Path, device: Device) -> list[Comparison]:
    """Compare t(f) / t(highest clock) of attention and feed-forward on A100, clocks of 690 MHz and more.

    The file does not name the model; its 64 layers and the feed-forward's decode time (849 MB of
    weights at 1.74 TB/s) fit the shape of Qwen2.5-32B, which is assumed.
    """
    graph = ratio_graph()
    comparisons: list[Comparison] = []
    for phase in (Phase.DECODE, Phase.PREFILL):
        with (data / "dvfs" / f"{phase}_subset.tsv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        for half, column in (("attention", "A_us"), ("feed_forward", "F_us")):
            comparisons += _ratios(rows, device, phase, layer_operators(graph, half), half, column)
    return comparisons


def _ratios(
    rows: Sequence[dict[str, str]],
    device: Device,
    phase: Phase,
    operators: Sequence[tuple[Operator, int]],
    half: str,
    column: str,
) -> list[Comparison]:
    highest = max(int(row["gpu_clock"]) for row in rows)
    measured = {_ratio_key(row): float(row[column]) * 1e-6 for row in rows}
    comparisons = []
    for (length, output, batch, clock), time_s in measured.items():
        if not LOWEST_RATIO_CLOCK_MHZ <= clock < highest:
            continue
        tokens = length if phase is Phase.PREFILL else length + output // 2
        grid = PassGrid(phase=phase, batches=(batch,), tokens=(tokens,))
        low, high = (_latency_s(operators, device, grid, clock_mhz=at) for at in (clock, highest))
        comparisons.append(
            Comparison(
                key=(str(phase), half, length, output, batch, clock),
                quantity="time ratio",
                measured=time_s / measured[length, output, batch, highest],
                predicted=low / high,
                is_calibration=False,
            )
        )
    return comparisons


def _ratio_key(row: dict[str, str]) -> tuple[int, int, int, int]:
    return int(row["input_len"]), int(row["output_len"]), int(row["batch_size"]), int(row["gpu_clock"])
