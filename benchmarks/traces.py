"""Speed of traces: arrivals drawn, requests read, converted and described a second.

Run ``python -m benchmarks.traces`` in the repository. Each figure is the best of five after one that does
not count; files lie in the machine's cache.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.simulator import best_s
from muplan.traces import files
from muplan.traces.arrivals import draw_arrivals
from muplan.traces.files import read_trace, write_trace
from muplan.traces.formats.azure import import_azure
from muplan.traces.formats.burstgpt import import_burstgpt
from muplan.traces.formats.mooncake import import_mooncake
from muplan.traces.generate import draw_trace
from muplan.traces.lengths import load_lengths
from muplan.traces.operations import multiply, superpose, thin
from muplan.traces.processes import ArrivalProcess, Gamma, MarkovModulated, Piecewise, Poisson, Weibull
from muplan.traces.summary import describe_trace
from muplan.traces.trace import Trace

NUM_ARRIVALS = 10_000_000
NUM_ROWS = 1_000_000
DAY_RPS = tuple(float(rate) for rate in 1e5 * (1.0 + 0.5 * np.sin(np.arange(144) * 2 * np.pi / 144)))
PROCESSES: dict[str, ArrivalProcess] = {
    "Poisson": Poisson(rate_rps=1e5),
    "Gamma, CV 0.5": Gamma(rate_rps=1e5, cv=0.5),
    "Gamma, CV 2": Gamma(rate_rps=1e5, cv=2.0),
    "Gamma, CV 4": Gamma(rate_rps=1e5, cv=4.0),
    "Weibull, CV 2": Weibull(rate_rps=1e5, cv=2.0),
    "Markov-modulated, 2 states": MarkovModulated(rates_rps=(5e4, 2e5), sojourns_s=(2.0, 1.0)),
    "piecewise, 144 rates with noise": Piecewise(rates_rps=DAY_RPS, interval_s=0.7, noise_cv=0.2),
}


def main() -> None:
    """Print both tables."""
    print(f"| drawn, {NUM_ARRIVALS:,} | million arrivals a second |\n|---|---:|")
    for name, process in PROCESSES.items():
        duration_s = NUM_ARRIVALS / process.rate_rps
        drawn = len(draw_arrivals(process, duration_s=duration_s, rng=np.random.default_rng(0)))
        _row(name, drawn, _drawing(process, duration_s))
    print(f"\n| {NUM_ROWS:,} requests | million requests a second |\n|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for name, count, work in _cases(Path(folder)):
            _row(name, count, work)


def _drawing(process: ArrivalProcess, duration_s: float) -> Callable[[], object]:
    return lambda: draw_arrivals(process, duration_s=duration_s, rng=np.random.default_rng(0))


def _cases(folder: Path) -> list[tuple[str, int, Callable[[], object]]]:
    trace = draw_trace(
        Poisson(rate_rps=100.0),
        service="chat",
        lengths=load_lengths("azure-conversation"),
        duration_s=NUM_ROWS / 100.0,
        rng=np.random.default_rng(0),
    )
    own = folder / "own.csv"
    write_trace(trace, own)
    azure, burstgpt, mooncake = (folder / name for name in ("azure.csv", "burstgpt.csv", "mooncake.jsonl"))
    _write_published(trace, azure, burstgpt, mooncake)
    count, rng = len(trace), np.random.default_rng(0)
    return [
        ("trace file read", count, lambda: read_trace(own)),
        ("the same row by row, as where it has a fault", count, lambda: _by_rows(own)),
        ("trace file written", count, lambda: write_trace(trace, own)),
        ("Azure CSV imported", count, lambda: import_azure(azure, "chat")),
        ("BurstGPT CSV imported", count, lambda: import_burstgpt(burstgpt)),
        ("Mooncake JSONL imported", count, lambda: import_mooncake(mooncake, "chat")),
        ("two traces laid over each other", 2 * count, lambda: superpose([trace, trace])),
        ("thinned to half", count, lambda: thin(trace, 0.5, rng)),
        ("rate multiplied by 2.5", round(2.5 * count), lambda: multiply(trace, 2.5, rng)),
        ("described", count, lambda: describe_trace(trace)),
    ]


def _by_rows(path: Path) -> object:
    return files._read_by_rows(path.read_bytes(), path)


def _write_published(trace: Trace, azure: Path, burstgpt: Path, mooncake: Path) -> None:
    """The trace in the published forms."""
    begin = np.datetime64("2023-11-16T18:15:46.000000")
    stamps = np.datetime_as_string(begin + (trace.arrival_s * 1e6).astype("timedelta64[us]"))
    columns = (trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist())
    with azure.open("w", encoding="utf-8") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for stamp, inputs, outputs in zip(stamps.tolist(), *columns[1:], strict=True):
            file.write(f"{stamp.replace('T', ' ')},{inputs},{outputs}\n")
    with burstgpt.open("w", encoding="utf-8") as file:
        file.write("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n")
        for time_s, inputs, outputs in zip(*columns, strict=True):
            file.write(f"{int(time_s)},ChatGPT,{inputs},{outputs},{inputs + outputs},API log\n")
    with mooncake.open("w", encoding="utf-8") as file:
        for time_s, inputs, outputs in zip(*columns, strict=True):
            blocks = list(range(inputs // 512 + 1))
            request = {"timestamp": int(1e3 * time_s), "input_length": inputs, "output_length": outputs}
            file.write(json.dumps({**request, "hash_ids": blocks}) + "\n")


def _row(name: str, count: int, work: Callable[[], object]) -> None:
    print(f"| {name} | {count / best_s(work) / 1e6:.3g} |", flush=True)


if __name__ == "__main__":
    main()
