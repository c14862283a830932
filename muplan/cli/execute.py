"""``muplan execute``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from muplan.cli.options import DEFAULT_PROFILES, Controllable, Json, Output, Profiles, Seed
from muplan.errors import EXIT_MACHINE, EXIT_NO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.plan import Plan
    from muplan.problem.problem import Problem
    from muplan.run import Comparison, RealTime, Run, ServiceOutcome
    from muplan.serving.realtime.backend import Backend
    from muplan.serving.realtime.executor import Report
    from muplan.workload import Controller, ControlPolicy

MATCH = {
    True: "[green]power and attainment as predicted[/]",
    False: "[yellow]power or attainment not as predicted[/]",
}


def execute_command(
    plan: Annotated[Path, typer.Argument(help="A plan that 'muplan solve' wrote.")],
    backend: Annotated[
        Literal["simulated", "torch"],
        typer.Option(
            help="What serves the requests: the simulator, or worker processes of this host that run the"
            " models in real time, with random weights; needs muplan[torch]."
        ),
    ] = "simulated",
    duration: Annotated[
        float | None, typer.Option("--duration", min=1.0, help="Length in seconds; else the workload's.")
    ] = None,
    controller: Annotated[Controllable | None, typer.Option(help="Clock control; else the plan's.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Serve the requests of a trace file.")] = None,
    seed: Seed = 0,
    profiles: Profiles = DEFAULT_PROFILES,
    records: Annotated[Path | None, typer.Option(help="Write every request's record as CSV.")] = None,
    timeline: Annotated[
        Path | None,
        typer.Option(help="Write passes, queues, clocks and power for Perfetto (trace-event JSON)."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw power and clocks over time.")] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Run PLAN and hold what happens against what it predicts; requests are drawn afresh.

    Exits with 1 if a service misses its attainment target (or, where the plan rejects requests to keep
    a power cap, the attainment that the plan predicts), with 3 if the run was broken off.
    """
    from muplan.cli.console import print_json, print_note, print_result
    from muplan.errors import InputError
    from muplan.plan import Plan
    from muplan.problem.loading import read_problem
    from muplan.serde import read_document, write_document, write_text
    from muplan.serving.executor import execute_recorded
    from muplan.serving.records import records_csv
    from muplan.traces.files import read_trace

    if timeline is not None and backend != "simulated":
        raise InputError(
            f"--timeline draws passes as the simulator runs them, not as the {backend} backend did.",
            "Leave it out, or execute on the simulated backend.",
        )
    document = read_document(plan, Plan)
    problem = read_problem(plan.parent / document.provenance.workload, profiles=profiles, remakes=False)
    check_inputs_of(document, problem, plan)
    with _shown(f"executing {plan} ({backend})", backend) as report:
        execution = execute_recorded(
            problem,
            document,
            seed=seed,
            duration_s=duration,
            controller=_controller(document, controller),
            trace=read_trace(trace) if trace else None,
            backend=None if backend == "simulated" else _torch_backend(problem, document, plan),
            report=report,
        )
    path = output or Path("runs") / f"{document.name}.json"
    write_document(execution.run, path)
    if records is not None:
        write_text(records_csv(execution.records), records)
    if timeline is not None:
        from muplan.report.timeline import covered_s, timeline_json

        write_text(timeline_json(execution.records, problem, document.deployment), timeline)
        if covered_s(execution.records) < execution.records.duration_s:
            print_note(f"The timeline shows the first {covered_s(execution.records):.1f} s.")
    if plot is not None:
        from muplan.report.plots import plot_run

        plot_run(document, execution.run, plot)
    if json:
        print_json(execution.run)
    else:
        print_result(*format_run(document, execution.run, is_plans_demand=trace is None))
    print_note("Written: " + " ".join(str(file) for file in (path, records, timeline, plot) if file))
    if execution.run.is_partial:
        raise typer.Exit(EXIT_MACHINE)
    if not _is_good(document, execution.run):
        raise typer.Exit(EXIT_NO)


@contextmanager
def _shown(text: str, backend: str) -> Iterator[Report | None]:
    """Show that it is under way; in real time, how many requests are done."""
    from muplan.cli.console import counting, progress

    if backend == "simulated":
        with progress(text):
            yield None
        return
    with counting(text) as count:
        yield lambda _now_s, done, total: count(done, total)


def _torch_backend(problem: Problem, document: Plan, path: Path) -> Backend:
    from muplan.serving.workers.machine import open_backend

    directory = (path.parent / document.provenance.workload).parent
    return open_backend(problem, document, directory=directory)


def _is_good(plan: Plan, run: Run) -> bool:
    """Whether every service attains its target; of a plan that rejects requests, what it predicted."""
    if plan.deployment.admitted:
        return all(service.attainment.observed >= service.attainment.low for service in run.services)
    return run.meets_targets


def check_inputs_of(document: Plan, problem: Problem, path: Path) -> None:
    """Refuse to run a plan with other inputs than it was made with, or on GPUs and services that are not."""
    from muplan.errors import InputError
    from muplan.verify.claims import check_inputs
    from muplan.verify.constraints import check_placement

    found = [*check_inputs(document, problem), *check_placement(problem, document.deployment)]
    if found:
        lines = "\n".join(f"  {violation.subject}: {violation.message}" for violation in found)
        raise InputError(
            f"{path} does not fit its inputs:\n{lines}", "Solve the workload again, or restore its inputs."
        )


def _controller(document: Plan, policy: ControlPolicy | None) -> Controller | None:
    """The plan's controller with another policy; None leaves it as it is."""
    if policy is None:
        return None
    return document.deployment.serving.controller.model_copy(update={"policy": policy})


