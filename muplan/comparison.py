"""The comparison: plans of one workload by several methods, on the same held-apart traces."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from muplan.plan import (
    Deployment,
    Interval,
    Prediction,
    Provenance,
    Reason,
    ServicePrediction,
    SolutionSummary,
    Status,
)
from muplan.serde import Document, Part
from muplan.workload import Objective


class ComparedPlan(Part):
    """What one method made of the workload."""

    solver: str
    description: str
    status: Status
    """``infeasible`` or ``time-limit`` where no plan was found, even if a deployment that falls short was."""
    meets_targets: bool
    placed: tuple[str, ...] = ()
    parked: tuple[str, ...] = ()
    solution: SolutionSummary | None = None
    deployment: Deployment | None = None
    """Absent where the method found none at all."""
    prediction: Prediction | None = None
    power_over_first: Interval | None = None
    """Its power over that of the first method, replication by replication on the same traces."""
    faults: tuple[Reason, ...] = ()
    """Why a deployment is no plan."""

    def margin(self, service: ServicePrediction) -> float:
        """Attainment above what is due: the target, of the admitted part where some is turned away."""
        admitted = self.deployment.admitted.get(service.service, 1.0) if self.deployment is not None else 1.0
        return service.attainment.mean - service.target * admitted


class Comparison(Document):
    """Plans side by side, in the order in which they were asked for."""

    KIND: ClassVar[str] = "comparison"

    kind: Literal["comparison"] = "comparison"
    schema_version: Literal[1] = 1
    name: str
    provenance: Provenance
    objective: Objective
    seed: int
    plans: tuple[ComparedPlan, ...] = Field(min_length=1)
