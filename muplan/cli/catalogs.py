"""``muplan model`` and ``muplan device``: what is shipped, and how to add one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from muplan.cli.options import Json, Output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.hardware.device import Device
    from muplan.model.graph import ModelGraph

Attention = Literal["fused", "unfused"]
"""Names of attention kernels, as `muplan.model.graph` has them."""

models = typer.Typer(
    help="List shipped models; make a model file of a configuration, or of any torch model.",
    no_args_is_help=True,
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


@models.command("capture")
def capture_model(
    model: Annotated[
        str,
        typer.Argument(
            help="A config.json of transformers, the folder of a model, or a function that makes a torch"
            " module and example inputs, as module:function."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the model; the file's, folder's or function's where absent.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Type of weights and activations, e.g. float16; the model's own where absent."),
    ] = None,
    attention: Annotated[
        Attention | None,
        typer.Option(
            help="Attention kernel that it is run with: fused (default of generators) or unfused.",
            show_default=False,
        ),
    ] = None,
    output: Output = None,
    json: Json = False,
) -> None:
    """Make a model file (an operator graph) of any torch model by tracing it; needs muplan[torch].

    The model is run on tensors without data: weights are not needed, and take no memory.
    """
    from muplan.capture.source import capture
    from muplan.cli.console import print_json, print_note, print_result, progress
    from muplan.serde import write_document

    with progress(f"tracing {model}"):
        captured = capture(model, name=name, dtype=dtype, attention=attention)
    path = output or Path(f"{captured.graph.name}.json")
    write_document(captured.graph, path)
    if json:
        print_json(captured.graph)
    else:
        print_result(format_graph(captured.graph))
    if captured.unread:
        print_note(f"No pass reads these parameters, which are left out: {', '.join(captured.unread)}")
    print_note(f"Written: {path}")


def format_graph(graph: ModelGraph) -> RenderableType:
    """One row for each block of a graph."""
    from muplan.cli.console import format_bytes, make_table
    from muplan.model.graph import TENSOR_CORE_KINDS

    rows = []
    for block in graph.used_blocks():
        matrices = sum(operator.kind in TENSOR_CORE_KINDS for operator in block.operators)
        weights = sum(operator.weight_bytes for operator in block.operators)
        cuts = sum(operator.cut_after for operator in block.operators)
        rows.append(
            [
                block.name,
                f"{block.repeat}",
                f"{len(block.operators)}",
                f"{matrices}",
                f"{cuts}",
                format_bytes(block.repeat * weights),
            ]
        )
    columns: list[tuple[str, Literal["left", "right"]]] = [
        ("block", "left"),
        ("repeated", "right"),
        ("operators", "right"),
        ("with matrices", "right"),
        ("cut points", "right"),
        ("weights", "right"),
    ]
    title = f"{graph.name} ({graph.captured_from}): {graph.num_parameters:,} parameters, {graph.request_kind}"
    return make_table(title, columns, rows)


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
