"""A backend of Ray's actors."""

from __future__ import annotations

from pathlib import Path

from muplan.errors import InputError
from muplan.plan import Plan
from muplan.problem.problem import Problem
from muplan.serving.ray.actors import RayActors
from muplan.serving.ray.session import RaySession
from muplan.serving.workers.backend import WorkerBackend
from muplan.serving.workers.machine import workers_of


def open_backend(problem: Problem, plan: Plan, *, directory: Path, address: str | None) -> WorkerBackend:
    """Make the backend that runs a plan on a Ray cluster; its actors start when it is entered.

    Parameters
    ----------
    directory
        Where the workload's paths start from.
    address
        As `RaySession` has it.

    Raises
    ------
    InputError
        Ray is not installed; a model has no graph; or the plan asks for what workers do not do.
    """
    try:
        import ray  # noqa: F401 - whether it is there
    except ImportError as error:
        raise InputError(
            f"The ray backend needs Ray ({error}).", "pip install 'muplan[torch,ray]', on all hosts"
        ) from None
    workers = workers_of(problem, plan, directory=directory)
    return WorkerBackend(workers, RayActors(workers, RaySession(address)))
