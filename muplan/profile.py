"""The profile: how the operator clusters of one model respond to the clock of one device.

`profile` writes it and `solve` reads it. A profile holds, for every distinct cluster (a *cluster
type*), latency and power over operating points: tensor parallelism × clock × batch × tokens, per
phase. Between the points of a profile values are interpolated; outside its range a look-up is an
error, never a guess.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from muplan.errors import InputError
from muplan.model.graph import Phase as Phase
from muplan.serde import Document, Part

Floats = NDArray[np.float64]


class Method(StrEnum):
    """Where the figures of a profile come from."""

    MODELLED = "modelled"  # the analytical profiler: a roofline under the device's physics
    MEASURED = "measured"  # a GPU
    IMPORTED = "imported"  # a table of measurements from elsewhere; the description says what it lacked


class PhaseGrid(Part):
    """The operating points of a phase.

    ``tokens`` are tokens per sequence: those computed by a forward or prefill pass; in decode, where
    one token is computed, those attended to (the context).
    """

    phase: Phase
    batches: tuple[int, ...] = Field(min_length=1)
    tokens: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for name, values in (("batches", self.batches), ("tokens", self.tokens)):
            _check_ascending(name, values)
        return self


class OperatingTable(Part):
    """Latency and power of a cluster in one phase, indexed [configuration][clock][batch][tokens].

    A configuration is an entry of the profile's ``tensor_parallel``.
    """

    phase: Phase
    latency_s: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]
    power_w: tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]


class ClusterType(Part):
    """Operators that are planned as a unit; every repetition along the graph shares one type.

    The tuples ``*_per_gpu`` are indexed by the profile's configurations.
    """

    name: str
    operators: tuple[str, ...]
    weight_bytes_per_gpu: tuple[int, ...]
    kv_bytes_per_token_per_gpu: tuple[int, ...]
    activation_bytes_per_token_per_gpu: tuple[int, ...]
    """Peak working memory for each token of the batch."""
    output_bytes_per_token: float
    """Size of the activation handed to the next cluster, for each token."""
    tables: tuple[OperatingTable, ...]


class Cluster(Part):
    """One cluster along the graph: its place's name and the index of its type."""

    name: str
    type: int


class MeasurementSummary(Part):
    """How a profile was measured, and how far it can be relied on.

    Intervals are half the width of a point's 95 % interval over its median; interpolation errors are those
    of whole passes, each predicted from its neighbours on the grid alone. Shares, not percent.
    """

    place: str
    """What was measured on: its name, driver and software."""
    num_points: int
    refused: tuple[str, ...]
    """Points whose time no try gave reliably, and why; they are filled in from their neighbours."""
    interval_median: float
    interval_largest: float
    interpolation_error_median: float | None = None
    interpolation_error_largest: float | None = None
    running_clock_mhz: int | None = None
    """The one clock of the profile that was measured, where none was set; all others are modelled."""
    set_clocks_mhz: tuple[int, ...] = ()
    """The clocks that were set and measured; values of those between are interpolated."""
    effective_mhz: tuple[float, ...] = ()
    """The SM clock under load at each of them, median."""
    clocks_refused: tuple[str, ...] = ()
    """Clocks that were set and that the device did not come to."""
    judged_clocks_mhz: tuple[int, ...] = ()
    """Clocks that were left out, and measured at one point of the grid to judge the curves."""
    clock_residual: float | None = None
    """How far time or power of a whole pass at any of them is from what the curves say, at most."""
    num_energy_points: int
    """Points whose power is from the energy counter; that of all others is interpolated or modelled."""
    energy_refused: tuple[str, ...] = ()
    slowest_effective_mhz: float | None = None
    fastest_effective_mhz: float | None = None
    """Range of the SM clock under load."""
    num_limited: int = 0
    """Points at which a limit kept the clock down while energy was read."""
    limits: tuple[str, ...] = ()
    hottest_c: int | None = None
    counter_over_readings: float | None = None
    """Power by the energy counter over the mean of the driver's readings, median."""
    parked_w: float | None = None
    loaded_w: float | None = None
    """Power without a context, and with one that waits; absent where not measured."""


class ProfileProvenance(Part):
    """Where a profile comes from; ``measurement`` says of a measured one how it was made."""

    method: Method
    description: str
    muplan_version: str
    model_digest: str
    device_digest: str
    measurement: MeasurementSummary | None = None


class Configuration(NamedTuple):
    """A parallel configuration that a profile covers; ``num_stages`` None stands for every number."""

    tensor_parallel: int
    num_stages: int | None


