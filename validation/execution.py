"""A plan executed for real on processor cores: ``python -m validation.execution``.

A text and an image classifier, and a causal language model, with random weights, are measured on one core,
planned on two, and executed by the torch backend: means, percentiles and attainments beside those of a
simulation of the same requests. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from muplan.plan import Plan
from muplan.problem.loading import read_problem
from muplan.problem.problem import Problem
from muplan.profile import OperatingTable, Profile
from muplan.profiling.analytical import nested
from muplan.run import Run
from muplan.serde import read_document, write_text
from muplan.serving.executor import execute as execute_in_process

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
    "chat": {
        "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 4, "intermediate_size": 1408, "vocab_size": 8000,
        "max_position_embeddings": 256, "dtype": "float32",
    },
}  # fmt: skip
AXES = {
    "text": ("--batches", "1,2,4", "--tokens", "128"),
    "image": ("--batches", "1,2,4"),
    "chat": ("--batches", "1,2,4,8", "--tokens", "16,32,64,96,160"),
}
LENGTHS = """kind: lengths
schema_version: 1
name: short
source: prompts of 16 to 96 tokens, replies of 8 to 64
num_requests: 1
rate_rps: 1.0
cv: 1.0
input_probabilities: [0.0, 1.0]
input_tokens: [16, 96]
output_probabilities: [0.0, 1.0]
output_tokens: [[8, 64]]
"""
CHAT = """kind: workload
schema_version: 1
name: chat
fleet:
  pools:
    - {name: cores, device: cpu, num_gpus: 2, gpus_per_node: 2, min_clock_mhz: 3000}
services:
  - name: chat
    model: chat.json
    lengths: short.yaml
    slo: {ttft_s: 0.4, tpot_s: 0.05, attainment: 0.95}
    demand: {rate_rps: 1.5}
simulation: {duration_s: 60, warm_up_s: 2, replications: 10}
"""
CORES = """kind: workload
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
WORKLOADS = {"cores": CORES, "chat": CHAT}


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
    """Measure all models on one core, and plan both workloads."""
    for name, config in MODELS.items():
        write_text(json.dumps(config), folder / f"{name}.json")
        muplan(
            folder, "profile", f"{name}.json", "--measure", "--device", "cpu", *AXES[name],
            "-o", f"profiles/cpu/{name}.json",
        )  # fmt: skip
    write_text(LENGTHS, folder / "short.yaml")
    for name, workload in WORKLOADS.items():
        write_text(workload, folder / f"{name}.yaml")
        muplan(folder, "solve", f"{name}.yaml", "-o", f"{name}.plan.json")


def execute(folder: Path, name: str, duration_s: float, seed: int, backend: str) -> Run:
    """Execute a plan; equal seeds draw equal requests on every backend."""
    path = f"{name}-{backend}-{seed}.json"
    muplan(
        folder, "execute", f"{name}.plan.json", "--backend", backend, "--duration", f"{duration_s:g}",
        "--seed", f"{seed}", "-o", path,
    )  # fmt: skip
    return read_document(folder / path, Run)


def at_speed(problem: Problem, factor: float) -> Problem:
    """The problem with every latency of its profiles ``factor`` times as long."""
    services = []
    for service in problem.services:
        profile = service.profiles["cores"]
        types = [
            kind.model_copy(update={"tables": tuple(_slower(table, factor) for table in kind.tables)})
            for kind in profile.cluster_types
        ]
        content = {name: getattr(profile, name) for name in Profile.model_fields}
        made = Profile(**{**content, "cluster_types": tuple(types)})
        services.append(replace(service, profiles={"cores": made}))
    return replace(problem, services=tuple(services))


def _slower(table: OperatingTable, factor: float) -> OperatingTable:
    return table.model_copy(update={"latency_s": nested([factor * np.array(table.latency_s[0])])})


def print_runs(folder: Path, name: str, duration_s: float, seed: int) -> None:
    """A row for each service: simulated on the same requests, as profiled and at the run's speed; measured.

    The speed is the time that stages computed over what the profiles say of it: that of a shared machine is
    another from minute to minute.
    """
    foretold, measured = (
        execute(folder, name, duration_s, seed, backend) for backend in ("simulated", "torch")
    )
    profiled_share, share = (
        sum(group.busy_share or 0.0 for group in run.groups) for run in (foretold, measured)
    )
    plan = read_document(folder / f"{name}.plan.json", Plan)
    problem = at_speed(
        read_problem(folder / f"{name}.yaml", profiles=folder / "profiles"), share / profiled_share
    )
    adjusted = execute_in_process(problem, plan, seed=seed, duration_s=duration_s)
    for one, same, other in zip(foretold.services, adjusted.services, measured.services, strict=True):
        if one.latency is None or same.latency is None or other.latency is None:
            continue
        cells = [
            one.service,
            f"{seed}",
            f"{one.num_requests}",
            f"{share / profiled_share:.2f}",
            f"{1e3 * one.latency.mean_s:.0f}",
            f"{1e3 * same.latency.mean_s:.0f}",
            f"{1e3 * other.latency.mean_s:.0f}",
            f"{other.latency.mean_s / same.latency.mean_s - 1:+.1%}",
            f"{1e3 * same.latency.p99_s:.0f}",
            f"{1e3 * other.latency.p99_s:.0f}",
            f"{same.attainment.observed:.2%}",
            f"{other.attainment.observed:.2%}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=62.0, help="seconds of each run")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(
        "| service | seed | requests | time over profile | mean, ms: as profiled | at that speed | measured |"
        " difference | p99, ms: at that speed | measured | attainment: at that speed | measured |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        prepare(folder)
        for name in WORKLOADS:
            for seed in range(options.runs):
                print_runs(folder, name, options.duration, seed)


if __name__ == "__main__":
    main()
