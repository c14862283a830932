"""``muplan compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.options import (
    DEFAULT_PROFILES,
    Json,
    Objective,
    Output,
    Plot,
    Profiles,
    Seed,
    TimeLimit,
    parse_names,
    parse_objective,
)
from muplan.errors import EXIT_NO
from muplan.planning.methods.name import MethodName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from muplan.comparison import ComparedPlan
    from muplan.plan import ServicePrediction
    from muplan.planning.compare import Compared

DEFAULT_SOLVERS = "exact,uniform-clock,mu-serve,alpaserve,replicate"


def compare_command(
    workload: Annotated[Path, typer.Argument(help="A workload file; with --controllers a plan.")],
    solvers: Annotated[
        str,
        typer.Option(metavar="METHODS", help="Planning methods, some of those below, separated by commas."),
    ] = DEFAULT_SOLVERS,
    controllers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Compare controllers of a plan's clocks instead: fixed,miad,slack,forecast."
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option("--duration", min=1.0, help="Controllers: seconds to serve; else the workload's."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Controllers: serve the requests of a trace file.")
    ] = None,
    objective: Objective = None,
    time_limit: TimeLimit = 60.0,
    seed: Seed = 0,
    profiles: Profiles = DEFAULT_PROFILES,
    plot: Plot = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Plan WORKLOAD by several methods and hold them side by side, on the same held-apart traces.

    The first method is what the others are held against. Exits with 1 unless its plan meets its targets.
    With --controllers a plan's clocks are controlled in several ways on the same requests, each held
    against the least energy that knowing all arrivals could have reached; exits with 1 unless the first
    controller meets the targets.
    """
    if controllers is not None:
        from muplan.cli.compare_controllers import compare_controllers_command

        compare_controllers_command(
            workload,
            controllers,
            duration_s=duration,
            trace=trace,
            seed=seed,
            profiles=profiles,
            output=output,
            json=json,
        )
        return
    from muplan.cli.console import following, print_json, print_note, print_result
    from muplan.planning.compare import compare
    from muplan.planning.document import make_comparison
    from muplan.planning.solve import with_objective
    from muplan.problem.loading import read_problem
    from muplan.report.plots import check_format, plot_comparison
    from muplan.serde import write_document

    names = parse_names(solvers, "--solvers", tuple(MethodName), "planning method")
    check_format(plot)
    problem = read_problem(workload, profiles=profiles)
    problem = with_objective(problem, parse_objective(objective))
    with following(f"comparing {', '.join(names)} on {workload}") as report:
        compared = compare(problem, solvers=names, time_limit_s=time_limit, seed=seed, report=report)
    folder = output.parent if output is not None else Path()
    document = make_comparison(
        problem, [item.plan for item in compared], seed=seed, workload=workload, folder=folder
    )
    if output is not None:
        write_document(document, output)
    if plot is not None:
        plot_comparison(document, plot)
    if json:
        print_json(document)
    else:
        print_result(*format_comparison(workload, compared))
    for path in (output, plot):
        if path is not None:
            print_note(f"Written: {path}")
    print_note("Search: " + ", ".join(f"{item.plan.solver} {item.search_s:.1f} s" for item in compared) + ".")
    if not document.plans[0].meets_targets:
        raise typer.Exit(EXIT_NO)


def format_comparison(workload: Path, compared: Sequence[Compared]) -> list[RenderableType]:
    """What each plan costs and what it brings; below the tables, where some method's falls short."""
    from rich.markup import escape

    plans = [item.plan for item in compared]
    faults = [
        f"  [bold]{plan.solver}[/]: {escape(fault.subject)} {escape(fault.text)}"
        for plan in plans
        for fault in plan.faults
    ]
    return [
        f"[bold]{workload}[/] planned by {len(plans)} methods, judged on the same traces, which no search has"
        " seen (modelled)",
        _format_costs(plans),
        _format_service(plans),
        *(["What falls short:", *faults] if faults else []),
    ]


def _format_costs(plans: Sequence[ComparedPlan]) -> RenderableType:
    from muplan.cli.console import make_table

    return make_table(
        "What it costs",
        [
            ("method", "left"),
            ("power", "right"),
            ("95 % interval", "right"),
            (f"over {plans[0].solver}", "right"),
            ("95 % interval", "right"),
            ("J/request", "right"),
            ("bound", "right"),
            ("placed", "right"),
            ("parked", "right"),
        ],
        [_cost(plan) for plan in plans],
        caption="bound: of the stated model, where the method has one; else what no placement can beat.",
    )


def _cost(plan: ComparedPlan) -> list[str]:
    prediction = plan.prediction
    if prediction is None:
        return [plan.solver, f"[red]{plan.status}[/]", *["–"] * 7]
    power, over = prediction.power_w, plan.power_over_first
    return [
        plan.solver,
        f"{power.mean:.0f} W",
        f"{power.low:.0f}–{power.high:.0f}",
        f"{over.mean:.2f}×" if over else "–",
        f"{over.low:.3f}–{over.high:.3f}" if over else "–",
        f"{prediction.energy_per_request_j:.2f}",
        _bound(plan),
        f"{len(plan.placed)}",
        f"{len(plan.parked)}",
    ]


def _bound(plan: ComparedPlan) -> str:
    solution = plan.solution
    if solution is None:
        return "–"
    first = solution.achieved[0]
    return f"{first.bound:.0f} W" if first.unit == "W" else f"{first.bound:.4g} {first.unit}"


def _format_service(plans: Sequence[ComparedPlan]) -> RenderableType:
    from muplan.cli.console import make_table

    return make_table(
        "What it brings",
        [
            ("method", "left"),
            ("verdict", "left"),
            ("service nearest to its target", "left"),
            ("attainment", "right"),
            ("95 % interval", "right"),
            ("target", "right"),
            ("goodput", "right"),
        ],
        [_service(plan) for plan in plans],
    )


def _verdict(plan: ComparedPlan, worst: ServicePrediction) -> str:
    """Whether it is a plan; else whether a target is missed, or only a limit on placement or power broken."""
    if plan.meets_targets:
        return "holds"
    is_short = plan.margin(worst) < 0 or worst.attainment.low < worst.attainment.mean - plan.margin(worst)
    return "[red]target missed[/]" if is_short else "[red]limit broken[/]"


def _service(plan: ComparedPlan) -> list[str]:
    prediction = plan.prediction
    if prediction is None:
        return [plan.solver, "[red]no plan[/]", *["–"] * 5]
    worst = min(prediction.services, key=plan.margin)
    attainment = worst.attainment
    return [
        plan.solver,
        _verdict(plan, worst),
        worst.service,
        f"{100 * attainment.mean:.2f} %",
        f"{100 * attainment.low:.2f}–{100 * attainment.high:.2f}",
        f"{100 * (attainment.mean - plan.margin(worst)):.1f} %",
        f"{prediction.goodput_rps.mean:.1f}/s",
    ]
