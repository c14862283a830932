"""``muplan trace``: make, convert and describe traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli import trace_import
from muplan.cli.options import DEFAULT_PROFILES, Json, Output, Plot, Profiles, Seed

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.traces.summary import LengthSummary, TraceSummary

app = typer.Typer(help="Make, import, convert and describe traces of requests.", no_args_is_help=True)
app.add_typer(trace_import.app, name="import")

_CAPTION = "CV: of the intervals. I(t): variance / mean of the requests in windows of t. Poisson: 1 and 1."


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


@app.command("convert")
def convert(
    files: Annotated[list[Path], typer.Argument(help="Trace files; several are laid over each other.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write.", show_default=False)],
    service: Annotated[
        str | None, typer.Option("--service", help="Keep the requests of this service alone.")
    ] = None,
    start: Annotated[float, typer.Option("--start", help="Cut off what comes before, seconds.")] = 0.0,
    stop: Annotated[
        float | None, typer.Option("--stop", help="Cut off what comes from there on, seconds.")
    ] = None,
    keep: Annotated[float, typer.Option("--keep", help="Keep each request with this probability.")] = 1.0,
    multiply: Annotated[
        float, typer.Option("--multiply", help="Multiply the rate; time stays as it is.")
    ] = 1.0,
    faster: Annotated[
        float, typer.Option("--faster", help="Divide all times: as many requests in less time.")
    ] = 1.0,
    seed: Seed = 0,
) -> None:
    """Cut, thin, multiply, speed up, lay over each other: traces in, one trace out.

    The operations are done in the order of the options: --service, --start,
    --stop to every file, the others to all of them laid over each other.
    """
    from muplan.cli.console import print_note
    from muplan.errors import InputError
    from muplan.traces.files import read_trace, write_trace
    from muplan.traces.generate import trace_rng
    from muplan.traces.operations import convert_traces

    if not 0.0 < faster < float("inf"):
        raise InputError(f"--faster {faster:g} is no factor of speed.", "Give a finite factor above 0.")
    traces = [read_trace(file) for file in files]
    trace = convert_traces(
        traces,
        service=service,
        start_s=start,
        stop_s=stop,
        keep=keep,
        multiply_by=multiply,
        faster_by=faster,
        rng=trace_rng(seed, 0),
    )
    write_trace(trace, output)
    print_note(f"Written: {output} ({len(trace)} requests)")


@app.command("describe")
def describe(
    file: Annotated[Path, typer.Argument(help="A trace file.")],
    plot: Plot = None,
    json: Json = False,
) -> None:
    """Describe a trace: rate, burstiness and lengths of each service.

    CV is the coefficient of variation of the inter-arrival times. I(t), the
    index of dispersion, is variance over mean of the requests in windows of t.
    Both are 1 for a Poisson process.
    """
    from muplan.cli.console import print_json, print_note, print_result
    from muplan.report.plots import check_format
    from muplan.report.trace_plot import plot_trace
    from muplan.traces.files import read_trace
    from muplan.traces.summary import describe_trace

    check_format(plot)
    trace = read_trace(file)
    summary = describe_trace(trace)
    if json:
        print_json(summary)
    else:
        print_result(*_format_summary(file.name, summary))
    if plot is not None:
        plot_trace(trace, plot)
        print_note(f"Written: {plot}")


def _format_summary(name: str, summary: TraceSummary) -> list[RenderableType]:
    """Tables of arrivals and of lengths."""
    from muplan.cli.console import make_table

    windows_s = sorted({item.window_s for row in summary.services for item in row.dispersion})
    arrivals = []
    for row in summary.services:
        found = {item.window_s: f"{item.index:.3g}" for item in row.dispersion}
        cv = f"{row.cv:.2f}" if row.cv is not None else "–"
        indices = [found.get(window_s, "–") for window_s in windows_s]
        arrivals.append([row.service, f"{row.num_requests}", f"{row.rate_rps:.3g}", cv, *indices])
    heads = ["requests", "rate 1/s", "CV", *(f"I({window_s:g} s)" for window_s in windows_s)]
    lengths = [
        [row.service, *_format_lengths(kind, tokens)]
        for row in summary.services
        for kind, tokens in (("input", row.input_tokens), ("output", row.output_tokens))
        if tokens is not None and tokens.maximum > 0
    ]
    quantiles = ["mean", "p10", "p50", "p90", "p99", "max"]
    left = [("service", "left")]
    return [
        make_table(
            f"{name}: {summary.duration_s:.0f} s",
            left + [(head, "right") for head in heads],
            arrivals,
            _CAPTION,
        ),
        make_table(
            "Lengths in tokens",
            [*left, ("of", "left"), *((quantile, "right") for quantile in quantiles)],
            lengths,
        ),
    ]


def _format_lengths(kind: str, lengths: LengthSummary) -> list[str]:
    values = (lengths.mean, lengths.p10, lengths.p50, lengths.p90, lengths.p99, lengths.maximum)
    return [kind, *(f"{value:.0f}" for value in values)]
