"""Two captured models measured, planned and executed for real, on every backend that runs passes.

A text classifier and a causal language model of `validation.execution`, on two one-core devices. If the first
test fails, a user's own model does not come through all commands. If the second does, a plan's prediction
does not hold on the machine that its profiles were measured on; that takes the machine for itself, so it is
not part of the suite that runs on all cores, but of ``make alone``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from validation.execution import MODELS, Compared, compare, execute, prepare

torch = pytest.importorskip("torch", reason="passes are run by torch")
pytest.importorskip("transformers", reason="models are made by transformers")

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the plan takes two cores")
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 500}
CASE, DURATION_S = "text-chat", 34.0
"""Two seconds of it warm up."""
MEAN, ATTAINMENT = 0.15, 0.03
TRIALS = 3
"""Runs until one is as foretold at its own speed: other work on the machine, which a run cannot tell from the
plan's, comes and goes within a run. Each trial has requests of its own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("real")
    prepare(made, [CASE])
    return made


def test_two_captured_models_are_planned_and_executed(tmp_path: Path) -> None:
    """Tiny ones, beside the rest of the suite: every request is answered, whatever that takes."""
    prepare(tmp_path, [CASE], {name: MODELS[name] | SMALL for name in ("text", "chat")})
    run, foretold = (execute(tmp_path, CASE, 12.0, 0, backend) for backend in ("torch", "simulated"))
    assert run.label == "measured"
    assert not run.is_partial
    for one, same in zip(run.services, foretold.services, strict=True):
        assert one.num_requests == same.num_requests > 0
        assert one.num_rejected == 0
        assert one.latency is not None
        assert one.latency.mean_s > 0.0


@pytest.mark.alone
@pytest.mark.parametrize("backend", ["torch", "ray"])
def test_a_plan_is_kept(folder: Path, backend: str) -> None:
    if backend == "ray":
        pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    trials: list[str] = []
    for seed in range(TRIALS):
        services = compare(folder, CASE, DURATION_S, seed, backend)
        for one in services:
            assert one.measured.num_rejected == 0
            assert one.measured.num_requests == one.profiled.num_requests > 10
        trials += map(described, services)
        if all(abs(one.error) <= MEAN and abs(one.attainment_error) <= ATTAINMENT for one in services):
            sys.stdout.write("\n".join((f"\n{backend}:", *trials, "")))
            return
    pytest.fail(f"no run of {TRIALS} was as foretold:\n" + "\n".join(trials))


def described(one: Compared) -> str:
    """A service of a run, with the noise of the machine: how far its speed was from the measured one's."""
    return (
        f"{one.measured.service}: {one.measured.num_requests} requests, mean {one.error:+.1%} at the run's"
        f" speed ({one.speed:.2f} of the profiles' times; {one.profiled_error:+.1%} as profiled), attainment"
        f" {one.measured.attainment.observed:.2%}, {one.attainment_error:+.2%}"
    )
