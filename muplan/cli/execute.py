"""``muplan execute``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from muplan.cli.clock_intent import show_clock_intent
from muplan.cli.options import DEFAULT_PROFILES, Controllable, Json, Output, Profiles, Seed
from muplan.errors import EXIT_MACHINE, EXIT_NO

if TYPE_CHECKING:
    from muplan.plan import Plan
    from muplan.problem.problem import Problem
    from muplan.run import Run
    from muplan.serving.executor import Execution
    from muplan.serving.realtime.executor import Report
    from muplan.workload import Controller, ControlPolicy


def execute_command(
    plan: Annotated[Path, typer.Argument(help="A plan that 'muplan solve' wrote.")],
    backend: Annotated[
        Literal["simulated", "torch", "ray", "http"],
        typer.Option(
            help="What serves the requests: the simulator; worker processes of this host that run the"
            " models in real time, with random weights (needs muplan[torch]); actors on the hosts of a Ray"
            " cluster that do the same (needs muplan[torch,ray]); or servers that are deployed already (needs"
            " muplan[http] and --endpoints)."
        ),
    ] = "simulated",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="The Ray cluster's head node, for --backend ray; else RAY_ADDRESS; else Ray is started here."
        ),
    ] = None,
    endpoints: Annotated[
        Path | None,
        typer.Option(help="Where each replica is served: a file of endpoints, for --backend http."),
    ] = None,
    apply_clocks: Annotated[
        bool,
        typer.Option(
            "--apply-clocks",
            help="With --backend torch: set the GPUs' clocks as the plan and its controller say, and restore"
            " them; needs root, SYS_ADMIN in a container, or zeusd.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --apply-clocks: say what would be done to the clocks, and end."),
    ] = False,
    shared: Annotated[
        bool, typer.Option("--shared", help="With --backend torch: on GPUs that others use.")
    ] = False,
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
    classes: Annotated[
        bool, typer.Option("--classes", help="Show how replies of each class of lengths fared, too.")
    ] = False,
    output: Output = None,
    json: Json = False,
) -> None:
    """Run PLAN and hold what happens against what it predicts; requests are drawn afresh.

    Exits with 1 if a service misses its attainment target (or, where the plan rejects requests to keep
    a power cap, the attainment that the plan predicts), with 3 if the run was broken off or its
    requests were sent late.
    """
    from muplan.cli.console import print_json, print_note, print_result
    from muplan.cli.run_summary import format_run
    from muplan.plan import Plan
    from muplan.problem.loading import read_problem
    from muplan.serde import read_document, write_document, write_text
    from muplan.serving.executor import execute_recorded
    from muplan.serving.records import records_csv
    from muplan.traces.files import read_trace

    _check_options(backend, endpoints=endpoints, ray_address=ray_address, timeline=timeline, plot=plot)
    _check_clock_options(backend, apply_clocks=apply_clocks, dry_run=dry_run, shared=shared)
    document = read_document(plan, Plan)
    problem = read_problem(plan.parent / document.provenance.workload, profiles=profiles, remakes=False)
    check_inputs_of(document, problem, plan)
    if dry_run:
        show_clock_intent(problem, document, controller, is_shared=shared, json=json)
        return
    with _shown(f"executing {plan} ({backend})", backend) as report:
        run_plan = partial(execute_recorded, backend=None)
        if backend == "torch":
            run_plan = _on_workers(problem, document, plan, sets_clocks=apply_clocks, is_shared=shared)
        if backend == "ray":
            run_plan = _on_ray(problem, document, plan, ray_address)
        if endpoints is not None:
            run_plan = _on_servers(problem, document, endpoints)
        execution = run_plan(
            problem,
            document,
            seed=seed,
            duration_s=duration,
            controller=_controller(document, controller),
            trace=read_trace(trace) if trace else None,
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
    if plot is not None and execution.run.power_trace is None:
        print_note("No picture: power was measured as energy, not over time.")
        plot = None
    if plot is not None:
        from muplan.report.plots import plot_run

        plot_run(document, execution.run, plot)
    if json:
        print_json(execution.run)
    else:
        print_result(*format_run(document, execution.run, is_plans_demand=trace is None, classes=classes))
    print_note("Written: " + " ".join(str(file) for file in (path, records, timeline, plot) if file))
    if not execution.run.is_judged:
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
    # Ray tells of a lost host on stdout, which is for the result.
    quiet = redirect_stdout(sys.stderr) if backend == "ray" else nullcontext()
    with counting(text) as count, quiet:
        yield lambda _now_s, done, total: count(done, total)


def _check_options(
    backend: str,
    *,
    endpoints: Path | None,
    ray_address: str | None,
    timeline: Path | None,
    plot: Path | None,
) -> None:
    """Refuse options that do not go with the backend."""
    from muplan.errors import InputError

    if timeline is not None and backend != "simulated":
        raise InputError(
            f"--timeline draws passes as the simulator runs them, not as the {backend} backend did.",
            "Leave it out, or execute on the simulated backend.",
        )
    if plot is not None and backend == "http":
        raise InputError(
            "--plot draws power over time, which the http backend does not have.", "Leave it out."
        )
    if ray_address is not None and backend != "ray":
        raise InputError(f"--ray-address is not for --backend {backend}.", "Leave it out, or --backend ray.")
    if (backend == "http") != (endpoints is not None):
        raise InputError(
            "--backend http and --endpoints FILE go together.",
            "Name the servers in a file of endpoints; docs/executing.md shows one.",
        )


def _check_clock_options(backend: str, *, apply_clocks: bool, dry_run: bool, shared: bool) -> None:
    """Refuse options of GPUs that do not go together."""
    from muplan.errors import InputError

    if (apply_clocks or shared) and backend != "torch":
        raise InputError(
            f"--{'apply-clocks' if apply_clocks else 'shared'} goes with --backend torch alone.",
            "The other backends use no GPU of this host.",
        )
    if dry_run and not apply_clocks:
        raise InputError(
            "--dry-run says what --apply-clocks would do.", "Write --apply-clocks --dry-run, or leave it out."
        )


def _on_servers(problem: Problem, document: Plan, path: Path) -> partial[Execution]:
    """Execution on the servers of a file of endpoints."""
    import os

    from muplan.serving.http.execution import execute_on_servers, read_endpoints

    endpoints, targets = read_endpoints(path, problem, document, os.environ)
    return partial(execute_on_servers, endpoints=endpoints, targets=targets)


def _on_workers(
    problem: Problem, document: Plan, path: Path, *, sets_clocks: bool, is_shared: bool
) -> partial[Execution]:
    """Execution on worker processes of this host."""
    from muplan.serving.executor import execute_recorded
    from muplan.serving.workers.machine import open_backend

    directory = (path.parent / document.provenance.workload).parent
    backend = open_backend(
        problem, document, directory=directory, sets_clocks=sets_clocks, is_shared=is_shared
    )
    return partial(execute_recorded, backend=backend)


def _on_ray(problem: Problem, document: Plan, path: Path, address: str | None) -> partial[Execution]:
    """Execution on actors of Ray."""
    from muplan.serving.executor import execute_recorded
    from muplan.serving.ray.backend import open_backend

    directory = (path.parent / document.provenance.workload).parent
    backend = open_backend(problem, document, directory=directory, address=address)
    return partial(execute_recorded, backend=backend)


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
