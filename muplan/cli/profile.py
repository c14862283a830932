"""``muplan profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.options import Json, Output, parse_numbers

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
    model: Annotated[str, typer.Argument(help="A shipped model (see 'muplan model list') or a model file.")],
    device: Annotated[
        str,
        typer.Option("--device", "-d", help="A shipped device (see 'muplan device list') or a device file."),
    ],
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
    plot: Annotated[Path | None, typer.Option(help="Draw latency, power and energy over the clock.")] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Profile MODEL on a device: operator clusters, their latency, energy and sensitivity to the clock.

    The profile is modelled from the operator graph and the device's physics. It is saved to
    profiles/DEVICE/MODEL.json, or where -o says; with clocks, batches or tokens of one's own, only there.
    """
    from muplan.cli.console import print_json, print_note, print_result
    from muplan.hardware.catalog import load_device
    from muplan.model.catalog import load_model
    from muplan.profiling.analytical import make_profile
    from muplan.serde import write_document

    result = make_profile(
        load_model(model),
        load_device(device),
        clocks_mhz=parse_numbers(clocks, "--clocks"),
        batches=_parse_batches(batches),
        tokens=parse_numbers(tokens, "--tokens"),
    )
    is_default = clocks is None and batches is None and tokens is None
    path = output
    if path is None and is_default:
        path = Path("profiles") / result.device / f"{result.model}.json"
    if path is not None:
        write_document(result, path)
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
    """One table for each phase of the profile."""
    from muplan.cli.console import format_bytes, format_share, make_table
    from muplan.report.profile_summary import default_point, summarise_profile

    tables: list[RenderableType] = []
    for grid in profile.phases:
        point = default_point(profile, grid.phase)
        where = {"tensor_parallel": point.tensor_parallel, "batch": point.batch, "tokens": point.tokens}
        latency = profile.latency_s(grid.phase, **where)[profile.cluster_type_index, -1].sum()
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
    return tables