def format_run(plan: Plan, run: Run, *, is_plans_demand: bool = True) -> list[RenderableType]:
    """Services, then power with the savings that the plan claims, then the verdict.

    Parameters
    ----------
    is_plans_demand
        Whether the run served the demand that the baselines were simulated with.
    """
    from muplan.cli.console import format_share

    asked = [service for service in run.services if service.num_requests]
    met = sum(service.meets_target for service in asked)
    verdict = "[green]targets met[/]" if run.meets_targets else "[red]targets missed[/]"
    if not asked:
        verdict = "[yellow]no requests[/]"
    if run.is_partial:
        verdict = "[yellow]partial[/]: broken off before all requests were answered, not judged"
    energy = run.energy
    total = energy.busy_j + energy.loaded_j + energy.parked_j
    lines = [
        f"Verdict: {verdict}."
        if run.is_partial
        else f"Verdict: {verdict} ({met} of {len(asked)} services), {MATCH[run.is_as_predicted]}.",
        f"Energy: {format_share(energy.busy_j / total, 0)} busy,"
        f" {format_share(energy.loaded_j / total, 0)} loaded and idle,"
        f" {format_share(energy.parked_j / total, 0)} parked;"
        f" {len(run.clock_commands)} clock changes ({run.controller} clocks).",
        f"Power over {run.power_trace.width_s:.1f} s: p99 {run.power_p99_w:.0f} W, peak"
        f" {run.power_peak_w:.0f} W. Queues: {_saturation(run)}.",
    ]
    if run.real_time is not None:
        lines += _format_real_time(run.real_time)
    return [format_services(run), format_savings(plan, run, is_plans_demand=is_plans_demand), *lines]


def _format_real_time(real_time: RealTime) -> list[str]:
    """What is to be known of a run in real time."""
    lines = [f"Decisions took {1e6 * real_time.decision_s:.0f} µs a request (measured)."]
    if not real_time.sets_clocks:
        lines.append("Clocks were not set: times are those of the machine's own clocks.")
    if real_time.num_lost_passes:
        lines.append(f"{real_time.num_lost_passes} passes were lost with their workers, and run again.")
    return lines


def _saturation(run: Run) -> str:
    """The groups whose queues stand or grow."""
    states = {
        state: [group.group for group in run.groups if group.saturation == state]
        for state in ("overloaded", "backlogged")
    }
    told = [f"{', '.join(names)} {state}" for state, names in states.items() if names]
    return "; ".join(told) or "all stable"


def format_services(run: Run) -> RenderableType:
    """One row a service: attainment against target and prediction, latency percentiles."""
    from muplan.cli.console import make_table

    has_tokens = any(service.ttft is not None or service.tpot is not None for service in run.services)
    latencies = ["E2E p50", "E2E p99", "TTFT p99", "TPOT p99"] if has_tokens else ["p50", "p99"]
    rows = [_format_service(service)[: 6 + len(latencies)] for service in run.services]
    return make_table(
        f"{run.plan}: {run.backend} run of {run.duration_s:.0f} s, seed {run.seed} ({run.label})",
        [
            ("service", "left"),
            ("requests", "right"),
            ("attainment", "right"),
            ("target", "right"),
            ("predicted", "right"),
            ("as predicted", "right"),
            *((header, "right") for header in latencies),
        ],
        rows,
    )


def _format_service(service: ServiceOutcome) -> list[str]:
    """Figures of a service; of one without requests there is nothing to hold against target or prediction."""
    from muplan.cli.console import format_seconds, format_share

    attainment = service.attainment
    observed = f"[{'green' if service.meets_target else 'red'}]{format_share(attainment.observed, 2)}[/]"
    within = "yes" if attainment.is_within else "[yellow]no[/]"
    latencies_s = (
        service.latency.p50_s if service.latency else None,
        service.latency.p99_s if service.latency else None,
        service.ttft.p99_s if service.ttft else None,
        service.tpot.p99_s if service.tpot else None,
    )
    return [
        service.service,
        f"{service.num_requests}",
        observed if service.num_requests else "–",
        format_share(service.target, 1),
        format_share(attainment.predicted.mean, 2),
        within if service.num_requests else "–",
        *(format_seconds(latency_s) if latency_s is not None else "–" for latency_s in latencies_s),
    ]


def format_savings(plan: Plan, run: Run, *, is_plans_demand: bool = True) -> RenderableType:
    """Power of the run beside the plan's prediction and its baselines; ratios where demands are equal."""
    from muplan.cli.console import make_table

    rows = [["this run", f"{run.power_w.observed:.0f} W", _band(run.power_w), ""]]
    rows += [
        [
            row.name,
            f"{row.power_w:.0f} W" if row.power_w is not None else "–",
            "bound"
            if row.is_bound
            else {True: "meets targets", False: "misses targets", None: "–"}[row.meets_targets],
            f"{row.power_w / run.power_w.observed:.2f}×" if row.power_w is not None else "–",
        ]
        for row in plan.baselines
    ]
    columns = [("deployment", "left"), ("power", "right"), ("", "left"), ("over this run", "right")]
    shown = len(columns) if is_plans_demand else len(columns) - 1
    return make_table(
        f"Power (modelled{'' if run.real_time is None else ', while stages computed as measured'})",
        columns[:shown],
        [row[:shown] for row in rows],
        caption="The baselines were simulated by the same simulator on the plan's judging traces.",
    )


def _band(comparison: Comparison) -> str:
    return f"predicted {comparison.low:.0f}–{comparison.high:.0f} W"
