"""``muplan profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.clock_plan import format_clock_plan, planned_clocks
from muplan.cli.measured import format_measurement, measured_profile, side_file
from muplan.cli.options import MODEL_HELP, Json, Output, parse_numbers

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.profile import Profile

LARGEST_BATCH = 4096
"""Larger batches fit no device; modelling them would only take long."""

CAPTION = (
    "sensitivity at {reference} MHz: 0 indifferent to the clock, 1 in proportion;"
    " band: over all batches and tokens;"
    " best clock: of least energy for the row alone; its energy and latency against {highest} MHz."
)


def profile_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            "-d",
            help="A shipped device (see 'muplan device list') or a device file; with --measure also auto"
            " (what is at hand: the default), cuda, cuda:1, cpu.",
            show_default=False,
        ),
    ] = None,
    clocks: Annotated[
        str | None,
        typer.Option(
            help="Clocks in MHz, e.g. 810,1005,1530; each is snapped to the driver's list, and the highest is"
            " always included."
        ),
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help=f"Batch sizes up to {LARGEST_BATCH}, e.g. 1,2,4,8.")
    ] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens for each sequence, e.g. 128,512.")] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Time the clusters on the GPU or processor at hand; needs muplan[torch]."
        ),
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(
            help="Where to measure what --device describes: auto (a GPU if there is one), cuda, cuda:1, cpu.",
            show_default=False,
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool,
        typer.Option("--cuda-graphs/--eager", help="Whether launches of kernels are left out, or count."),
    ] = True,
    shared: Annotated[bool, typer.Option("--shared", help="Measure on a GPU that others use.")] = False,
    apply_clocks: Annotated[
        bool,
        typer.Option(
            "--apply-clocks",
            help="With --measure: set the GPU's clock to several values in turn, and restore it; needs root,"
            " SYS_ADMIN in a container, or zeusd.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="With --apply-clocks: say what would be done to the clock, and end."),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw latency, power and energy over the clock.")] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Profile MODEL on a device: operator clusters, their latency, energy and sensitivity to the clock.

    The profile is modelled from the operator graph and the device's physics; with --measure, latencies
    (and on a GPU power) at the running clock are measured, with random weights, and only the response to
    other clocks is modelled; with --apply-clocks, it is measured at four clocks or more. Without that, muplan
    changes no clock. An interrupted measurement goes on where it was.

    It is saved to profiles/DEVICE/MODEL.json, or where -o says; a modelled one with clocks, batches or
    tokens of one's own only there. To use measurements from elsewhere, see 'muplan profile import --help'.
    """
    from muplan.capture.source import find_graph
    from muplan.cli.console import print_json, print_note, print_result
    from muplan.errors import EXIT_GOOD, EXIT_NO, InputError
    from muplan.hardware.catalog import load_device
    from muplan.profiling.analytical import make_profile
    from muplan.serde import write_document

    if (apply_clocks and not measure) or (dry_run and not apply_clocks):
        raise InputError(
            "--dry-run goes with --apply-clocks, and that with --measure.",
            "Write --measure --apply-clocks --dry-run, or leave them out.",
        )
    is_default = measure or (clocks is None and batches is None and tokens is None)
    path = output
    if measure:
        if clocks is not None:
            raise InputError(
                "--clocks does not go with --measure: it is measured at the running clock, or with"
                " --apply-clocks at clocks that say most of the others.",
                "Leave --clocks out.",
            )
        grid = {"batches": _parse_batches(batches), "tokens": parse_numbers(tokens, "--tokens")}
        if dry_run:
            plan = planned_clocks(model, device or "auto", on, is_shared=shared, **grid)
            print_json(plan) if json else print_result(format_clock_plan(plan))
            raise typer.Exit(EXIT_NO if plan.objections else EXIT_GOOD)
        result, path = measured_profile(
            model,
            device or "auto",
            on,
            output=output,
            use_graphs=cuda_graphs,
            is_shared=shared,
            sets_clocks=apply_clocks,
            **grid,
        )
    else:
        if device is None:
            raise InputError(
                "--device is missing.", "Name a device; 'muplan device list' lists those shipped."
            )
        result = make_profile(
            find_graph(model),
            load_device(device),
            clocks_mhz=parse_numbers(clocks, "--clocks"),
            batches=_parse_batches(batches),
            tokens=parse_numbers(tokens, "--tokens"),
        )
    if path is None and is_default:
        path = Path("profiles") / result.device / f"{result.model}.json"
    if path is not None:
        write_document(result, path)
        if measure:
            side_file(path).unlink(missing_ok=True)
    if plot is not None:
        from muplan.report.plots import plot_profile

        plot_profile(result, plot)
    if json:
        print_json(result)
    else:
        print_result(*format_profile(result))
    written = [str(file) for file in (path, plot) if file is not None]
    if written:
        print_note("Written: " + " ".join(written))
    if path is None:
        print_note("The profile itself is not saved, as it is not on the default grid; give -o to save it.")


