"""Whether plans keep what they promise: random workloads, planned, then simulated on fresh seeds.

Run ``python -m validation.promise`` in the repository. Each workload is solved without baselines; its plan
is then simulated on traces that neither search nor judgement has seen. Counted are the services whose
attainment misses the target beyond the 95 % interval of that simulation, and the error of the predicted
power. Refusals are counted apart.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from muplan.errors import InputError
from muplan.plan import Prediction
from muplan.planning.solve import Planned, solve
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem, ResolvedService
from muplan.profile import Phase
from muplan.serving.prediction import predict
from muplan.traces.generate import Purpose
from muplan.workload import QueueOrder, Workload

NUM_WORKLOADS = 50
FORWARD_MODELS = ("bert-base", "bert-large", "bert-1.3b", "bert-2.6b", "bert-6.7b", "vit-large", "resnet-50")
GENERATE_MODELS = ("llama-2-7b", "llama-3.1-8b", "llama-2-13b")
LENGTHS = ("azure-conversation", "azure-code")
LOADS = (0.05, 0.15, 0.3, 0.45)
"""Part of the fleet that the demand keeps busy at maximum clock; generate services in batches of eight."""

CVS, CV_ODDS = (1, 2, 4, 10), (0.45, 0.3, 0.17, 0.08)

_FRESH_SEED = 20_000
_CONCURRENCY = 8
_GENERATES = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one workload; ``missed`` and ``power_error`` only where it was planned."""

    name: str
    num_gpus: int
    num_services: int
    load: float
    greatest_cv: float
    solver: str
    seconds: float
    missed: tuple[str, ...] = ()
    power_error: float = math.nan

    @property
    def planned(self) -> bool:
        """Whether there is a plan."""
        return not math.isnan(self.power_error)


