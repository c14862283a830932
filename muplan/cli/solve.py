"""``muplan solve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.frontier import parse_frontier, parse_steps, run_frontier
from muplan.cli.options import (
    DEFAULT_PROFILES,
    Json,
    Objective,
    Output,
    Plot,
    Profiles,
    Seed,
    TimeLimit,
    parse_objective,
)
from muplan.errors import EXIT_NO, InputError
from muplan.planning.methods.name import DESCRIPTIONS, GOODPUT_SEARCH, STATED_MODEL, MethodName

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.plan import Baseline, GoalSummary, Group, Plan, ServicePrediction
    from muplan.planning.explain.conflict import ConflictSet
    from muplan.planning.solve import Refused

MAX_SHARES_SHOWN = 4


def solve_command(
    workload: Annotated[Path, typer.Argument(help="A workload file.")],
    solver: Annotated[
        MethodName,
        typer.Option(metavar="METHOD", help="Planning method, one of those below."),
    ] = MethodName.EXACT,
    objective: Objective = None,
    time_limit: TimeLimit = 60.0,
    seed: Seed = 0,
    profiles: Profiles = DEFAULT_PROFILES,
    write_lp: Annotated[
        Path | None, typer.Option(help="Write the first mathematical programme as an LP file.")
    ] = None,
    frontier: Annotated[
        str | None,
        typer.Option(
            help="Trace the plans of least power against attainment targets, multiples of all latency limits,"
            " or GPUs used: power:attainment, power:slo-scale or power:gpus.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Values for --frontier, separated by commas; else a ladder.", show_default=False),
    ] = None,
    plot: Plot = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Find the deployment of least power (or most goodput) for WORKLOAD, and write it as a plan.

    Exits with 1, and writes no plan, if there is none: the demands that conflict are named. With --frontier
    it finds one for every step, and writes them only where -o says.
    """
    from muplan.cli.console import following, print_json, print_note, print_result
    from muplan.planning.document import make_plan
    from muplan.planning.solve import Refused, solve, with_objective, write_program
    from muplan.problem.loading import read_problem
    from muplan.report.plots import check_format
    from muplan.serde import write_document, write_text

    goals, values = parse_objective(objective), parse_steps(steps)
    axis = parse_frontier(frontier) if frontier is not None else None
    if axis is None and (values or plot):
        raise InputError("--steps and --plot belong to --frontier.", "Add --frontier power:attainment.")
    check_format(plot)
    problem = read_problem(workload, profiles=profiles)
    if write_lp is not None:
        write_text(write_program(problem, objective=goals), write_lp)
        print_note(f"Written: {write_lp}")
    if axis is not None:
        run_frontier(
            with_objective(problem, goals),
            axis=axis,
            values=values,
            workload=workload,
            solver=solver,
            time_limit_s=time_limit,
            seed=seed,
            plot=plot,
            output=output,
            json=json,
        )
        return
    with following(f"solving {workload}") as report:
        result = solve(
            problem, solver=solver, objective=goals, time_limit_s=time_limit, seed=seed, report=report
        )
    if isinstance(result, Refused):
        if json:
            print_json(result.conflict)
        else:
            print_result(*format_refusal(workload, solver, result))
        raise typer.Exit(EXIT_NO)
    path = output or Path("plans") / f"{problem.workload.name}.json"
    plan = make_plan(problem, result, workload=workload, folder=path.parent)
    write_document(plan, path)
    if json:
        print_json(plan)
    else:
        print_result(*format_plan(plan))
    print_note(f"Written: {path}")
    if goals and tuple(goals) != problem.workload.objective:
        print_note(
            f"It was made for --objective {','.join(goals)}: `muplan verify` holds plans to the objective"
            " that their workload states; state it there."
        )


def format_refusal(workload: Path, solver: str, refused: Refused) -> list[str]:
    """Why there is no plan, and what would help."""
    from rich.markup import escape

    lines = [f"[bold red]{refused.status}[/]: {solver} finds no plan for {workload}."]
    for item in refused.conflict.sets:
        lines += ["", f"These demands conflict{_basis(item)}:"]
        lines += [f"  [bold]{escape(demand.subject)}[/] {escape(demand.text)}" for demand in item.demands]
        lines += [f"  {escape(item.text)}"]
        if item.changes:
            lines += [_CHANGES[item.criterion]]
            lines += [f"  {escape(change.text)}" for change in item.changes]
    if len(refused.conflict.sets) > 1 and refused.conflict.fix:
        lines += ["", "Together these changes resolve all of it, as far as told above:"]
        lines += [f"  {escape(change.text)}" for change in refused.conflict.fix]
    return lines


_CHANGES = {
    "full-utilisation": "One of these changes is needed, the smallest first; with waits, perhaps more of it:",
    "planner": "Any of these changes resolves it, the smallest first:",
    "simulation": "Any of these changes may resolve it:",
}


def _basis(item: ConflictSet) -> str:
    """What judged a set of demands, and whether one of them could be left out."""
    judge = {
        "full-utilisation": "proven for the model at full utilisation",
        "planner": "as the planner finds",
        "simulation": "in simulation",
    }[item.criterion]
    least = "none of them can be left out" if item.is_minimal else "perhaps fewer would"
    return f" ({judge}; {least})"


