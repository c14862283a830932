"""Plans of captured models executed for real on processor cores: ``python -m validation.execution``.

A text and an image classifier, and a causal language model, of transformers with random weights, are
captured, measured on one core, planned on two one-core devices, and executed: means, percentiles and
attainments beside those of a simulation of the same requests. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from muplan.plan import Plan
from muplan.problem.loading import read_problem
from muplan.problem.problem import Problem
from muplan.profile import OperatingTable, Profile
from muplan.profiling.analytical import nested
from muplan.run import Run, ServiceOutcome
from muplan.serde import read_document, write_text
from muplan.serving.executor import execute as execute_in_process

TEXT = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "hidden_size": 512,
    "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "vocab_size": 8000,
    "max_position_embeddings": 512, "dtype": "float32",
}  # fmt: skip
IMAGE = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 384,
    "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536, "image_size": 160,
    "patch_size": 16, "num_channels": 3, "dtype": "float32",
}  # fmt: skip
CHAT = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "num_hidden_layers": 5,
    "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 2816, "vocab_size": 8000,
    "max_position_embeddings": 256, "dtype": "float32",
}  # fmt: skip
MODELS = {"text": TEXT, "image": IMAGE, "chat": CHAT}
AXES = {
    "text": ("--batches", "1,2", "--tokens", "128"),
    "image": ("--batches", "1,2,4"),
    "chat": ("--batches", "1,4", "--tokens", "16,128"),
}
LENGTHS = """kind: lengths
schema_version: 1
name: short
source: prompts of 16 to 96 tokens, replies of 8 to 32
num_requests: 1
rate_rps: 1.0
cv: 1.0
input_probabilities: [0.0, 1.0]
input_tokens: [16, 96]
output_probabilities: [0.0, 1.0]
output_tokens: [[8, 32]]
"""
HEAD = """kind: workload
schema_version: 1
name: {name}
fleet:
  pools:  # a processor's clock is not set: plan at the one it was measured at
    - {{name: cores, device: cpu, num_gpus: 2, gpus_per_node: 2, min_clock_mhz: 3000}}
simulation: {{duration_s: 60, warm_up_s: 2, replications: 5}}
services:
"""
SERVICES = {
    "text": "model: text.json, tokens: 128, slo: {scale: 8, attainment: 0.95}",
    "image": "model: image.json, slo: {scale: 12, attainment: 0.95}",
    "chat": "model: chat.json, lengths: short.yaml, slo: {ttft_s: 2.0, tpot_s: 0.2, attainment: 0.95}",
}
CASES = {
    "classifiers": {"text": 3.0, "image": 6.0},
    "text-chat": {"text": 2.0, "chat": 0.6},
    "chat": {"chat": 1.2},
}
"""Services, and the requests a second of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A service of a run, beside simulations of the same requests.

    Parameters
    ----------
    speed
        Time that stages computed for the service over what its profile says of it: the speed of a shared
        machine is another from minute to minute, and from core to core.
    profiled, adjusted
        Simulated as profiled, and with all times of stages multiplied by the services' ``speed``.
    """

    speed: float
    profiled: ServiceOutcome
    adjusted: ServiceOutcome
    measured: ServiceOutcome

    @property
    def error(self) -> float:
        """How far the measured mean latency is from that at the run's own speed."""
        return _mean_s(self.measured) / _mean_s(self.adjusted) - 1.0

    @property
    def profiled_error(self) -> float:
        """How far it is from that as profiled."""
        return _mean_s(self.measured) / _mean_s(self.profiled) - 1.0

    @property
    def attainment_error(self) -> float:
        """How far the measured attainment is from that at the run's own speed."""
        return self.measured.attainment.observed - self.adjusted.attainment.observed


def _mean_s(outcome: ServiceOutcome) -> float:
    return float("nan") if outcome.latency is None else outcome.latency.mean_s