def random_problem(number: int) -> tuple[Problem, float]:
    """A random workload, resolved, and the part of its fleet that it keeps busy at maximum clock."""
    rng = np.random.default_rng([7, number])
    generates = rng.random() < _GENERATES
    num_gpus = round(2 ** rng.uniform(1, 5))
    most = min(16, 2 + 2 * num_gpus) if not generates else max(1, num_gpus // 2)
    services = tuple(
        _random_service(rng, place, generates=bool(generates and place < 3))
        for place in range(int(rng.integers(min(2, most), most + 1)))
    )
    workload = Workload.model_validate(
        {
            "kind": "workload",
            "schema_version": 1,
            "name": f"random-{number}",
            "fleet": {
                "pools": (
                    {
                        "name": "gpus",
                        "device": "a100-sxm4-80gb" if generates else "v100-sxm2-32gb",
                        "num_gpus": num_gpus,
                    },
                )
            },
            "services": services,
            "serving": {
                "queue_order": QueueOrder(str(rng.choice(["fcfs", "sjf", "edf"]))),
                "max_batch": int(rng.choice([1, 4, 8])),
            },
        }
    )
    load = float(rng.choice(LOADS))
    return _loaded(load_problem(workload, directory=Path(), profiles=Path("profiles")), load, rng), load


def _random_service(rng: np.random.Generator, place: int, *, generates: bool) -> dict[str, object]:
    slo = {"scale": round(rng.uniform(4, 12), 2), "attainment": float(rng.choice([0.95, 0.99]))}
    demand = {"rate_rps": 1.0, "cv": float(rng.choice(CVS, p=CV_ODDS))}
    service: dict[str, object] = {"name": f"service-{place}", "slo": slo, "demand": demand}
    if not generates:
        return {**service, "model": str(rng.choice(FORWARD_MODELS))}
    model = {"model": str(rng.choice(GENERATE_MODELS)), "lengths": str(rng.choice(LENGTHS))}
    demand["cv"] = min(float(demand["cv"]), 2.0)
    return {**service, **model}


def _loaded(problem: Problem, load: float, rng: np.random.Generator) -> Problem:
    """The problem with rates that keep a part of its fleet busy, shared unevenly among its services."""
    share = rng.dirichlet(np.full(len(problem.services), 2.0))
    busy = load * problem.workload.fleet.num_gpus * share
    services = tuple(
        _with_rate(service, float(part) / _gpu_seconds(service))
        for service, part in zip(problem.services, busy, strict=True)
    )
    workload = problem.workload.model_copy(update={"services": tuple(item.spec for item in services)})
    return replace(problem, workload=workload, services=services)


def _gpu_seconds(service: ResolvedService) -> float:
    """GPU seconds of one request at maximum clock on the fewest GPUs that were profiled."""
    profile = service.profiles["gpus"]
    width = profile.tensor_parallel[0]

    def total_s(phase: Phase, batch: int, tokens: float) -> float:
        points = profile.grid(phase).tokens
        tokens = min(max(tokens, points[0]), points[-1])
        latency_s = profile.latency_s(phase, tensor_parallel=width, batch=batch, tokens=tokens)
        return float(latency_s[profile.cluster_type_index, -1].sum())

    if service.request_kind == "forward":
        return width * total_s(Phase.FORWARD, 1, service.input_tokens)
    step_s = total_s(Phase.DECODE, _CONCURRENCY, service.input_tokens + service.output_tokens / 2)
    prefill_s = total_s(Phase.PREFILL, 1, service.input_tokens)
    return width * (prefill_s + service.output_tokens * step_s / _CONCURRENCY)


def _with_rate(service: ResolvedService, rate_rps: float) -> ResolvedService:
    demand = service.spec.demand.model_copy(update={"rate_rps": rate_rps})
    return replace(service, rate_rps=rate_rps, spec=service.spec.model_copy(update={"demand": demand}))


def keep_promise(number: int, solver: str) -> Outcome:
    """Plan one workload and hold the plan's prediction against a fresh simulation."""
    problem, load = random_problem(number)
    begin = time.perf_counter()
    try:
        result = solve(problem, solver=solver, with_baselines=False)
        status = result.solution.solver if isinstance(result, Planned) else f"refused: {result.status}"
    except InputError:
        result, status = None, "refused: a service has no request in the simulated time"
    outcome = Outcome(
        name=problem.workload.name,
        num_gpus=problem.workload.fleet.num_gpus,
        num_services=len(problem.services),
        load=load,
        greatest_cv=max(service.cv for service in problem.services),
        solver=status,
        seconds=time.perf_counter() - begin,
    )
    if not isinstance(result, Planned):
        return outcome
    fresh = predict(problem, result.deployment, seed=_FRESH_SEED + number, purpose=Purpose.VERIFYING)
    return replace(
        outcome,
        missed=_missed(fresh),
        power_error=result.prediction.power_w.mean / fresh.power_w.mean - 1.0,
    )


def _missed(fresh: Prediction) -> tuple[str, ...]:
    """Services whose attainment misses the target beyond its interval."""
    return tuple(
        f"{item.service} {item.attainment.mean:.2%} [{item.attainment.low:.2%}, {item.attainment.high:.2%}]"
        f" for {item.target:.0%}"
        for item in fresh.services
        if item.attainment.high < item.target
    )


def exact_interval(count: int, total: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share."""
    from scipy.stats import beta

    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(0.975, count + 1, total - count))
    return low, high


def summary(outcomes: Sequence[Outcome]) -> str:
    """Both figures with what they are counted over."""
    planned = [outcome for outcome in outcomes if outcome.planned]
    services = sum(outcome.num_services for outcome in planned)
    missed = sum(len(outcome.missed) for outcome in planned)
    low, high = exact_interval(missed, max(services, 1))
    errors = np.array([abs(outcome.power_error) for outcome in planned])
    return (
        f"{len(planned)} of {len(outcomes)} workloads planned, {len(outcomes) - len(planned)} refused."
        f" {missed} of {services} services ({missed / max(services, 1):.2%}, 95 % interval {low:.2%} to"
        f" {high:.2%}) miss their target beyond the interval."
        f" Power: mean error {errors.mean():.2%}, worst {errors.max():.2%}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for every workload, then both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--number", type=int, default=NUM_WORKLOADS)
    parser.add_argument("--solver", default="exact")
    options = parser.parse_args(arguments)
    print("| workload | GPUs × services | load | greatest CV | planned by | s | power error | missed |")
    print("|---|---:|---:|---:|---|---:|---:|---|")
    outcomes = []
    for number in range(options.first, options.first + options.number):
        outcome = keep_promise(number, options.solver)
        outcomes.append(outcome)
        error = f"{outcome.power_error:+.2%}" if outcome.planned else "–"
        print(
            f"| {outcome.name} | {outcome.num_gpus} × {outcome.num_services} | {outcome.load:.0%} |"
            f" {outcome.greatest_cv:g} | {outcome.solver} | {outcome.seconds:.1f} | {error} |"
            f" {'; '.join(outcome.missed) or '–'} |"
        )
        sys.stdout.flush()
    print(f"\n{summary(outcomes)}")


if __name__ == "__main__":
    main()
