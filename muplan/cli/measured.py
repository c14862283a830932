"""``muplan profile --measure``: where, how far it is, and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.errors import InputError
    from muplan.profile import MeasurementSummary, Profile


def measured_profile(
    model: str,
    device: str,
    on: str | None,
    *,
    batches: tuple[int, ...] | None,
    tokens: tuple[int, ...] | None,
    output: Path | None,
    use_graphs: bool,
    is_shared: bool,
    sets_clocks: bool,
) -> tuple[Profile, Path]:
    """Measure a profile; its points are kept beside the path where it belongs until it is written there.

    Raises
    ------
    InputError
        Something that was asked for is not to be had here.
    MachineError
        The device refuses, or the measurement was interrupted.
    """
    from muplan.capture.source import find_graph
    from muplan.cli.console import counting, print_note, progress
    from muplan.errors import InputError, MachineError
    from muplan.hardware.catalog import load_device
    from muplan.profiling.measured.gpu import check_device
    from muplan.profiling.measured.measure import measure_profile

    graph = find_graph(model)
    described = None if is_place(device, on) else load_device(device)
    try:
        from muplan.profiling.measured.place import open_place
    except ImportError as error:
        raise InputError(
            f"--measure needs torch ({error}).", "Install it: pip install 'muplan[torch]'"
        ) from None
    at = on or (device if described is None else "auto")
    with (
        progress("looking at the device"),
        open_place(at, use_graphs=use_graphs, is_shared=is_shared, sets_clocks=sets_clocks) as place,
    ):
        if described is None:
            if place.device is None:
                raise no_shipped_device(place.label)
            described = load_device(place.device)
        check_device(place.device, described.name)
        if place.actuator is not None:
            print_note("The GPU's clock is set in turn and restored in the end; --dry-run says to what.")
        path = output or Path("profiles") / described.name / f"{graph.name}.json"
        done = 0

        def follow(number: int, total: int) -> None:
            nonlocal done
            done = number
            shown(number, total)

        with counting(f"measuring {graph.name} on {described.name}") as shown:
            try:
                measured = measure_profile(
                    graph,
                    described,
                    place=place,
                    batches=batches,
                    tokens=tokens,
                    side_file=side_file(path),
                    report=follow,
                )
            except KeyboardInterrupt:
                raise MachineError(
                    f"Interrupted after {done} points; no profile is written.",
                    f"They are kept in {side_file(path)}: the same command goes on from there.",
                ) from None
    return measured.profile, path


def no_shipped_device(found: str) -> InputError:
    """The error for a GPU whose type does not ship."""
    from muplan.errors import InputError

    return InputError(
        f"No shipped device is what is at hand: {found}.",
        "Describe it in a device file and name that: --device FILE.yaml",
    )


def is_place(device: str, on: str | None) -> bool:
    """Whether a device names where to measure; ``cpu`` is a shipped device, too, if the place is named."""
    return device.partition(":")[0] in ("auto", "cuda") or (device == "cpu" and on is None)


def side_file(path: Path) -> Path:
    """Where the points of a measurement are kept until its profile is written."""
    return path.with_suffix(".points.jsonl")


def format_measurement(summary: MeasurementSummary) -> RenderableType:
    """What a measurement says of itself, a line each."""
    from muplan.cli.console import format_share, make_table
    from muplan.profiling.measured.summary import at_which_clocks, other_clocks

    rows = [
        ["points", f"{summary.num_points} at {at_which_clocks(summary)}"],
        ["refused, filled in from neighbours", _listed(summary.refused)],
        [
            "95 % interval of a point",
            f"±{format_share(summary.interval_median)} in the median,"
            f" ±{format_share(summary.interval_largest)} at most",
        ],
    ]
    if summary.interpolation_error_median is not None and summary.interpolation_error_largest is not None:
        rows.append(
            [
                "a whole pass, from its neighbours on the grid",
                f"{format_share(summary.interpolation_error_median)} off in the median,"
                f" {format_share(summary.interpolation_error_largest)} at most",
            ]
        )
    if summary.num_energy_points:
        rows += _energy_rows(summary)
    else:
        rows.append(["power", "modelled: nothing here reads energy"])
    rows.append(["other clocks", other_clocks(summary)])
    if summary.clocks_refused:
        rows.append(["clocks not reached", _listed(summary.clocks_refused)])
    return make_table(f"measured on {summary.place}", [("what", "left"), ("figure", "left")], rows)


def _energy_rows(summary: MeasurementSummary) -> list[list[str]]:
    limited = (
        f", {summary.num_limited} of them held by: {', '.join(summary.limits)}" if summary.limits else ""
    )
    rows = [
        ["power from the energy counter", f"{summary.num_energy_points} points{limited}"],
        ["energy refused", _listed(summary.energy_refused)],
        [
            "SM clock under load",
            f"{summary.slowest_effective_mhz:.0f} to {summary.fastest_effective_mhz:.0f} MHz",
        ],
        ["hottest", f"{summary.hottest_c} °C"],
    ]
    if summary.counter_over_readings is not None:
        rows.append(["counter over the driver's power", f"{summary.counter_over_readings:.3f}"])
    if summary.loaded_w is not None:
        parked = "not measured" if summary.parked_w is None else f"{summary.parked_w:.1f} W"
        rows.append(["parked; loaded and idle", f"{parked}; {summary.loaded_w:.1f} W"])
    return rows


def _listed(reasons: tuple[str, ...]) -> str:
    """The first few, and how many there are."""
    if not reasons:
        return "none"
    more = f"\n… {len(reasons) - 5} more" if len(reasons) > 5 else ""
    return f"{len(reasons)}\n" + "\n".join(reasons[:5]) + more
