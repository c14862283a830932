"""The comparison of controllers: one plan's clocks controlled in several ways, on the same requests."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from muplan.run import RunProvenance
from muplan.serde import Document, Part
from muplan.workload import ControlPolicy


class ServiceAttainment(Part):
    """The share of a service's requests that were within its limits, in the measured period."""

    service: str
    attainment: float
    target: float


class ControlledRun(Part):
    """What one controller made of the requests."""

    controller: ControlPolicy
    energy_j: float
    """Of the fleet in the measured period."""
    power_w: float
    energy_per_request_j: float | None = None
    """Absent where nothing was served."""
    services: tuple[ServiceAttainment, ...]
    meets_targets: bool
    changes_per_minute: float
    """Clock changes a minute, mean over the stages."""
    most_changes_in_a_minute: int
    """The most of any stage in any minute of the clock."""
    bound_j: float
    """What no control of clocks can do without, given what each group was sent in this run."""
    over_bound: float
    """Energy over the bound; says nothing where targets are missed."""
    over_first: float
    """Energy over that of the first controller."""


class ControlComparison(Document):
    """Controllers side by side, in the order in which they were asked for."""

    KIND: ClassVar[str] = "control-comparison"

    kind: Literal["control-comparison"] = "control-comparison"
    schema_version: Literal[1] = 1
    plan: str
    """Name of the plan."""
    provenance: RunProvenance
    label: Literal["modelled"] = "modelled"
    seed: int
    duration_s: float
    warm_up_s: float
    cool_down_s: float
    slot_s: float
    """Width of the slots of the bound's programme."""
    runs: tuple[ControlledRun, ...] = Field(min_length=1)
