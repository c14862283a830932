"""The machine at hand against what a plan asks for, and a torch backend on it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from muplan.errors import DeviceError, InputError
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.problem.source import find_graph
from muplan.serving.realtime.backend import Backend
from muplan.serving.workers.backend import WorkerBackend
from muplan.serving.workers.parts import WorkerParts, worker_parts
from muplan.serving.workers.processes import Processes

PROCESSOR = "cpu"
"""The shipped device that a processor core is."""


def open_backend(
    problem: Problem, plan: Plan, *, directory: Path, sets_clocks: bool = False, is_shared: bool = False
) -> Backend:
    """Make the backend that runs a plan on this host; its workers start when it is entered.

    Parameters
    ----------
    directory
        Where the workload's paths start from.
    sets_clocks
        Whether the GPUs' clocks are to be the plan's, and restored.
    is_shared
        Whether others may use the GPUs meanwhile.

    Raises
    ------
    InputError
        torch is not installed; a model has no graph; the plan asks for what the backend does not do; or
        clocks are to be set of what has none that can be.
    DeviceError
        The machine has not the GPUs that the plan is for, or does not let their clocks be set.
    """
    workers = workers_of(problem, plan, directory=directory)
    check_machine(workers)
    backend = WorkerBackend(workers, Processes(workers))
    if {held.device for held in workers} <= {PROCESSOR}:
        if sets_clocks:
            raise InputError(
                "--apply-clocks does not go with processor cores: muplan sets the clocks of GPUs alone.",
                "Leave it out, or execute a plan for GPUs.",
            )
        return backend
    import torch

    from muplan.hardware.way import way_or_refusal
    from muplan.serving.realtime.clock_intent import parked_indices, plan_gpus
    from muplan.serving.realtime.on_gpus import OnGpus

    return OnGpus(
        backend,
        plan_gpus(plan),
        parked_indices(plan, torch.cuda.device_count()),
        way=way_or_refusal() if sets_clocks else None,
        is_shared=is_shared,
    )


def workers_of(problem: Problem, plan: Plan, *, directory: Path) -> tuple[WorkerParts, ...]:
    """What each worker of a plan holds.

    Raises
    ------
    InputError
        A model has no graph, or the plan asks for what workers do not do.
    """
    graphs = {
        service.name: find_graph(service.spec.model, directory=directory) for service in problem.services
    }
    return worker_parts(problem, plan.deployment, graphs)


def check_machine(workers: Sequence[WorkerParts]) -> None:
    """Refuse a plan for GPUs that are not here.

    Raises
    ------
    InputError
        torch is not installed.
    DeviceError
        Too few GPUs, or of another type.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(f"The torch backend needs torch ({error}).", "pip install 'muplan[torch]'") from None
    devices = {held.device for held in workers}
    if devices <= {PROCESSOR}:
        return
    if len(devices) > 1:
        raise DeviceError(
            f"The plan is for {', '.join(sorted(devices))}: no one machine has them all.",
            "Execute a plan for one type of device here.",
        )
    wanted = len({held.gpu for held in workers})
    if torch.cuda.device_count() < wanted:
        raise DeviceError(
            f"The plan uses {wanted} GPUs; torch sees {torch.cuda.device_count()} on this machine.",
            "Execute it where they are, or on the simulated backend.",
        )
    for index in range(wanted):
        check_gpu(index, next(iter(devices)))


def check_gpu(index: int, asked: str) -> None:
    """Refuse a GPU of this host that is known to be another device than is asked for.

    Raises
    ------
    DeviceError
        Names both.
    """
    import torch

    from muplan.hardware.catalog import DEVICE_OF_GPU

    name = torch.cuda.get_device_name(index)
    here = DEVICE_OF_GPU.get(name)
    if here is not None and here != asked:
        raise DeviceError(
            f"The plan is for {asked}; GPU {index} of {platform.node()} is {name} ({here}).",
            "Solve the workload for the GPUs at hand.",
        )
