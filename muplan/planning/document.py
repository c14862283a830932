"""From a planning result to the plan document: inputs by digest, paths relative to the plan."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import muplan
from muplan.comparison import ComparedPlan, Comparison
from muplan.frontier import Axis, Frontier, FrontierPoint
from muplan.plan import Plan, Provenance
from muplan.planning.solve import Planned
from muplan.problem.problem import Problem
from muplan.serde import digest


def make_plan(problem: Problem, planned: Planned, *, workload: Path, folder: Path) -> Plan:
    """Make the document of a planned deployment.

    Parameters
    ----------
    workload
        File of the problem's workload.
    folder
        Folder that the plan will lie in; the plan names its workload relative to it.
    """
    return Plan(
        name=problem.workload.name,
        provenance=_provenance(problem, workload, folder),
        solution=planned.solution,
        demand_factor=planned.demand_factor,
        deployment=planned.deployment,
        parked=planned.parked,
        prediction=planned.prediction,
        baselines=planned.baselines,
        reasons=planned.reasons,
        marginal_values=planned.marginal_values,
        what_ifs=planned.what_ifs,
    )


def make_comparison(
    problem: Problem, plans: Sequence[ComparedPlan], *, seed: int, workload: Path, folder: Path
) -> Comparison:
    """Make the document of several methods' plans; parameters as `make_plan`, ``seed`` as `compare`."""
    return Comparison(
        name=problem.workload.name,
        provenance=_provenance(problem, workload, folder),
        objective=problem.workload.objective,
        seed=seed,
        plans=tuple(plans),
    )


def make_frontier(
    problem: Problem,
    points: Sequence[FrontierPoint],
    *,
    axis: Axis,
    solver: str,
    seed: int,
    workload: Path,
    folder: Path,
) -> Frontier:
    """Make the document of a frontier; parameters as `make_plan` and `trace_frontier`."""
    return Frontier(
        name=problem.workload.name,
        provenance=_provenance(problem, workload, folder),
        axis=axis,
        solver=str(solver),
        seed=seed,
        points=tuple(points),
    )


def _provenance(problem: Problem, workload: Path, folder: Path) -> Provenance:
    return Provenance(
        muplan_version=muplan.__version__,
        workload=Path(os.path.relpath(workload, folder)).as_posix(),
        workload_digest=digest(problem.workload),
        devices={device.name: digest(device) for device in problem.devices.values()},
        profiles={
            f"{profile.device}/{profile.model}": digest(profile)
            for service in problem.services
            for profile in service.profiles.values()
        },
        lengths={
            service.name: digest(service.lengths)
            for service in problem.services
            if service.lengths is not None
        },
        traces={
            service.name: service.trace.digest for service in problem.services if service.trace is not None
        },
    )
