"""The plan: who runs where, at which clock, and what that is expected to bring.

A `Deployment` says what to run: groups of GPUs in pipelines, the replicas they host, clocks,
routing. Simulator and runner read only that. A `Plan` adds what the planner claims of it:
predictions with intervals, baselines, bound and gap, reasons, and the digests of its inputs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from muplan.serde import Document, Part
from muplan.workload import Goal, Serving

ClusterRange = tuple[int, int]
"""Clusters ``start ≤ index < stop`` of a profile."""


class Stage(Part):
    """The GPUs that run one stage of a group: a tensor-parallel set under one clock."""

    gpus: tuple[str, ...] = Field(min_length=1)
    clock_mhz: int


class Replica(Part):
    """A service hosted on a group."""

    service: str
    share: float = Field(gt=0, le=1 + 1e-9)
    """Part of the service's demand that the plan sends here."""
    max_batch: int = Field(ge=1)
    """Requests in a batch (forward) or sequences in the continuous batch (generate)."""
    stage_clusters: tuple[tuple[ClusterRange, ...], ...] = Field(min_length=1)
    """For each stage of the group, the cluster ranges it computes; together all, each once."""


class Group(Part):
    """GPUs whose stages form one pipeline."""

    name: str
    pool: str
    stages: tuple[Stage, ...] = Field(min_length=1)
    replicas: tuple[Replica, ...] = Field(min_length=1)

    @property
    def tensor_parallel(self) -> int:
        """GPUs of a stage."""
        return len(self.stages[0].gpus)

    @property
    def gpus(self) -> tuple[str, ...]:
        """All GPUs of the group, stage by stage."""
        return tuple(gpu for stage in self.stages for gpu in stage.gpus)

    @model_validator(mode="after")
    def _same_width(self) -> Self:
        if len({len(stage.gpus) for stage in self.stages}) > 1:
            raise ValueError("all stages of a group have the same number of GPUs")
        for replica in self.replicas:
            if len(replica.stage_clusters) != len(self.stages):
                raise ValueError(
                    f"replica {replica.service!r} needs one entry of stage_clusters for each stage"
                )
        return self


class Deployment(Part):
    """What to run: everything that simulator and runner need beside the problem."""

    groups: tuple[Group, ...]
    admitted: dict[str, float] = Field(default_factory=dict)
    """Share of a service's demand let in, where it is below 1 (goodput under a cap)."""
    serving: Serving

    @property
    def placed_gpus(self) -> tuple[str, ...]:
        """GPUs that host something; all others are parked."""
        return tuple(gpu for group in self.groups for gpu in group.gpus)


class Interval(Part):
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


class ServicePrediction(Part):
    """What the simulator expects of one service."""

    service: str
    rate_rps: float
    attainment: Interval
    target: float
    latency_mean_s: Interval
    """Mean end-to-end latency."""
    latency_p50_s: float
    latency_p99_s: float
    ttft_p99_s: float | None = None
    tpot_p99_s: float | None = None


class Prediction(Part):
    """What a deployment is expected to bring: simulated, on seeds that no search has seen."""

    label: Literal["modelled", "measured"] = "modelled"
    seed: int
    duration_s: float
    replications: int
    power_w: Interval
    energy_per_request_j: float
    goodput_rps: Interval
    services: tuple[ServicePrediction, ...]


class Baseline(Part):
    """One row of the panel that every plan is held against; same simulator, same traces."""

    name: str
    description: str
    power_w: float | None = None
    """Absent where the baseline finds no deployment."""
    attainment: float | None = None
    """Lowest mean attainment over the services."""
    meets_targets: bool | None = None
    energy_per_request_j: float | None = None
    saving: float | None = None
    """Its power over the plan's."""
    is_bound: bool = False
    """A lower bound that no placement can beat, not a deployment."""
    deployment: Deployment | None = None
    """What was simulated, so that `verify` can simulate it again; absent for the bound and the plan's row."""


class Status(StrEnum):
    """How a solver ended."""

    OPTIMAL = "optimal"  # proven, for the stated model
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    TIME_LIMIT = "time-limit"  # nothing found in time


UNITS: dict[Goal, str] = {
    Goal.POWER: "W",
    Goal.GOODPUT: "requests/s",
    Goal.RATE: "× demand",
    Goal.ENERGY_PER_REQUEST: "J/request",
}
"""Units in which goals are stated."""


class GoalSummary(Part):
    """What was reached of one goal, and what no solution of the stated model exceeds."""

    goal: Goal
    value: float
    unit: str
    bound: float
    gap: float = Field(ge=0)
    """Distance of value and bound, relative to the value."""

    @model_validator(mode="after")
    def _unit_of_goal(self) -> Self:
        if self.unit != UNITS[self.goal]:
            raise ValueError(f"{self.goal.value} is stated in {UNITS[self.goal]}")
        return self


class SolutionSummary(Part):
    """What the solver says of its solution, goal by goal, each at the best of those before."""

    solver: str
    status: Status
    achieved: tuple[GoalSummary, ...] = Field(min_length=1)
    seed: int
    guard_rounds: int
    """How often the queueing guard was corrected by simulation."""


class Reason(Part):
    """One sentence of explanation, about a group, a service or the fleet."""

    subject: str
    text: str


class MarginalValue(Part):
    """What one more unit of a constraint's right side adds to the power; modelled, linear relaxation."""

    constraint: str
    subject: str
    value: float
    unit: str


class WhatIf(Part):
    """The power that a change of the workload would save in the stated model, above that of parked GPUs."""

    change: Literal["one-more-gpu", "longer-limits", "less-demand"]
    """Limits and demand change by a tenth."""
    subject: str
    """A pool, a service, or ``all`` services."""
    saves_w: float
    method: Literal["solved", "relaxation"]
    """Whether two optima were compared or their linear relaxations."""


class Provenance(Part):
    """The inputs of a plan, by digest; a change in any of them voids it."""

    muplan_version: str
    workload: str
    """Path of the workload, relative to the plan."""
    workload_digest: str
    devices: dict[str, str]
    profiles: dict[str, str]
    """Digest of each ``device/model`` profile."""
    lengths: dict[str, str] = Field(default_factory=dict)
    """Digest of each service's length distribution, as its model's context limits it."""
    traces: dict[str, str] = Field(default_factory=dict)
    """Digest of each service's recorded requests."""


class Plan(Document):
    """A deployment with everything the planner claims of it."""

    KIND: ClassVar[str] = "plan"

    kind: Literal["plan"] = "plan"
    schema_version: Literal[1] = 1
    name: str
    provenance: Provenance
    solution: SolutionSummary
    demand_factor: float = Field(default=1.0, gt=0)
    """Multiple of the workload's demand that the plan is made for, where the highest rate is the goal."""
    deployment: Deployment
    parked: tuple[str, ...]
    prediction: Prediction
    baselines: tuple[Baseline, ...]
    reasons: tuple[Reason, ...]
    marginal_values: tuple[MarginalValue, ...] = ()
    what_ifs: tuple[WhatIf, ...] = ()
