"""From a planning result to the plan document: inputs by digest, paths relative to the plan."""

from __future__ import annotations

import os
from pathlib import Path

import muplan
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
        provenance=_provenance(problem, Path(os.path.relpath(workload, folder)).as_posix()),
        solution=planned.solution,
        deployment=planned.deployment,
        parked=planned.parked,
        prediction=planned.prediction,
        baselines=planned.baselines,
        reasons=planned.reasons,
    )


def _provenance(problem: Problem, workload: str) -> Provenance:
    return Provenance(
        muplan_version=muplan.__version__,
        workload=workload,
        workload_digest=digest(problem.workload),
        devices={device.name: digest(device) for device in problem.devices.values()},
        profiles={
            f"{profile.device}/{profile.model}": digest(profile)
            for service in problem.services
            for profile in service.profiles.values()
        },
        lengths={
            service.lengths.name: digest(service.lengths)
            for service in problem.services
            if service.lengths is not None
        },
        traces={
            service.spec.demand.trace: service.trace.digest
            for service in problem.services
            if service.trace is not None and service.spec.demand.trace is not None
        },
    )
