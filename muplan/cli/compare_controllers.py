"""``muplan compare --controllers``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from muplan.cli.options import parse_names
from muplan.errors import EXIT_NO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.control_comparison import ControlComparison, ControlledRun


def compare_controllers_command(
    plan: Path,
    controllers: str,
    *,
    duration_s: float | None,
    trace: Path | None,
    seed: int,
    profiles: Path,
    output: Path | None,
    json: bool,
) -> None:
    """Serve the same requests under several controllers; print, and write where asked."""
    from muplan.cli.console import print_json, print_note, print_result, progress
    from muplan.cli.execute import check_inputs_of
    from muplan.plan import Plan
    from muplan.problem.loading import read_problem
    from muplan.serde import read_document, write_document
    from muplan.serving.controllers import compare_controllers
    from muplan.traces.files import read_trace
    from muplan.workload import CONTROL_POLICIES

    policies = parse_names(controllers, "--controllers", CONTROL_POLICIES, "controller")
    document = read_document(plan, Plan)
    problem = read_problem(plan.parent / document.provenance.workload, profiles=profiles, remakes=False)
    check_inputs_of(document, problem, plan)
    with progress(f"comparing {', '.join(policies)} on {plan}"):
        comparison = compare_controllers(
            problem,
            document,
            policies,
            seed=seed,
            duration_s=duration_s,
            trace=read_trace(trace) if trace else None,
        )
    if output is not None:
        write_document(comparison, output)
    if json:
        print_json(comparison)
    else:
        print_result(*format_controllers(comparison))
    if output is not None:
        print_note(f"Written: {output}")
    if not comparison.runs[0].meets_targets:
        raise typer.Exit(EXIT_NO)


def format_controllers(comparison: ControlComparison) -> list[RenderableType]:
    """One row a controller: energy, attainment, changes, and what is above the bound."""
    from muplan.cli.console import make_table

    first = comparison.runs[0].controller
    table = make_table(
        f"{comparison.plan}: controllers on the same requests of {comparison.duration_s:.0f} s, seed"
        f" {comparison.seed} (modelled)",
        [
            ("controller", "left"),
            ("energy", "right"),
            (f"over {first}", "right"),
            ("over bound", "right"),
            ("nearest to target", "left"),
            ("attainment", "right"),
            ("target", "right"),
            ("changes/min", "right"),
            ("most", "right"),
        ],
        [_row(run) for run in comparison.runs],
        caption="bound: the least energy, had all arrivals been known; of runs that meet their targets."
        " most: of one stage in one minute.",
    )
    return [table]


def _row(run: ControlledRun) -> list[str]:
    worst = min(run.services, key=lambda service: service.attainment - service.target)
    shade = "green" if run.meets_targets else "red"
    return [
        run.controller,
        f"{run.energy_j / 1000.0:.1f} kJ",
        f"{run.over_first:.3f}×",
        f"{run.over_bound:.3f}×" if run.meets_targets else "–",
        worst.service,
        f"[{shade}]{100 * worst.attainment:.2f} %[/]",
        f"{100 * worst.target:.1f} %",
        f"{run.changes_per_minute:.1f}",
        f"{run.most_changes_in_a_minute}",
    ]