def _parse_batches(text: str | None) -> tuple[int, ...] | None:
    from muplan.errors import InputError

    batches = parse_numbers(text, "--batches")
    if batches is not None and batches[-1] > LARGEST_BATCH:
        raise InputError(
            f"--batches: {batches[-1]} is too large; batches are profiled up to {LARGEST_BATCH}.",
            f"Give batch sizes of at most {LARGEST_BATCH}.",
        )
    return batches


def format_profile(profile: Profile) -> list[RenderableType]:
    """One table for each phase of the profile; of measured pipelines, one row for each configuration."""
    from dataclasses import asdict

    if profile.num_stages is not None:
        return [_format_pipelines(profile)]
    from muplan.cli.console import format_bytes, format_share, make_table
    from muplan.report.profile_summary import default_point, summarise_profile

    tables: list[RenderableType] = []
    for grid in profile.phases:
        point = default_point(profile, grid.phase)
        latency = profile.latency_s(grid.phase, **asdict(point))[profile.cluster_type_index, -1].sum()
        rows = [
            [
                row.cluster,
                f"{row.count}",
                format_share(row.time_share),
                f"{row.sensitivity:.2f}",
                f"{row.sensitivity_low:.2f}–{row.sensitivity_high:.2f}",
                format_bytes(row.weight_bytes),
                f"{row.energy_optimal_clock_mhz} MHz",
                f"−{format_share(row.energy_saving, 0)}",
                f"+{format_share(row.slowdown, 0)}",
            ]
            for row in summarise_profile(profile, grid.phase, point)
        ]
        tables.append(
            make_table(
                f"{profile.model} on {profile.device}, {grid.phase}, batch {point.batch},"
                f" {point.tokens} tokens: {latency * 1e3:.1f} ms at {profile.max_clock_mhz} MHz"
                f" ({profile.provenance.method})",
                [
                    ("cluster", "left"),
                    ("count", "right"),
                    ("time", "right"),
                    ("sensitivity", "right"),
                    ("band", "right"),
                    ("weights", "right"),
                    ("best clock", "right"),
                    ("energy", "right"),
                    ("latency", "right"),
                ],
                rows,
                caption=CAPTION.format(reference=profile.reference_clock_mhz, highest=profile.max_clock_mhz),
            )
        )
    if profile.provenance.measurement is not None:
        tables.append(format_measurement(profile.provenance.measurement))
    return tables


def _format_pipelines(profile: Profile) -> RenderableType:
    """A table of the measured configurations at batch 1 and the highest clock."""
    from muplan.cli.console import format_bytes, format_seconds, make_table
    from muplan.report.profile_summary import summarise_pipelines

    rows = [
        [
            f"{row.tensor_parallel}",
            f"{row.num_stages}",
            format_seconds(row.latency_s),
            format_seconds(row.longest_stage_s),
            f"{row.sensitivity:.2f}",
            format_bytes(row.weight_bytes_per_gpu),
            f"{row.power_w:.0f} W",
        ]
        for row in summarise_pipelines(profile)
    ]
    batches = ", ".join(map(str, profile.phases[0].batches))
    return make_table(
        f"{profile.model} on {profile.device} at batch 1 and {profile.max_clock_mhz} MHz"
        f" ({profile.provenance.method}; batches {batches})",
        [
            ("tensor parallel", "right"),
            ("stages", "right"),
            ("latency", "right"),
            ("longest stage", "right"),
            ("sensitivity", "right"),
            ("weights/GPU", "right"),
            ("power/GPU", "right"),
        ],
        rows,
        caption=profile.provenance.description,
    )
