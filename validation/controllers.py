"""Controllers of clocks beside the clairvoyant bound: prints the tables of docs/validation.md.

``python -m validation.controllers`` runs all cases; names of cases as arguments choose some, and
``--held-apart`` serves another day and other draws than the controllers' constants were chosen on. Those that
replay published records need the folder of shared data beside the project's, and are left out where it is
absent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from muplan.control_comparison import ControlledRun
from muplan.hardware.fleet import Fleet, Pool
from muplan.plan import Deployment
from muplan.planning.methods.name import MethodName
from muplan.planning.solve import Planned, solve
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem
from muplan.serving.controllers import controlled_runs
from muplan.serving.groups import clock_grid
from muplan.serving.metrics import measure
from muplan.serving.simulator import simulate
from muplan.traces.formats.azure import import_azure
from muplan.traces.formats.servegen import read_servegen_rates
from muplan.traces.generate import Purpose, draw_trace, generate_trace, trace_rng
from muplan.traces.operations import superpose
from muplan.traces.processes import Gamma, Piecewise
from muplan.traces.trace import Trace
from muplan.workload import CONTROL_POLICIES, Controller, Demand, Goal, Service, Simulation, Slo, Workload

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
PROFILES = Path(__file__).resolve().parents[1] / "profiles"
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Which of the recorded days is served, from 0, and the seed of what is drawn."""

    day: int
    seed: int


CHOSEN_ON, HELD_APART = Draw(day=1, seed=0), Draw(day=8, seed=1)
"""What the controllers' constants were chosen on; what was served once they stood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A deployment with the clocks that the planner gives it, and the requests that it serves."""

    problem: Problem
    deployment: Deployment
    trace: Trace


def planned(
    services: tuple[Service, ...],
    device: str,
    num_gpus: int,
    *,
    objective: tuple[Goal, ...] = (Goal.POWER,),
    method: MethodName = MethodName.EXACT,
) -> tuple[Problem, Deployment, float]:
    """Plan services on a fleet; returns problem, deployment and the multiple of the demand it is for."""
    workload = Workload(
        name="controllers",
        fleet=Fleet(pools=(Pool(name="gpus", device=device, num_gpus=num_gpus),)),
        services=services,
        objective=objective,
        simulation=Simulation(duration_s=600.0, warm_up_s=30.0, replications=5),
    )
    problem = load_problem(workload, directory=Path(), profiles=PROFILES)
    result = solve(problem, solver=method)
    if not isinstance(result, Planned):
        raise SystemExit("No plan: lower the demand of this case.")
    return problem, result.deployment, result.demand_factor


def one_h100() -> tuple[Problem, Deployment]:
    """An assistant on one H100, planned for the mean rate and variation of the Azure conversation hour."""
    service = Service(
        name="assistant",
        model="llama-3.1-8b",
        slo=Slo(ttft_s=1.0, tpot_s=0.1, attainment=0.99),
        demand=Demand(rate_rps=5.53, cv=1.09),
        lengths="azure-conversation",
    )
    problem, deployment, _ = planned((service,), "h100-sxm5-80gb", 1)
    return problem, deployment


def azure_hour(_: Draw) -> Case:
    """(a) The hour as it was recorded."""
    problem, deployment = one_h100()
    trace = import_azure(SHARED_DATA / "azure_llm_2023_conv.csv", "assistant")
    return Case(problem=problem, deployment=deployment, trace=trace)


def drawn_hour(draw: Draw) -> Case:
    """(a) An hour with drawn requests of its rate, variation and lengths."""
    problem, deployment = one_h100()
    rng = trace_rng(draw.seed, 0, Purpose.EXECUTING)
    trace = generate_trace(problem.services, duration_s=3600.0, rng=rng)
    return Case(problem=problem, deployment=deployment, trace=trace)


def gamma(cv: float, num_gpus: int, scale: float, part: float, draw: Draw) -> Case:
    """(c) Gamma arrivals on V100s, at ``part`` of the highest rate that these carry."""
    service = _search("search", "bert-1.3b", Demand(rate_rps=1.0, cv=cv), scale)
    _, _, factor = planned((service,), "v100-sxm2-32gb", num_gpus, objective=(Goal.RATE,))
    rate_rps = part * factor
    service = _search("search", "bert-1.3b", Demand(rate_rps=rate_rps, cv=cv), scale)
    problem, deployment, _ = planned((service,), "v100-sxm2-32gb", num_gpus)
    trace = draw_trace(
        Gamma(rate_rps=rate_rps, cv=cv),
        service="search",
        lengths=round(problem.services[0].input_tokens),
        duration_s=4 * 3600.0,
        rng=trace_rng(draw.seed, 0, Purpose.EXECUTING),
    )
    return Case(problem=problem, deployment=deployment, trace=trace)


def day(
    models: dict[str, tuple[str, str]], num_gpus: int, part: float, shares: dict[str, float], draw: Draw
) -> Case:
    """(b) A ServeGen day at ten-minute rates, scaled to the fleet.

    The fleet is planned for the highest demand it can carry within its limits; the day is scaled so that
    each service's busiest ten minutes are ``part`` of that, and the plan of least power is made for these.
    """
    services = tuple(
        _search(name, model, Demand(rate_rps=shares[name])) for name, (model, _) in models.items()
    )
    _, _, factor = planned(services, "v100-sxm2-32gb", num_gpus, objective=(Goal.RATE,))
    peaks_rps = {name: shares[name] * factor * part for name in models}
    services = tuple(
        _search(name, model, Demand(rate_rps=peaks_rps[name])) for name, (model, _) in models.items()
    )
    problem, deployment, _ = planned(services, "v100-sxm2-32gb", num_gpus)
    traces = []
    for number, (name, (_, record)) in enumerate(models.items()):
        process = day_of(record, peaks_rps[name], draw.day)
        traces.append(
            draw_trace(
                process,
                service=name,
                lengths=round(problem.service(name).input_tokens),
                duration_s=DAY_S,
                rng=trace_rng(draw.seed, number, Purpose.EXECUTING),
                phase_s=0.0,
            )
        )
    return Case(problem=problem, deployment=deployment, trace=superpose(traces))


