"""Equal inputs and seeds give equal bytes, in fresh processes.

If this fails, saved plans cannot be regression-checked: a difference would mean nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKLOAD = """\
kind: workload
schema_version: 1
name: small
fleet:
  pools: [{name: v100, device: v100-sxm2-32gb, num_gpus: 3}]
services:
  - {name: search, model: bert-1.3b, tokens: 512, slo: {scale: 5}, demand: {rate_rps: 12, cv: 2}}
  - {name: photos, model: vit-large, slo: {latency_s: 0.1}, demand: {rate_rps: 30}}
  - name: chat
    model: opt-1.3b
    lengths: azure-conversation
    slo: {ttft_s: 1.5, tpot_s: 0.1, attainment: 0.95}
    demand: {rate_rps: 1}
serving: {queue_order: ssjf, controller: {policy: miad}}
simulation: {duration_s: 60, warm_up_s: 5, replications: 2}
"""


COMMANDS = (
    ("profile", "bert-base", "--device", "v100-sxm2-32gb", "-o", "profile.json", "--plot", "profile.png"),
    ("solve", "small.yaml", "--seed", "3", "-o", "plan.json", "--write-lp", "model.lp"),
    ("execute", "plan.json", "-o", "run.json", "--records", "records.csv", "--plot", "run.png"),
)


def run(folder: Path, *arguments: str) -> None:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "muplan", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr


def outputs(folder: Path) -> dict[str, bytes]:
    """Profile, plan, run and records of the small workload."""
    folder.mkdir()
    (folder / "small.yaml").write_text(WORKLOAD, encoding="utf-8")
    for arguments in COMMANDS:
        run(folder, *arguments)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    first, second = outputs(tmp_path / "a"), outputs(tmp_path / "b")
    assert len(first) == 8
    for name, content in first.items():
        assert second[name] == content, f"{name} differs between two processes"
    run(tmp_path / "b", "execute", "plan.json", "--seed", "4", "-o", "other.json")
    assert (tmp_path / "b" / "other.json").read_bytes() != first["run.json"], "the seed changes nothing"