class Profile(Document):
    """A model on a device: clusters in the order of the graph, and their operating tables.

    The clusters of most profiles can be put on any number of stages, and the tables are indexed by
    tensor parallelism alone. A profile of *measured pipelines* knows the stages of certain
    configurations only: it has ``num_stages``, its clusters are slices of the measured stages, and a
    pipeline has to be cut at `measured_cuts`.
    """

    KIND: ClassVar[str] = "profile"

    kind: Literal["profile"] = "profile"
    schema_version: Literal[1] = 1
    model: str
    device: str
    request_kind: Literal["forward", "generate"]
    provenance: ProfileProvenance
    reference_clock_mhz: int
    """The clock at which sensitivity scores are stated."""
    clocks_mhz: tuple[int, ...] = Field(min_length=2)
    tensor_parallel: tuple[int, ...] = Field(min_length=1)
    num_stages: tuple[int, ...] | None = None
    """Measured pipelines: number of stages beside each entry of ``tensor_parallel``."""
    phases: tuple[PhaseGrid, ...] = Field(min_length=1)
    cluster_types: tuple[ClusterType, ...] = Field(min_length=1)
    clusters: tuple[Cluster, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_ascending("clocks_mhz", self.clocks_mhz)
        self._check_configurations()
        if self.reference_clock_mhz not in self.clocks_mhz:
            raise ValueError(f"reference_clock_mhz {self.reference_clock_mhz} is none of clocks_mhz")
        for index, cluster in enumerate(self.clusters):
            if not 0 <= cluster.type < len(self.cluster_types):
                raise ValueError(f"clusters[{index}].type {cluster.type} is no index of cluster_types")
        for cluster_type in self.cluster_types:
            self._check_type(cluster_type)
        return self

    def _check_configurations(self) -> None:
        if self.num_stages is None:
            _check_ascending("tensor_parallel", self.tensor_parallel)
            return
        if len(self.num_stages) != len(self.tensor_parallel):
            raise ValueError("num_stages and tensor_parallel must have the same length")
        pairs = list(zip(self.tensor_parallel, self.num_stages, strict=True))
        if any(low >= high for low, high in pairwise(pairs)):
            raise ValueError("the pairs of tensor_parallel and num_stages must ascend")
        if min(*self.tensor_parallel, *self.num_stages) < 1:
            raise ValueError("tensor_parallel and num_stages must be positive")
        if max(self.num_stages) > len(self.clusters):
            raise ValueError(
                f"{max(self.num_stages)} stages cannot be cut from {len(self.clusters)} clusters"
            )

    def _check_type(self, cluster_type: ClusterType) -> None:
        phases = [grid.phase for grid in self.phases]
        if [table.phase for table in cluster_type.tables] != phases:
            raise ValueError(f"cluster type {cluster_type.name!r} needs one table for each of {phases}")
        for grid, table in zip(self.phases, cluster_type.tables, strict=True):
            shape = (len(self.tensor_parallel), len(self.clocks_mhz), len(grid.batches), len(grid.tokens))
            for name, values in (("latency_s", table.latency_s), ("power_w", table.power_w)):
                try:
                    actual = np.asarray(values, dtype=float).shape
                except ValueError:
                    actual = ()
                if actual != shape:
                    raise ValueError(
                        f"{name} of cluster type {cluster_type.name!r}, {grid.phase}: expected the shape"
                        f" {shape} (configurations, clocks, batches, tokens)"
                    )

    @property
    def max_clock_mhz(self) -> int:
        """The highest clock of the profile."""
        return self.clocks_mhz[-1]

    @cached_property
    def cluster_type_index(self) -> NDArray[np.int64]:
        """Type index of every cluster, in the order of the graph; shape (clusters,)."""
        return np.array([cluster.type for cluster in self.clusters])

    @cached_property
    def _tables(self) -> dict[Phase, tuple[Floats, Floats]]:
        return {
            grid.phase: (
                np.array([kind.tables[index].latency_s for kind in self.cluster_types]),
                np.array([kind.tables[index].power_w for kind in self.cluster_types]),
            )
            for index, grid in enumerate(self.phases)
        }

    def grid(self, phase: Phase) -> PhaseGrid:
        """The operating points of a phase."""
        for grid in self.phases:
            if grid.phase == phase:
                return grid
        raise InputError(
            f"The profile of {self.model} on {self.device} has no {phase} phase.",
            f"It serves {self.request_kind} requests; correct the service's request kind.",
        )

    @cached_property
    def configurations(self) -> tuple[Configuration, ...]:
        """Every configuration that the tables cover, in their order."""
        stages = self.num_stages or (None,) * len(self.tensor_parallel)
        return tuple(map(Configuration, self.tensor_parallel, stages))

    @property
    def tensor_parallel_degrees(self) -> tuple[int, ...]:
        """Every tensor parallelism of the tables, each once, ascending."""
        return tuple(dict.fromkeys(self.tensor_parallel))

    def covers(self, tensor_parallel: int, num_stages: int) -> bool:
        """Whether a group of that tensor parallelism and number of stages can be looked up."""
        known = self.configurations
        return (tensor_parallel, None) in known or (tensor_parallel, num_stages) in known

    def measured_cuts(self, tensor_parallel: int, num_stages: int) -> tuple[int, ...] | None:
        """Where a measured pipeline is cut: for each stage the index after its last cluster.

        None where the profile may be cut anywhere; InputError where it does not cover the configuration.
        """
        self.tensor_parallel_index(tensor_parallel, num_stages)
        if self.num_stages is None:
            return None
        return even_cuts(len(self.clusters), num_stages)

    def tensor_parallel_index(self, tensor_parallel: int, num_stages: int | None = None) -> int:
        """The index of a configuration in the tables.

        A profile without ``num_stages`` ignores that of the look-up; one with it needs it.

        Raises
        ------
        InputError
            The profile does not cover the configuration.
        """
        wanted = Configuration(tensor_parallel, None if self.num_stages is None else num_stages)
        if wanted in self.configurations:
            return self.configurations.index(wanted)
        if self.num_stages is None:
            known = ", ".join(map(str, self.tensor_parallel))
            raise InputError(
                f"The profile of {self.model} on {self.device} has no tensor parallelism {tensor_parallel};"
                f" it has {known}.",
                "Choose one of these, or profile again.",
            )
        known = ", ".join(f"{width} × {stages}" for width, stages in self.configurations)
        raise InputError(
            f"The profile of {self.model} on {self.device} holds measured pipelines, none of tensor"
            f" parallelism {tensor_parallel} × {num_stages or 'any number of'} stages; it has {known}.",
            "Choose one of these, or import measurements of that configuration.",
        )

    def latency_s(
        self,
        phase: Phase,
        *,
        tensor_parallel: int,
        batch: float,
        tokens: float,
        num_stages: int | None = None,
    ) -> Floats:
        """Latency of every cluster type at every clock, seconds; shape (cluster types, clocks).

        Log-linear in batch and in tokens between the profile's points; InputError outside them.
        """
        index = self.tensor_parallel_index(tensor_parallel, num_stages)
        return self._at(self._tables[self.grid(phase).phase][0], phase, index, batch, tokens)

    def power_w(
        self,
        phase: Phase,
        *,
        tensor_parallel: int,
        batch: float,
        tokens: float,
        num_stages: int | None = None,
    ) -> Floats:
        """Power of one GPU while it runs a cluster type, watts; shape (cluster types, clocks)."""
        index = self.tensor_parallel_index(tensor_parallel, num_stages)
        return self._at(self._tables[self.grid(phase).phase][1], phase, index, batch, tokens)

    def _at(self, table: Floats, phase: Phase, configuration: int, batch: float, tokens: float) -> Floats:
        grid = self.grid(phase)
        values = _interpolate_log(table[:, configuration], grid.tokens, tokens, f"tokens in {phase}", self)
        return _interpolate_log(values, grid.batches, batch, f"batch in {phase}", self)

    def sensitivity(
        self,
        phase: Phase,
        *,
        tensor_parallel: int = 1,
        batch: float,
        tokens: float,
        num_stages: int | None = None,
    ) -> Floats:
        """Sensitivity ``s(f) = (t(f)/t(f_max) − 1) / (f_max/f − 1)``; shape (cluster types, clocks − 1).

        Clocks are those of the profile below the highest: 0 is indifferent to the clock, 1 slows in
        proportion to it.
        """
        latency = self.latency_s(
            phase, tensor_parallel=tensor_parallel, batch=batch, tokens=tokens, num_stages=num_stages
        )
        slowdown = latency[:, :-1] / latency[:, -1:] - 1.0
        ratio = self.max_clock_mhz / np.array(self.clocks_mhz[:-1], dtype=float) - 1.0
        return np.asarray(slowdown / ratio)

    def sensitivity_score(
        self,
        phase: Phase,
        *,
        tensor_parallel: int = 1,
        batch: float,
        tokens: float,
        num_stages: int | None = None,
    ) -> Floats:
        """Sensitivity at the reference clock; shape (cluster types,)."""
        curve = self.sensitivity(
            phase, tensor_parallel=tensor_parallel, batch=batch, tokens=tokens, num_stages=num_stages
        )
        return np.asarray(curve[:, self.clocks_mhz.index(self.reference_clock_mhz)])


def even_cuts(num_clusters: int, num_stages: int) -> tuple[int, ...]:
    """For each stage the index after its last cluster, the stages as equal in clusters as can be."""
    return tuple(num_clusters * stage // num_stages for stage in range(1, num_stages + 1))


def _interpolate_log(
    values: Floats, points: tuple[int, ...], at: float, name: str, profile: Profile
) -> Floats:
    """Interpolate the last axis log-log between ``points``."""
    if not points[0] <= at <= points[-1]:
        raise InputError(
            f"The profile of {profile.model} on {profile.device} covers {points[0]}–{points[-1]} {name},"
            f" not {at:g}.",
            "Stay within the range, or profile a wider one.",
        )
    upper = int(np.searchsorted(points, at))
    if points[upper] == at:
        return np.asarray(values[..., upper])
    lower = upper - 1
    weight = np.log(at / points[lower]) / np.log(points[upper] / points[lower])
    return np.asarray(values[..., lower] ** (1.0 - weight) * values[..., upper] ** weight)


def _check_ascending(name: str, values: tuple[int, ...]) -> None:
    if any(low >= high for low, high in pairwise(values)):
        raise ValueError(f"{name} must ascend")
    if values[0] < 1:
        raise ValueError(f"{name} must be positive")
