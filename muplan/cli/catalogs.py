"""``muplan model`` and ``muplan device``: what is shipped, and how to add one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muplan.cli.options import Json, Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.hardware.device import Device

models = typer.Typer(
    help="List shipped models; turn a model configuration into a model file.", no_args_is_help=True
)
devices = typer.Typer(
    help="List shipped devices; show one with the source of every constant.", no_args_is_help=True
)


@models.command("list")
def list_models() -> None:
    """List the shipped models."""
    from muplan.cli.console import format_bytes, make_table, print_result
    from muplan.model.catalog import load_model, model_names

    graphs = [load_model(name) for name in model_names()]
    rows = [
        [
            graph.name,
            graph.family,
            graph.request_kind,
            f"{len(graph.operators())}",
            format_bytes(graph.weight_bytes),
        ]
        for graph in graphs
    ]
    columns = [
        ("model", "left"),
        ("family", "left"),
        ("requests", "left"),
        ("operators", "right"),
        ("weights", "right"),
    ]
    print_result(make_table("Shipped models", columns, rows))


@models.command("make")
def make_model(
    config: Annotated[
        Path, typer.Argument(help="A config.json, or the local folder of a model that holds one.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the file's or folder's where absent.")
    ] = None,
    output: Output = None,
) -> None:
    """Make a model file (an operator graph) from a transformers configuration; weights are not needed."""
    from muplan.cli.console import print_note
    from muplan.model.catalog import load_model
    from muplan.serde import write_document

    graph = load_model(config)
    if name is not None:
        graph = graph.model_copy(update={"name": name})
    path = output or Path(f"{graph.name}.json")
    write_document(graph, path)
    print_note(f"Written: {path}")


@devices.command("list")
def list_devices() -> None:
    """List the shipped devices."""
    from muplan.cli.console import format_bytes, make_table, print_result
    from muplan.hardware.catalog import device_names, load_device

    rows = []
    for name in device_names():
        device = load_device(name)
        usable = device.usable_clocks_mhz
        rows.append(
            [
                device.name,
                format_bytes(device.memory_bytes),
                f"{usable[0]}–{usable[-1]} MHz",
                f"{device.power_cap_w:.0f} W",
                f"{device.parked_w:.0f} / {device.loaded_w:.0f} W",
            ]
        )
    columns = [
        ("device", "left"),
        ("memory", "right"),
        ("usable clocks", "right"),
        ("power cap", "right"),
        ("parked / loaded", "right"),
    ]
    print_result(make_table("Shipped devices", columns, rows))


@devices.command("show")
def show_device(
    device: Annotated[str, typer.Argument(help="A shipped device or a device file.")], json: Json = False
) -> None:
    """Show a device: every constant with its label (measured, derived, assumed) and its source."""
    from muplan.cli.console import print_json, print_result
    from muplan.hardware.catalog import load_device

    document = load_device(device)
    if json:
        print_json(document)
    else:
        print_result(format_device(document))


def format_device(device: Device) -> RenderableType:
    """Every constant of a device with its label and source."""
    from muplan.cli.console import make_table
    from muplan.report.device_summary import list_constants

    rows = [[row.key, row.value, row.label, row.source] for row in list_constants(device)]
    columns = [("constant", "left"), ("value", "right"), ("label", "left"), ("source", "left")]
    return make_table(f"{device.name}: {device.description}", columns, rows)