def day_of(record: str, peak_rps: float, day: int) -> Piecewise:
    """One day of a recorded service's rates, its busiest interval at ``peak_rps``."""
    rates = read_servegen_rates(SHARED_DATA / "servegen_rates_10min.csv", record)
    count = round(DAY_S / rates.interval_s)
    mine = rates.rates_rps[day * count : (day + 1) * count]
    return rates.model_copy(update={"rates_rps": tuple(rate * peak_rps / max(mine) for rate in mine)})


def _search(name: str, model: str, demand: Demand, scale: float = 5.0) -> Service:
    return Service(name=name, model=model, slo=Slo(scale=scale, attainment=0.99), demand=demand)


CASES: dict[str, tuple[str, bool, Callable[[Draw], Case]]] = {
    "azure-hour": ("(a) Azure conversation hour, one H100", True, azure_hour),
    "drawn-hour": ("(a) Gamma, CV 1.09, with the hour's rate and lengths, one H100", False, drawn_hour),
    "day-one": (
        "(b) ServeGen day (m-small), one V100",
        True,
        partial(day, {"search": ("bert-1.3b", "m-small")}, 1, 1.0, {"search": 1.0}),
    ),
    "day-fleet": (
        "(b) ServeGen day (m-small, m-mid), four V100s",
        True,
        partial(
            day,
            {"search": ("bert-1.3b", "m-small"), "moderation": ("bert-2.6b", "m-mid")},
            4,
            1.0,
            {"search": 1.0, "moderation": 0.5},
        ),
    ),
    "gamma-one": ("(c) Gamma, CV 4, limits of 20 times, one V100", False, partial(gamma, 4.0, 1, 20.0, 0.3)),
    "gamma-fleet": ("(c) Gamma, CV 4, four V100s", False, partial(gamma, 4.0, 4, 5.0, 0.3)),
    "poisson-one": ("(c) Poisson, one V100", False, partial(gamma, 1.0, 1, 5.0, 0.8)),
}
"""What a case is called, whether it needs published records, and how it is made."""


def main() -> None:
    """Print a table for each case."""
    names = [name for name in sys.argv[1:] if name != "--held-apart"]
    draw = HELD_APART if "--held-apart" in sys.argv else CHOSEN_ON
    for name in names or CASES:
        title, needs_records, make = CASES[name]
        if needs_records and not SHARED_DATA.is_dir():
            print(f"{title}: the published records are absent.\n")
            continue
        begin_s = time.monotonic()
        case = make(draw)
        print(f"{title}: {len(case.trace):,} requests; the plan: {plan_in_words(case)}\n")
        controllers = [Controller(policy=policy) for policy in CONTROL_POLICIES]
        runs = controlled_runs(case.problem, case.deployment, case.trace, controllers)
        print_runs(runs)
        print_hindsight(case, runs[0])
        print(f"({time.monotonic() - begin_s:.0f} s)\n", file=sys.stderr)


def plan_in_words(case: Case) -> str:
    """The groups of a deployment with their clocks."""
    groups = [
        f"{', '.join(replica.service for replica in group.replicas)} at"
        f" {'/'.join(str(stage.clock_mhz) for stage in group.stages)} MHz"
        for group in case.deployment.groups
    ]
    parked = sum(pool.num_gpus for pool in case.problem.pools) - len(case.deployment.placed_gpus)
    return "; ".join(groups) + (f"; {parked} parked" if parked else "")


def print_runs(runs: tuple[ControlledRun, ...]) -> None:
    """One row a controller."""
    print(
        "| controller | power, W | attainment of the worst service | target | energy over fixed"
        " | over the bound | changes a minute | most in a minute |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for run in runs:
        worst = min(run.services, key=lambda service: service.attainment - service.target)
        print(
            f"| {run.controller} | {run.power_w:.1f} | {worst.attainment:.2%} | {worst.target:.0%}"
            f" | {run.over_first:.3f} | {run.over_bound:.3f} | {run.changes_per_minute:.1f}"
            f" | {run.most_changes_in_a_minute} |",
            flush=True,
        )
    print()


def print_hindsight(case: Case, fixed: ControlledRun) -> None:
    """The lowest clock for all stages at which this trace's targets are met, as none knows beforehand."""
    for clock in clock_grid(case.problem, case.deployment.groups[0]):
        groups = tuple(
            group.model_copy(
                update={
                    "stages": tuple(stage.model_copy(update={"clock_mhz": clock}) for stage in group.stages)
                }
            )
            for group in case.deployment.groups
        )
        deployment = case.deployment.model_copy(update={"groups": groups})
        rng = trace_rng(0, 0, Purpose.EXECUTING)
        records = simulate(case.problem, deployment, case.trace, rng=rng, num_samples=1)
        if measure(records, case.problem).meets_targets:
            ratio = records.energy_j / fixed.energy_j
            print(f"In hindsight: {clock} MHz throughout, {records.power_w:.1f} W, {ratio:.3f} of fixed.\n")
            return
    print("In hindsight: no clock that is the same throughout meets the targets.\n")


if __name__ == "__main__":
    main()