def format_plan(plan: Plan) -> list[RenderableType]:
    """Groups, services, baselines, then reasons."""
    from rich.markup import escape

    solution = plan.solution
    figures = "; then ".join(_figures(item) for item in solution.achieved)
    rounds = f"{solution.guard_rounds} rounds of guard and simulation"
    if solution.solver == "placement":
        headline = (
            f"[bold]{plan.name}[/]: found by placement and search under simulation; no solution of the stated"
            f" model held ({rounds}). Simulated in training against the per-operator oracle: {figures}"
        )
    elif solution.solver == GOODPUT_SEARCH:
        headline = (
            f"[bold]{plan.name}[/]: placements searched under simulation; serving sheds what would be late."
            f" In training, against all that is offered: {figures}"
        )
    elif solution.solver not in STATED_MODEL:
        headline = (
            f"[bold]{plan.name}[/]: made by {solution.solver} ({DESCRIPTIONS[MethodName(solution.solver)]})."
            f" Simulated in training against a bound that no placement can beat: {figures}"
        )
    else:
        headline = (
            f"[bold]{plan.name}[/]: {solution.status} for the stated model under its queueing guard:"
            f" {figures} ({solution.solver} solver, {rounds})"
        )
    if plan.demand_factor != 1.0:
        headline += f". Simulation let it hold {plan.demand_factor:.4g} × demand: all below is for that"
    reasons = [f"  [bold]{escape(reason.subject)}[/]: {escape(reason.text)}" for reason in plan.reasons]
    return [
        headline,
        format_groups(plan),
        format_services(plan),
        format_baselines(plan),
        *(["Why:", *reasons] if reasons else []),
    ]


def _figures(item: GoalSummary) -> str:
    """Value, bound and gap of a goal in its unit."""
    return (
        f"{item.value:.4g} {item.unit}, bound {item.bound:.4g} {item.unit}, gap {100 * item.gap:.2f} %"
        if item.unit != "W"
        else f"{item.value:.1f} W, bound {item.bound:.1f} W, gap {100 * item.gap:.2f} %"
    )


def format_groups(plan: Plan) -> RenderableType:
    """One row a group: GPUs, shape, clocks, services with their share of the demand."""
    from muplan.cli.console import make_table

    rows = [
        [
            group.name,
            _gpus(group),
            f"{group.tensor_parallel} × {len(group.stages)}",
            "/".join(dict.fromkeys(f"{stage.clock_mhz}" for stage in group.stages)) + " MHz",
            _hosted(group),
        ]
        for group in plan.deployment.groups
    ]
    return make_table(
        f"Groups: {len(plan.deployment.placed_gpus)} GPUs placed, {len(plan.parked)} parked",
        [
            ("group", "left"),
            ("GPUs", "left"),
            ("tensor × stages", "right"),
            ("clock", "right"),
            ("hosts (share of the service's demand)", "left"),
        ],
        rows,
    )


def _hosted(group: Group) -> str:
    """Services with their shares; the names alone where there are many."""
    if len(group.replicas) > MAX_SHARES_SHOWN:
        return ", ".join(sorted(replica.service for replica in group.replicas))
    return ", ".join(f"{replica.service} {100 * replica.share:.0f} %" for replica in group.replicas)


def _gpus(group: Group) -> str:
    names = group.gpus
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def format_services(plan: Plan) -> RenderableType:
    """One row a service: predicted attainment with its interval, latency percentiles."""
    from muplan.cli.console import format_seconds, make_table

    prediction = plan.prediction
    has_tokens = any(service.ttft_p99_s is not None for service in prediction.services)

    def row(service: ServicePrediction) -> list[str]:
        attainment = service.attainment
        tokens = [
            format_seconds(value) if value is not None else "–"
            for value in (service.ttft_p99_s, service.tpot_p99_s)
        ]
        return [
            service.service,
            f"{service.rate_rps:.1f}/s",
            f"{100 * attainment.mean:.2f} %",
            f"{100 * attainment.low:.2f}–{100 * attainment.high:.2f}",
            f"{100 * service.target:.1f} %",
            format_seconds(service.latency_p50_s),
            format_seconds(service.latency_p99_s),
            *(tokens if has_tokens else []),
        ]

    columns = [
        ("service", "left"),
        ("rate", "right"),
        ("attainment", "right"),
        ("95 % interval", "right"),
        ("target", "right"),
        ("E2E p50", "right"),
        ("E2E p99", "right"),
        *([("TTFT p99", "right"), ("TPOT p99", "right")] if has_tokens else []),
    ]
    return make_table(
        f"Predicted service ({prediction.label}: {prediction.replications} simulations of"
        f" {prediction.duration_s:.0f} s on traces the search has not seen)",
        columns,
        [row(service) for service in prediction.services],
    )


def format_baselines(plan: Plan) -> RenderableType:
    """The panel: power, worst attainment, energy per request, and the plan's saving against each."""
    from muplan.cli.console import make_table

    def row(baseline: Baseline) -> list[str]:
        if baseline.power_w is None:
            return [baseline.name, "none found", "–", "–", "–"]
        mark = {True: "", False: " [red]misses[/]", None: ""}[baseline.meets_targets]
        attainment = f"{100 * baseline.attainment:.2f} %{mark}" if baseline.attainment is not None else "–"
        energy = (
            f"{baseline.energy_per_request_j:.2f} J" if baseline.energy_per_request_j is not None else "–"
        )
        saving = f"{baseline.saving:.2f}×" if baseline.saving is not None else "–"
        power = f"{baseline.power_w:.0f} W" + (" (bound)" if baseline.is_bound else "")
        return [baseline.name, power, attainment, energy, saving]

    power = plan.prediction.power_w
    return make_table(
        f"Power (modelled): {power.mean:.0f} W, 95 % interval {power.low:.0f}–{power.high:.0f} W",
        [
            ("deployment", "left"),
            ("power", "right"),
            ("worst attainment", "right"),
            ("energy/request", "right"),
            ("over the plan", "right"),
        ],
        [row(baseline) for baseline in plan.baselines],
    )
