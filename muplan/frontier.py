"""The frontier: the plans of one workload of which none is both stricter and cheaper than another."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from muplan.plan import Deployment, Prediction, Provenance, SolutionSummary, Status
from muplan.serde import Document, Part


class Axis(StrEnum):
    """What power is traded against."""

    ATTAINMENT = "attainment"  # the attainment target of every service; higher is better
    SLO_SCALE = "slo-scale"  # a multiple of all latency limits; lower is better
    GPUS = "gpus"  # how many GPUs of the fleet may be used; lower is better


class FrontierPoint(Part):
    """What the planner made of one value of the axis; the workload is as given in all else."""

    value: float
    status: Status
    """``infeasible`` or ``time-limit`` where no plan was found."""
    is_dominated: bool = False
    """Another point has at least as good a value on no more power."""
    placed: tuple[str, ...] = ()
    parked: tuple[str, ...] = ()
    solution: SolutionSummary | None = None
    deployment: Deployment | None = None
    prediction: Prediction | None = None
    """Of the whole fleet of the workload, on the same held-apart traces for all points."""

    @property
    def worst_attainment(self) -> float | None:
        """Lowest mean attainment over the services."""
        if self.prediction is None:
            return None
        return min(item.attainment.mean for item in self.prediction.services)


class Frontier(Document):
    """The points of a frontier, the strictest value first."""

    KIND: ClassVar[str] = "frontier"

    kind: Literal["frontier"] = "frontier"
    schema_version: Literal[1] = 1
    name: str
    provenance: Provenance
    axis: Axis
    solver: str
    seed: int
    points: tuple[FrontierPoint, ...] = Field(min_length=1)

    @property
    def undominated(self) -> tuple[FrontierPoint, ...]:
        """The plans on the frontier: from one to the next, the value gets looser and power falls."""
        return tuple(
            point for point in self.points if point.prediction is not None and not point.is_dominated
        )
