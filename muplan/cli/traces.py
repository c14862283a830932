"""``muplan trace``: make, import and describe traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.options import DEFAULT_PROFILES, Json, Output, Profiles, Seed

if TYPE_CHECKING:
    from muplan.traces.summary import LengthSummary

app = typer.Typer(help="Make, import and describe traces of requests.", no_args_is_help=True)
importers = typer.Typer(help="Import a published trace.", no_args_is_help=True)
app.add_typer(importers, name="import")


@app.command("make")
def make_trace(
    workload: Annotated[Path, typer.Argument(help="A workload file.")],
    duration: Annotated[
        float, typer.Option("--duration", help="Length of the trace in seconds, above 0.")
    ] = 600.0,
    seed: Seed = 0,
    profiles: Profiles = DEFAULT_PROFILES,
    output: Output = None,
) -> None:
    """Draw a trace from the demands of a workload."""
    from muplan.cli.console import print_note
    from muplan.errors import InputError
    from muplan.problem.loading import read_problem
    from muplan.traces.files import write_trace
    from muplan.traces.generate import generate_trace, trace_rng

    if not 0 < duration < float("inf"):
        raise InputError(f"--duration {duration:g} is no length of a trace.", "Give seconds above 0.")
    problem = read_problem(workload, profiles=profiles)
    trace = generate_trace(problem.services, duration_s=duration, rng=trace_rng(seed, 0))
    path = output or Path(f"{problem.workload.name}.trace.csv")
    write_trace(trace, path)
    print_note(f"Written: {path} ({len(trace)} requests)")


@importers.command("azure")
def import_azure_trace(
    file: Annotated[Path, typer.Argument(help="A CSV of the Azure LLM inference dataset (2023).")],
    service: Annotated[str, typer.Option(help="The service its requests are for.")],
    output: Output = None,
) -> None:
    """Import a CSV of the Azure LLM inference dataset: TIMESTAMP, ContextTokens, GeneratedTokens."""
    from muplan.cli.console import print_note
    from muplan.traces.files import write_trace
    from muplan.traces.formats.azure import import_azure

    trace = import_azure(file, service)
    path = output or Path(f"{service}.trace.csv")
    write_trace(trace, path)
    print_note(f"Written: {path} ({len(trace)} requests)")


@app.command("describe")
def describe(
    file: Annotated[Path, typer.Argument(help="A trace file.")],
    json: Json = False,
) -> None:
    """Describe a trace: rate, burstiness and lengths of each service."""
    from muplan.cli.console import make_table, print_json, print_result
    from muplan.traces.files import read_trace
    from muplan.traces.summary import describe_trace

    summary = describe_trace(read_trace(file))
    if json:
        print_json(summary)
        return
    rows = [
        [
            row.service,
            f"{row.num_requests}",
            f"{row.rate_rps:.3g}",
            f"{row.cv:.2f}" if row.cv is not None else "–",
            _format_lengths(row.input_tokens),
            _format_lengths(row.output_tokens),
        ]
        for row in summary.services
    ]
    columns = [
        ("service", "left"),
        ("requests", "right"),
        ("rate 1/s", "right"),
        ("CV", "right"),
        ("input mean/p50/p99", "right"),
        ("output mean/p50/p99", "right"),
    ]
    print_result(make_table(f"{file.name}: {summary.duration_s:.0f} s", columns, rows))


def _format_lengths(lengths: LengthSummary | None) -> str:
    if lengths is None:
        return "–"
    return f"{lengths.mean:.0f} / {lengths.p50:.0f} / {lengths.p99:.0f}"
