"""What executing a plan would do to the clocks of this host's GPUs; looks at them and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from muplan.errors import DeviceError
from muplan.hardware.catalog import DEVICE_OF_GPU
from muplan.hardware.nvml import NvmlMeter
from muplan.hardware.way import Way, find_way, way_or_refusal
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.profiling.measured.gpu import check_free, nvml_index
from muplan.serde import Part
from muplan.serving.realtime.on_gpus import PlanGpu


class GpuClock(Part):
    """A GPU of the plan, the one of this host that it would be, and its clock."""

    gpu: str
    index: int | str
    name: str
    """As the driver has it; empty where there is no such GPU."""
    clock_mhz: int


class ClockIntent(Part):
    """The clocks that would be set at the beginning of a run, and what stands against it."""

    gpus: tuple[GpuClock, ...]
    way: Way | None
    controller: str
    """What would move the clocks in the course of the run."""
    restored_to: str = "what the driver chooses (locked clocks are reset)"
    objections: tuple[str, ...]
    """Why it would be refused; empty where it would not."""


def plan_gpus(plan: Plan) -> tuple[PlanGpu, ...]:
    """The GPUs of this host that the stages of a plan take: by their names, as CUDA numbers them.

    Raises
    ------
    DeviceError
        CUDA_VISIBLE_DEVICES hides one.
    """
    order = sorted(gpu for group in plan.deployment.groups for gpu in group.gpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(
        PlanGpu(
            index=nvml_index(order.index(gpu), visible),
            group=group.name,
            stage=number,
            clock_mhz=stage.clock_mhz,
        )
        for group in plan.deployment.groups
        for number, stage in enumerate(group.stages)
        for gpu in stage.gpus
    )


def clock_intent(problem: Problem, plan: Plan, *, controller: str, is_shared: bool = False) -> ClockIntent:
    """Say what executing a plan with --apply-clocks would do, and what stands against it.

    Parameters
    ----------
    controller
        The clock control of the run.
    is_shared
        Whether others may use the GPUs meanwhile.
    """
    gpus, objections = list[GpuClock](), list(_objections_to_rights())
    try:
        held = plan_gpus(plan)
    except DeviceError as error:
        return ClockIntent(gpus=(), way=find_way(), controller=controller, objections=(_said(error),))
    names = [gpu for group in plan.deployment.groups for stage in group.stages for gpu in stage.gpus]
    devices = {group.name: problem.devices[group.pool].name for group in plan.deployment.groups}
    for gpu, place in zip(names, held, strict=True):
        name = ""
        try:
            with NvmlMeter(place.index) as meter:
                name = meter.name
                found = DEVICE_OF_GPU.get(name)
                if found not in (None, devices[place.group]):
                    objections.append(f"{gpu} is to be {devices[place.group]}; GPU {place.index} is {name}.")
                if place.clock_mhz not in meter.supported_clocks_mhz:
                    objections.append(f"{name} has no clock of {place.clock_mhz} MHz.")
                check_free(meter, is_shared=is_shared)
        except DeviceError as error:
            objections.append(_said(error))
        gpus.append(GpuClock(gpu=gpu, index=place.index, name=name, clock_mhz=place.clock_mhz))
    return ClockIntent(
        gpus=tuple(gpus), way=find_way(), controller=controller, objections=tuple(dict.fromkeys(objections))
    )


def _objections_to_rights() -> Iterator[str]:
    try:
        way_or_refusal()
    except DeviceError as error:
        yield _said(error)


def _said(error: DeviceError) -> str:
    return f"{error.problem} {error.remedy}"


def parked_indices(plan: Plan, num_gpus: int) -> Sequence[int | str]:
    """The GPUs of this host that the plan parks: those after the ones in use, as far as there are any."""
    used = sum(len(group.gpus) for group in plan.deployment.groups)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [nvml_index(index, visible) for index in range(used, min(used + len(plan.parked), num_gpus))]
