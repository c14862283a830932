"""``muplan trace import``: published traces in their own forms, made into trace files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.options import Output, Seed

if TYPE_CHECKING:
    from muplan.traces.trace import Trace

app = typer.Typer(help="Import a published trace.", no_args_is_help=True)

Service = Annotated[str, typer.Option("--service", help="The service its requests are for.")]


@app.command("azure")
def import_azure_trace(
    file: Annotated[Path, typer.Argument(help="A CSV of the Azure LLM inference dataset (2023, 2024).")],
    service: Service,
    output: Output = None,
) -> None:
    """Import a CSV of the Azure LLM inference dataset: TIMESTAMP, ContextTokens, GeneratedTokens."""
    from muplan.traces.formats.azure import import_azure

    _write(import_azure(file, service), output or Path(f"{service}.trace.csv"))


@app.command("burstgpt")
def import_burstgpt_trace(
    file: Annotated[Path, typer.Argument(help="A CSV of BurstGPT.")],
    service: Annotated[
        str | None, typer.Option("--service", help="The service of all requests; else one for each model.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Keep the requests of this model: ChatGPT, GPT-4.")
    ] = None,
    log_type: Annotated[
        str | None, typer.Option("--log-type", help="Keep those of this type: 'Conversation log', 'API log'.")
    ] = None,
    output: Output = None,
) -> None:
    """Import a CSV of BurstGPT: Timestamp, Model, Request tokens, Response tokens, Log Type.

    Requests without prompt or reply failed, and are left out.
    """
    from muplan.cli.console import print_note
    from muplan.traces.formats.burstgpt import import_burstgpt

    trace, num_failed = import_burstgpt(file, service=service, model=model, log_type=log_type)
    _write(trace, output or Path(f"{service or 'burstgpt'}.trace.csv"))
    if num_failed:
        print_note(f"{num_failed} requests without prompt or reply are left out.")


@app.command("mooncake")
def import_mooncake_trace(
    file: Annotated[Path, typer.Argument(help="A JSONL file in Mooncake's form.")],
    service: Service,
    output: Output = None,
) -> None:
    """Import a JSONL file in Mooncake's form: timestamp (ms), input_length, output_length.

    Prompts that begin alike (hash_ids) count whole: prefix caching is not modelled.
    """
    from muplan.traces.formats.mooncake import import_mooncake

    _write(import_mooncake(file, service), output or Path(f"{service}.trace.csv"))


@app.command("servegen")
def import_servegen_rates(
    file: Annotated[Path, typer.Argument(help="A CSV of rates: model, t_start_s, requests_per_s.")],
    model: Annotated[str, typer.Option("--model", help="The service in the file.")],
    service: Service,
    lengths: Annotated[
        str | None, typer.Option("--lengths", help="Length distribution of generate requests.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens of every forward request.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Mean rate to scale the whole record to, requests/s.")
    ] = None,
    start: Annotated[float, typer.Option("--start", help="Begin there in the record, seconds.")] = 0.0,
    duration: Annotated[
        float | None, typer.Option("--duration", help="Seconds to draw; the whole record by default.")
    ] = None,
    noise_cv: Annotated[
        float, typer.Option("--noise-cv", min=0, max=20, help="Variation of Gamma noise on each rate.")
    ] = 0.0,
    cv: Annotated[
        float, typer.Option("--cv", min=0.01, max=20, help="Variation of intervals at a constant rate.")
    ] = 1.0,
    seed: Seed = 0,
    output: Output = None,
) -> None:
    """Draw a trace from recorded request rates (ServeGen's form); lengths come from elsewhere."""
    from muplan.errors import InputError
    from muplan.traces.formats.servegen import read_servegen_rates
    from muplan.traces.generate import draw_trace, trace_rng
    from muplan.traces.lengths import load_lengths

    if (lengths is None) == (tokens is None):
        raise InputError(
            "The rates do not say how long requests are.",
            "Give either --lengths (generate requests) or --tokens (forward requests).",
        )
    process = read_servegen_rates(file, model, noise_cv=noise_cv, interval_cv=cv)
    for name, value in (("--rate", rate), ("--duration", duration)):
        if value is not None and not 0.0 < value < float("inf"):
            raise InputError(f"{name} {value:g} cannot be drawn.", "Give a finite number above 0.")
    if rate is not None:
        process = process.at_rate(rate)
    trace = draw_trace(
        process,
        service=service,
        lengths=load_lengths(lengths) if lengths is not None else tokens or 1,
        duration_s=process.lap_s if duration is None else duration,
        phase_s=start,
        rng=trace_rng(seed, 0),
    )
    _write(trace, output or Path(f"{service}.trace.csv"))


def _write(trace: Trace, path: Path) -> None:
    from muplan.cli.console import print_note
    from muplan.traces.files import write_trace

    write_trace(trace, path)
    print_note(f"Written: {path} ({len(trace)} requests)")