def muplan(folder: Path, *arguments: str) -> None:
    """Run the command line on one thread; a run that misses a target is none that fails."""
    command = [sys.executable, "-m", "muplan", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603 - its own command line
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode > 1:
        raise SystemExit(done.stderr)


def prepare(folder: Path, cases: Collection[str], models: Mapping[str, Any] = MODELS) -> None:
    """Capture the models of cases, measure them on one core, and plan."""
    for name in sorted({service for case in cases for service in CASES[case]}):
        write_text(json.dumps(models[name]), folder / f"{name}-config.json")
        muplan(folder, "model", "capture", f"{name}-config.json", "--name", name, "-o", f"{name}.json")
        muplan(
            folder, "profile", f"{name}.json", "--measure", "--device", "cpu", *AXES[name],
            "-o", f"profiles/cpu/{name}.json",
        )  # fmt: skip
    write_text(LENGTHS, folder / "short.yaml")
    for case in cases:
        services = [
            f"  - {{name: {name}, {SERVICES[name]}, demand: {{rate_rps: {rate_rps:g}}}}}\n"
            for name, rate_rps in CASES[case].items()
        ]
        write_text(HEAD.format(name=case) + "".join(services), folder / f"{case}.yaml")
        muplan(folder, "solve", f"{case}.yaml", "-o", f"{case}.plan.json")


def execute(folder: Path, case: str, duration_s: float, seed: int, backend: str) -> Run:
    """Execute a plan; equal seeds draw equal requests on every backend."""
    path = f"{case}-{backend}-{seed}.json"
    muplan(
        folder, "execute", f"{case}.plan.json", "--backend", backend, "--duration", f"{duration_s:g}",
        "--seed", f"{seed}", "-o", path,
    )  # fmt: skip
    return read_document(folder / path, Run)


def compare(folder: Path, case: str, duration_s: float, seed: int, backend: str) -> list[Compared]:
    """Execute a plan, and simulate the same requests as profiled and at the run's speed."""
    foretold, measured = (execute(folder, case, duration_s, seed, one) for one in ("simulated", backend))
    plan, speeds = read_document(folder / f"{case}.plan.json", Plan), speeds_of(foretold, measured)
    problem = at_speed(read_problem(folder / f"{case}.yaml", profiles=folder / "profiles"), speeds)
    adjusted = execute_in_process(problem, plan, seed=seed, duration_s=duration_s)
    return [
        Compared(speed=speeds[one.service], profiled=one, adjusted=same, measured=other)
        for one, same, other in zip(foretold.services, adjusted.services, measured.services, strict=True)
    ]


def speeds_of(foretold: Run, measured: Run) -> dict[str, float]:
    """Time that stages computed in one run over the other, by service; of all where services share GPUs."""
    whole = [sum(group.busy_share or 0.0 for group in run.groups) for run in (measured, foretold)]
    speeds = {}
    for one, other in zip(measured.services, foretold.services, strict=True):
        busy = whole
        if one.energy is not None and other.energy is not None:
            busy = [one.energy.busy_share, other.energy.busy_share]
        speeds[one.service] = busy[0] / busy[1]
    return speeds


def at_speed(problem: Problem, factors: Mapping[str, float]) -> Problem:
    """The problem with every latency of a service's profile so many times as long."""
    services = []
    for service in problem.services:
        profile, factor = service.profiles["cores"], factors[service.name]
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


def row(seed: int, one: Compared) -> str:
    """A service of a run, as a row of the table."""
    latencies = [outcome.latency for outcome in (one.profiled, one.adjusted, one.measured)]
    means, p99s = (
        [f"{1e3 * getattr(latency, key):.0f}" if latency else "–" for latency in latencies]
        for key in ("mean_s", "p99_s")
    )
    cells = [
        one.measured.service, f"{seed}", f"{one.measured.num_requests}", f"{one.speed:.2f}", *means,
        f"{one.profiled_error:+.1%}", f"{one.error:+.1%}", *p99s[1:],
        f"{one.adjusted.attainment.observed:.2%}", f"{one.measured.attainment.observed:.2%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration", type=float, default=62.0, help="seconds of each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--backend", choices=("torch", "ray"), default="torch")
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="all of them where absent")
    options = parser.parse_args()
    cases = options.case or list(CASES)
    print(
        "| service | seed | requests | time over profile | mean, ms: as profiled | at that speed | measured |"
        " off the first | off the second | p99, ms: at that speed | measured | attainment: at that speed |"
        " measured |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        prepare(folder, cases)
        for case in cases:
            for seed in range(options.runs):
                for one in compare(folder, case, options.duration, seed, options.backend):
                    print(row(seed, one), flush=True)


if __name__ == "__main__":
    main()
