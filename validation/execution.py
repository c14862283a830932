"""A plan executed for real on processor cores: ``python -m validation.execution``.

A text and an image classifier with random weights are measured on one core, planned on two, and executed by
the torch backend: means, percentiles and attainments beside those of a simulation of the same requests.
Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from muplan.run import Run
from muplan.serde import read_document, write_text

MODELS = {
    "text": {
        "model_type": "bert", "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
        "intermediate_size": 2048, "vocab_size": 8000, "max_position_embeddings": 512, "type_vocab_size": 2,
        "dtype": "float32",
    },
    "image": {
        "model_type": "vit", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6,
        "intermediate_size": 1536, "image_size": 160, "patch_size": 16, "num_channels": 3, "dtype": "float32",
    },
}  # fmt: skip
WORKLOAD = """kind: workload
schema_version: 1
name: cores
fleet:
  pools:  # a processor's clock is not set: plan at the one it was measured at
    - {name: cores, device: cpu, num_gpus: 2, gpus_per_node: 2, min_clock_mhz: 3000}
services:
  - {name: text, model: text.json, tokens: 128, slo: {scale: 6, attainment: 0.95}, demand: {rate_rps: 3}}
  - {name: image, model: image.json, slo: {scale: 12, attainment: 0.95}, demand: {rate_rps: 6}}
simulation: {duration_s: 60, warm_up_s: 2, replications: 10}
"""


def muplan(folder: Path, *arguments: str) -> None:
    """Run the command line on one thread; a run that misses a target is none that fails."""
    command = [sys.executable, "-m", "muplan", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603 - its own command line
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode > 1:
        raise SystemExit(done.stderr)


def prepare(folder: Path) -> None:
    """Measure both models on one core, and plan."""
    for name, config in MODELS.items():
        write_text(json.dumps(config), folder / f"{name}.json")
        tokens = ("--tokens", "128") if name == "text" else ()
        muplan(
            folder, "profile", f"{name}.json", "--measure", "--device", "cpu", "--batches", "1,2,4", *tokens,
            "-o", f"profiles/cpu/{name}.json",
        )  # fmt: skip
    write_text(WORKLOAD, folder / "cores.yaml")
    muplan(folder, "solve", "cores.yaml", "-o", "plan.json")


def execute(folder: Path, duration_s: float, seed: int, backend: str) -> Run:
    """Execute the plan; equal seeds draw equal requests on every backend."""
    path = f"{backend}-{seed}.json"
    muplan(
        folder, "execute", "plan.json", "--backend", backend, "--duration", f"{duration_s:g}", "--seed",
        f"{seed}", "-o", path,
    )  # fmt: skip
    return read_document(folder / path, Run)


def print_runs(folder: Path, duration_s: float, seed: int) -> None:
    """A row for each service: foretold by simulating the same requests, and measured."""
    foretold, measured = (execute(folder, duration_s, seed, backend) for backend in ("simulated", "torch"))
    for one, other in zip(foretold.services, measured.services, strict=True):
        if one.latency is None or other.latency is None:
            continue
        print(
            f"| {one.service} | {seed} | {one.num_requests} | {1e3 * one.latency.mean_s:.1f} |"
            f" {1e3 * other.latency.mean_s:.1f} | {other.latency.mean_s / one.latency.mean_s - 1:+.1%} |"
            f" {1e3 * one.latency.p99_s:.0f} | {1e3 * other.latency.p99_s:.0f} |"
            f" {one.attainment.observed:.2%} | {other.attainment.observed:.2%} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=62.0, help="seconds of each run")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(
        "| service | seed | requests | foretold mean, ms | measured | difference | foretold p99, ms |"
        " measured | foretold attainment | measured |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for seed in range(options.runs):
            print_runs(folder, options.duration, seed)


if __name__ == "__main__":
    main()
