"""``muplan profile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.measured import format_measurement, measured_profile, side_file
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
    plot: Annotated[Path | None, typer.Option(help="Draw latency, power and energy over the clock.")] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Profile MODEL on a device: operator clusters, their latency, energy and sensitivity to the clock.

    The profile is modelled from the operator graph and the device's physics; with --measure, latencies
    (and on a GPU power) at the running clock are measured, with random weights, and only the response to
    other clocks is modelled: muplan changes no clock. An interrupted measurement goes on where it was.

    It is saved to profiles/DEVICE/MODEL.json, or where -o says; a modelled one with clocks, batches or
    tokens of one's own only there. To use measurements from elsewhere, see 'muplan profile import --help'.
    """
    from muplan.cli.console import print_json, print_note, print_result
    from muplan.errors import InputError
    from muplan.hardware.catalog import load_device
    from muplan.model.catalog import load_model
    from muplan.profiling.analytical import make_profile
    from muplan.serde import write_document

    is_default = measure or (clocks is None and batches is None and tokens is None)
    path = output
    if measure:
        if clocks is not None:
            raise InputError(
                "--clocks does not go with --measure: muplan measures at the running clock.",
                "Leave --clocks out; the profile models the response to other clocks.",
            )
        result, path = measured_profile(
            model,
            device or "auto",
            on,
            batches=_parse_batches(batches),
            tokens=parse_numbers(tokens, "--tokens"),
            output=output,
            use_graphs=cuda_graphs,
            is_shared=shared,
        )
    else:
        if device is None:
            raise InputError(
                "--device is missing.", "Name a device; 'muplan device list' lists those shipped."
            )
        result = make_profile(
            load_model(model),
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


def import_command(
    table: Annotated[
        Path, typer.Argument(help="CSV file of measured latencies; docs/formats.md describes its columns.")
    ],
    device: Annotated[
        str, typer.Option("--device", "-d", help="The device measured: a shipped one, or a device file.")
    ],
    tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the measured requests; 1 where requests have none.")
    ] = 1,
    sensitivity: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the time that follows the clock, for clocks and power that were not measured;"
            " 0.75 if left out.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=BYTES",
            help="Weights of a whole model, where the table does not state them; may be repeated.",
        ),
    ] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Make profiles of a table of latencies that were measured elsewhere, one for each model in it.

    A plan can use only what was measured: those parallel configurations, and batches up to the
    largest. Clocks and power that the table lacks are modelled from the device's physics, and the
    profile says so. Profiles are saved to profiles/DEVICE/MODEL.json; -o names another folder
    for DEVICE/MODEL.json, or, for a single model, a .json file.
    """
    from muplan.cli.console import print_json, print_note, print_result
    from muplan.hardware.catalog import load_device
    from muplan.profiling.imported import DEFAULT_SENSITIVITY, import_profiles
    from muplan.serde import write_document

    profiles = import_profiles(
        table,
        load_device(device),
        tokens=tokens,
        sensitivity=DEFAULT_SENSITIVITY if sensitivity is None else sensitivity,
        weight_bytes=dict(_parse_weights(text) for text in weights or ()),
    )
    paths = _import_paths(profiles, output)
    for profile, path in zip(profiles, paths, strict=True):
        write_document(profile, path)
    if json:
        print_json(profiles)
    else:
        print_result(*(part for profile in profiles for part in format_profile(profile)))
    print_note("Written: " + " ".join(map(str, paths)))


def _parse_weights(text: str) -> tuple[str, float]:
    from muplan.errors import InputError

    model, _, size = text.rpartition("=")
    try:
        return model, float(size)
    except ValueError:
        raise InputError(
            f"--weights {text!r} is not of the form MODEL=BYTES.",
            "Write it as in: --weights moe-5.3b=1.06e10",
        ) from None


def _import_paths(profiles: tuple[Profile, ...], output: Path | None) -> list[Path]:
    """Return where imported profiles are written, one path for each."""
    from muplan.errors import InputError

    if output is None or output.suffix != ".json":
        folder = output or Path("profiles")
        return [folder / profile.device / f"{profile.model}.json" for profile in profiles]
    if len(profiles) > 1:
        raise InputError(
            f"-o {output} is one file, but the table has {len(profiles)} models.", "Name a folder instead."
        )
    return [output]


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
