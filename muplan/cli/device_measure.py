"""``muplan device measure``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from muplan.cli.catalogs import format_device
from muplan.cli.options import Json, Output


def measure_command(
    name: Annotated[str, typer.Argument(help="What the device is to be called.")],
    like: Annotated[
        str, typer.Option(help="A shipped device or a device file: whatever is not probed is taken from it.")
    ],
    on: Annotated[str, typer.Option(help="Which GPU: cuda, or cuda:1 for the second.")] = "cuda",
    apply_clocks: Annotated[
        bool,
        typer.Option(
            "--apply-clocks",
            help="Set the GPU's clock to eight values in turn, and restore it; needs root, SYS_ADMIN in a"
            " container, or zeusd.",
        ),
    ] = False,
    shared: Annotated[bool, typer.Option("--shared", help="Measure on a GPU that others use.")] = False,
    output: Output = None,
    json: Json = False,
) -> None:
    """Measure a GPU type with probes, and write a device file for 'muplan profile' and workloads.

    Products, copies, launches and rest give rates and power, the driver the clocks and the limit. With
    --apply-clocks also their response to the clock, effective clocks, and the time of a change; without,
    muplan changes no clock, and the response is that of --like. Links are not probed. It is written to
    NAME.json, or where -o says.
    """
    from muplan.cli.console import print_json, print_note, print_result, progress
    from muplan.errors import InputError
    from muplan.hardware.catalog import device_names, load_device
    from muplan.serde import write_document

    if name in device_names() or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise InputError(
            f"A device cannot be called {name!r}.",
            "Choose a name of small letters, digits, dots and hyphens that no shipped device has.",
        )
    kind, _, number = on.partition(":")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise InputError(f"--on {on}: there is no such GPU.", "Write cuda, or cuda:1 for the second.")
    template = load_device(like)
    try:
        from muplan.profiling.measured.place import open_gpu
        from muplan.profiling.measured.torch_probes import TorchProbes
    except ImportError as error:
        raise InputError(f"Probes need torch ({error}).", "Install it: pip install 'muplan[torch]'") from None
    from muplan.profiling.measured.device_fit import fit_device
    from muplan.profiling.measured.device_probe import probe_device

    with (
        progress(f"measuring {name}: a minute or two"),
        open_gpu(int(number or 0), is_shared=shared, sets_clocks=apply_clocks) as gpu,
    ):
        probes = TorchProbes(gpu.device)
        probed = probe_device(probes, meter=gpu.meter, host=gpu.host, actuator=gpu.actuator)
        made = fit_device(name, template, probed, meter=gpu.meter, levels=gpu.levels)
    path = output or Path(f"{name}.json")
    write_document(made, path)
    if json:
        print_json(made)
    else:
        print_result(format_device(made))
    print_note(f"Written: {path}")
