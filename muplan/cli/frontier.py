"""``muplan solve --frontier``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from muplan.errors import EXIT_NO, InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.frontier import Axis, Frontier, FrontierPoint
    from muplan.planning.methods.name import MethodName
    from muplan.problem.problem import Problem

_HEADERS = {"attainment": "target", "slo-scale": "limits", "gpus": "GPUs"}
_CAPTIONS = {
    "attainment": "target: attainment that every service must reach.",
    "slo-scale": "limits: multiple of all latency limits of the workload.",
    "gpus": "GPUs: how many may be used, of every pool in proportion; the others are parked.",
}


def run_frontier(
    problem: Problem,
    *,
    axis: Axis,
    values: tuple[float, ...],
    workload: Path,
    solver: MethodName,
    time_limit_s: float,
    seed: int,
    plot: Path | None,
    output: Path | None,
    json: bool,
) -> None:
    """Trace, write, draw and print a frontier; exits with 1 if no value has a plan."""
    from muplan.cli.console import following, print_json, print_note, print_result
    from muplan.planning.document import make_frontier
    from muplan.planning.frontier import trace_frontier
    from muplan.report.plots import plot_frontier
    from muplan.serde import write_document

    with following(f"tracing power:{axis} of {workload}") as report:
        points = trace_frontier(
            problem, axis, values=values, solver=solver, time_limit_s=time_limit_s, seed=seed, report=report
        )
    folder = output.parent if output is not None else Path()
    frontier = make_frontier(
        problem, points, axis=axis, solver=solver, seed=seed, workload=workload, folder=folder
    )
    if output is not None:
        write_document(frontier, output)
    if plot is not None:
        plot_frontier(frontier, plot)
    if json:
        print_json(frontier)
    else:
        print_result(*format_frontier(frontier))
    for path in (output, plot):
        if path is not None:
            print_note(f"Written: {path}")
    if not frontier.undominated:
        raise typer.Exit(EXIT_NO)


def parse_frontier(text: str) -> Axis:
    """Parse ``"power:attainment"``; InputError names what is allowed."""
    from muplan.frontier import Axis

    allowed = [f"power:{axis}" for axis in Axis]
    if text not in allowed:
        raise InputError(f"--frontier {text!r} is no frontier.", f"Choose one of {', '.join(allowed)}.")
    return Axis(text.removeprefix("power:"))


def parse_steps(text: str | None) -> tuple[float, ...]:
    """Parse ``"0.9,0.99"``; none where the option is absent. InputError where it is no list of numbers."""
    if text is None:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--steps {text!r} is not a list of numbers.", "Write it as in: --steps 0.9,0.99"
        ) from None


def format_frontier(frontier: Frontier) -> list[RenderableType]:
    """One row a plan of the frontier, the strictest first; below, what is not on it."""
    from muplan.cli.console import make_table

    shown = frontier.undominated
    table = make_table(
        f"{frontier.name}: least power against {frontier.axis} ({frontier.solver}, modelled)",
        [
            (_HEADERS[frontier.axis], "right"),
            ("power", "right"),
            ("95 % interval", "right"),
            ("over least", "right"),
            ("worst attainment", "right"),
            ("J/request", "right"),
            ("placed", "right"),
            ("parked", "right"),
            ("gap", "right"),
        ],
        [_row(frontier.axis, point, shown[-1]) for point in shown],
        caption=f"{_CAPTIONS[frontier.axis]} All plans are judged on the same traces, which none has seen;"
        " gap: to the bound of the plan's stated model.",
    )
    left_out = [_label(frontier.axis, point.value) for point in frontier.points if point.is_dominated]
    without = [_label(frontier.axis, point.value) for point in frontier.points if point.prediction is None]
    return [
        *([table] if shown else []),
        *([f"A stricter plan costs no more than that for {', '.join(left_out)}."] if left_out else []),
        *([f"No plan was found for {', '.join(without)}."] if without else []),
    ]


def _row(axis: Axis, point: FrontierPoint, cheapest: FrontierPoint) -> list[str]:
    prediction, least, attainment = point.prediction, cheapest.prediction, point.worst_attainment
    if prediction is None or least is None or attainment is None or point.solution is None:
        raise ValueError("only plans stand on a frontier")
    power = prediction.power_w
    return [
        _label(axis, point.value),
        f"{power.mean:.0f} W",
        f"{power.low:.0f}–{power.high:.0f}",
        f"{power.mean / least.power_w.mean:.3f}×",
        f"{100 * attainment:.2f} %",
        f"{prediction.energy_per_request_j:.2f}",
        f"{len(point.placed)}",
        f"{len(point.parked)}",
        f"{100 * point.solution.achieved[0].gap:.2f} %",
    ]


def _label(axis: Axis, value: float) -> str:
    return {"attainment": f"{100 * value:g} %", "slo-scale": f"{value:g}×", "gpus": f"{value:g}"}[axis]
