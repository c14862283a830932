"""``muplan profile --measure --apply-clocks --dry-run``: what would be done to a GPU's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muplan.cli.measured import is_place, no_shipped_device

if TYPE_CHECKING:
    from rich.console import RenderableType

    from muplan.profiling.measured.clock_plan import ClockPlan


def planned_clocks(
    model: str,
    device: str,
    on: str | None,
    *,
    batches: tuple[int, ...] | None,
    tokens: tuple[int, ...] | None,
    is_shared: bool,
) -> ClockPlan:
    """Say what measuring with --apply-clocks would do to the GPU's clock; it is looked at, nothing more.

    Raises
    ------
    InputError
        What was asked for is no GPU, or no shipped device.
    DeviceError
        The GPU cannot be looked at.
    """
    import os

    from muplan.capture.source import find_graph
    from muplan.errors import InputError
    from muplan.hardware.catalog import DEVICE_OF_GPU, load_device
    from muplan.hardware.nvml import NvmlMeter
    from muplan.profiling.measured.clock_plan import plan_clocks
    from muplan.profiling.measured.gpu import nvml_index

    described = None if is_place(device, on) else load_device(device)
    kind, _, number = (on or (device if described is None else "auto")).partition(":")
    if kind not in ("auto", "cuda") or (number and not number.isdecimal()):
        raise InputError(
            f"{on or device}: there is no clock to set.", "Name a GPU: --on cuda, or cuda:1 for the second."
        )
    with NvmlMeter(nvml_index(int(number or 0), os.environ.get("CUDA_VISIBLE_DEVICES"))) as meter:
        name = DEVICE_OF_GPU.get(meter.name)
        if described is None and name is None:
            raise no_shipped_device(meter.name)
        return plan_clocks(
            find_graph(model),
            described or load_device(str(name)),
            meter,
            batches=batches,
            tokens=tokens,
            is_shared=is_shared,
        )


def format_clock_plan(plan: ClockPlan) -> RenderableType:
    """What would be done to the clock, a line each."""
    from muplan.cli.console import format_share, make_table

    rows = [
        ["GPU", f"{plan.gpu}, measured as {plan.device}"],
        ["through", plan.way or "nothing: no rights"],
        ["clocks set", ", ".join(f"{clock} MHz" for clock in plan.clocks_mhz)],
        [
            "further clocks",
            f"up to {plan.most_clocks} in all, while one left out is foretold worse than"
            f" {format_share(plan.most_residual, 0)}",
        ],
        ["restored to", plan.restored_to],
        ["restored by", "muplan on leaving, however it leaves; if it is killed, its guardian process"],
        ["stands against it", "\n".join(plan.objections) or "nothing"],
    ]
    return make_table("What --apply-clocks would do", [("what", "left"), ("how", "left")], rows)
