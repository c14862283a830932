"""``muplan doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from muplan.cli.options import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.hardware.inspection import Inspection


def doctor_command(json: Json = False) -> None:
    """Say what there is to measure on, what is allowed, and what to do about what is missing.

    Reads GPUs through NVML and changes nothing. Exits with 1 where models cannot be measured or a GPU
    refuses an answer.
    """
    from muplan.cli.console import print_json, print_result
    from muplan.errors import EXIT_NO
    from muplan.hardware.inspection import inspect_machine

    found = inspect_machine()
    if json:
        print_json(found)
    else:
        print_result(*format_inspection(found))
    if not found.is_well:
        raise typer.Exit(EXIT_NO)


def format_inspection(found: Inspection) -> list[RenderableType]:
    """A table of the machine, one for each GPU, and the advice."""
    from rich.markup import escape

    from muplan.cli.console import make_table

    columns = [("what", "left"), ("found", "left")]
    rows = [
        ["muplan", found.muplan],
        ["python", found.python],
        ["system", found.system],
        *([name, number] for name, number in found.packages.items()),
        ["NVIDIA driver", found.driver or "none"],
        ["NVML", found.nvml or "none"],
        ["GPUs", str(len(found.gpus))],
        [
            "rights to change clocks",
            f"through {found.way_to_clocks}; not tried" if found.way_to_clocks else "no",
        ],
    ]
    parts: list[RenderableType] = [make_table("This machine", columns, rows)]
    for gpu in found.gpus:
        answers = [
            [finding.what, escape(finding.value or f"refused: {finding.problem}")] for finding in gpu.findings
        ]
        known = f"device {gpu.device}" if gpu.device else "no shipped device"
        parts.append(make_table(f"GPU {gpu.index}: {gpu.name} ({known})", columns, answers))
    parts += [escape(f"- {line}") for line in found.advice] or ["Nothing is missing."]
    return parts
