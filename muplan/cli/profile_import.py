"""``muplan profile import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.options import Json, Output
from muplan.cli.profile import format_profile

if TYPE_CHECKING:
    from muplan.profile import Profile


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
