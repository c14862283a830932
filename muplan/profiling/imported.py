"""Profiles made of measurements from elsewhere: `import_profiles`.

The stages of a measured pipeline are not sums of smaller parts, so such a profile is indexed by
tensor parallelism *and* number of stages. Its clusters are slices: in the table of n stages each stage's
time and weights are divided evenly over its slices, so that the partition at
`Profile.measured_cuts` gives back what was measured, and no other is allowed. Stage latencies include the
transfers; no activation is handed on.

What a table lacks is filled in and named in the provenance: the response to other clocks and the power
come from the device's physics at one stated share of compute.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import muplan
from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.profile import (
    Cluster,
    ClusterType,
    Method,
    OperatingTable,
    Phase,
    PhaseGrid,
    Profile,
    ProfileProvenance,
    even_cuts,
)
from muplan.profiling.clock_response import ClockResponse, clock_response
from muplan.profiling.grid import clock_grid, reference_clock_mhz
from muplan.profiling.latency_checks import check_table
from muplan.profiling.latency_table import Measurement, read_latency_table
from muplan.serde import digest
from muplan.serde.text import read_text

Floats = NDArray[np.float64]

DEFAULT_SENSITIVITY = 0.75
"""Share of a pass that follows the clock where a table does not tell.

The analytical profiles of transformers of 1.3, 2.6 and 6.7 billion parameters on V100 at 2,048 tokens score
0.45, 0.55 and 0.75: the highest, so that an error makes a plan too fast rather than too slow.
"""


def import_profiles(
    path: Path,
    device: Device,
    *,
    tokens: int = 1,
    sensitivity: float = DEFAULT_SENSITIVITY,
    weight_bytes: Mapping[str, float] | None = None,
) -> tuple[Profile, ...]:
    """Make a profile of every model of a table of measured latencies, in the order of their names.

    Parameters
    ----------
    path
        CSV file; docs/formats.md describes its columns.
    tokens
        Tokens of the measured requests; where requests have no tokens, 1.
    sensitivity
        Share of a pass that follows the clock, for clocks and power that were not measured.
    weight_bytes
        Weights of whole models, for models whose rows do not state them; divided evenly over the GPUs.

    Raises
    ------
    InputError
        The file cannot be read, or has faults: all are listed with row and column.
    """
    whole = dict(weight_bytes or {})
    _check_options(tokens, sensitivity, whole)
    rows = read_latency_table(path)
    check_table(rows, device, whole, file=str(path))
    models = sorted({row.model for row in rows})
    if unknown := sorted(set(whole) - set(models)):
        raise InputError(
            f"{path} has no model {', '.join(unknown)}, of which the weights are given.",
            f"Its models: {', '.join(models)}.",
        )
    source = hashlib.sha256(read_text(path).encode()).hexdigest()
    return tuple(
        _ModelTable(
            name=model,
            rows=tuple(row for row in rows if row.model == model),
            device=device,
            tokens=tokens,
            sensitivity=sensitivity,
            weight_bytes=whole.get(model),
        ).profile(file=path.name, source=f"sha256:{source}")
        for model in models
    )


def _check_options(tokens: int, sensitivity: float, weight_bytes: Mapping[str, float]) -> None:
    if tokens < 1:
        raise InputError(f"{tokens} tokens are impossible.", "Give 1 or more.")
    if not 0.0 <= sensitivity <= 1.0:
        raise InputError(f"A sensitivity of {sensitivity:g} is impossible.", "Give one from 0 to 1.")
    for model, size in weight_bytes.items():
        if not (math.isfinite(size) and size > 0):
            raise InputError(f"Weights of {size:g} bytes of {model} are impossible.", "Give more than 0.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelTable:
    """The rows of one model, checked, and what fills in for what they lack."""

    name: str
    rows: tuple[Measurement, ...]
    device: Device
    tokens: int
    sensitivity: float
    weight_bytes: float | None

    def profile(self, *, file: str, source: str) -> Profile:
        """Build the profile; ``source`` is the digest of the table."""
        known = self.configurations
        num_clusters = max(stages for _, stages in known)
        stage_of = {shape: _stage_of(num_clusters, shape[1]) for shape in known}
        latency, power = self._tables(stage_of)
        weights = [_divided(self._weights(shape), stage_of[shape]) for shape in known]
        working = [[self._activations(shape)[stage] for stage in stage_of[shape]] for shape in known]
        return Profile(
            model=self.name,
            device=self.device.name,
            request_kind="forward",
            provenance=ProfileProvenance(
                method=Method.IMPORTED,
                description=f"{file}: {'; '.join(self._description())}",
                muplan_version=muplan.__version__,
                model_digest=source,
                device_digest=digest(self.device),
            ),
            reference_clock_mhz=reference_clock_mhz(self.device, self.clocks_mhz),
            clocks_mhz=self.clocks_mhz,
            tensor_parallel=tuple(width for width, _ in known),
            num_stages=tuple(stages for _, stages in known),
            phases=(PhaseGrid(phase=Phase.FORWARD, batches=self.batches, tokens=(self.tokens,)),),
            cluster_types=tuple(
                ClusterType(
                    name=f"slice {index + 1} of {num_clusters}",
                    operators=(),
                    weight_bytes_per_gpu=tuple(column[index] for column in weights),
                    kv_bytes_per_token_per_gpu=(0,) * len(known),
                    activation_bytes_per_token_per_gpu=tuple(column[index] for column in working),
                    output_bytes_per_token=0.0,
                    tables=(
                        OperatingTable(
                            phase=Phase.FORWARD,
                            latency_s=_nested(latency[index]),
                            power_w=_nested(power[index]),
                        ),
                    ),
                )
                for index in range(num_clusters)
            ),
            clusters=tuple(Cluster(name=f"slice.{index}", type=index) for index in range(num_clusters)),
        )

    @property
    def configurations(self) -> tuple[tuple[int, int], ...]:
        """Pairs of tensor parallelism and number of stages, ascending."""
        return tuple(sorted({(row.tensor_parallel, row.num_stages) for row in self.rows}))

    @property
    def batches(self) -> tuple[int, ...]:
        """Measured batches, ascending."""
        return tuple(sorted({row.batch for row in self.rows}))

    @property
    def measured_mhz(self) -> tuple[int, ...]:
        """Measured clocks, ascending; a row that names none was measured at the highest."""
        return tuple(sorted({row.clock_mhz or self.device.max_clock_mhz for row in self.rows}))

    @property
    def clocks_mhz(self) -> tuple[int, ...]:
        """Clocks of the profile: those measured, or where that is one, the default ones and it."""
        measured = self.measured_mhz
        return measured if len(measured) > 1 else tuple(sorted({*clock_grid(self.device), *measured}))

    def _tables(self, stage_of: Mapping[tuple[int, int], NDArray[np.int64]]) -> tuple[Floats, Floats]:
        """Latency and power; shape (clusters, configurations, clocks, batches, 1)."""
        known, clocks, batches = self.configurations, self.clocks_mhz, self.batches
        num_clusters = len(next(iter(stage_of.values())))
        latency = np.empty((num_clusters, len(known), len(clocks), len(batches), 1))
        power = np.empty_like(latency)
        for row in self.rows:
            shape = (row.tensor_parallel, row.num_stages)
            stage = stage_of[shape]
            measured = row.clock_mhz or self.device.max_clock_mhz
            response = clock_response(
                self.device, clocks, measured_mhz=measured, sensitivity=self.sensitivity
            )
            here = clocks.index(measured)
            at = slice(here, here + 1) if len(self.measured_mhz) > 1 else slice(None)
            place = (slice(None), known.index(shape), at, batches.index(row.batch), 0)
            slice_s = np.array(row.stage_latency_s)[stage] / np.bincount(stage)[stage]
            latency[place] = slice_s[:, None] * response.slowdown[at]
            power[place] = self._power_w(row, response, here)[stage][:, at]
        return latency, power

    def _power_w(self, row: Measurement, response: ClockResponse, here: int) -> Floats:
        """Power of one GPU of every stage; shape (stages, clocks).

        A measured power scales what the physics gives above a loaded GPU, at all clocks alike.
        """
        above_w = response.power_w - response.loaded_w
        if row.stage_power_w is None:
            return np.tile(response.power_w, (row.num_stages, 1))
        measured_w = np.array(row.stage_power_w)
        scale = (measured_w - response.loaded_w[here]) / above_w[here]
        power = np.minimum(response.loaded_w + scale[:, None] * above_w, self.device.power_cap_w)
        power[:, here] = measured_w
        return np.asarray(power)

    def _of(self, shape: tuple[int, int]) -> list[Measurement]:
        return [row for row in self.rows if (row.tensor_parallel, row.num_stages) == shape]

    def _weights(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Weights on one GPU of every stage: the largest stated, or an even share of the whole."""
        stated = [row.stage_weight_bytes for row in self._of(shape) if row.stage_weight_bytes is not None]
        if stated:
            return tuple(map(max, *stated)) if len(stated) > 1 else stated[0]
        return (math.ceil((self.weight_bytes or 0.0) / math.prod(shape)),) * shape[1]

    def _activations(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Working memory of a token on one GPU of every stage; the most that any batch needs."""
        needs = [
            [math.ceil(size / (row.batch * self.tokens)) for size in row.stage_activation_bytes]
            for row in self._of(shape)
            if row.stage_activation_bytes is not None
        ]
        return tuple(np.max(needs, axis=0).tolist()) if needs else (0,) * shape[1]

    def _description(self) -> list[str]:
        """What was measured, and what stands in for what was not."""
        clocks = ", ".join(map(str, self.measured_mhz))
        unnamed = any(row.clock_mhz is None for row in self.rows)
        parts = [f"stage latencies measured at {clocks} MHz" + (" (assumed: none is named)" * unnamed)]
        if derived := sum(row.is_derived for row in self.rows):
            parts.append(f"those of {derived} rows derived from sum and maximum, the longest stage first")
        stated = sum(any(row.stage_weight_bytes for row in self._of(shape)) for shape in self.configurations)
        parts.append("weights as stated" if stated else "weights divided evenly (derived)")
        if 0 < stated < len(self.configurations):
            parts[-1] = f"weights as stated for {stated} configurations, else divided evenly (derived)"
        has_power = self.rows[0].stage_power_w is not None
        modelled = [] if has_power else ["power"]
        if len(self.measured_mhz) == 1:
            modelled.append("other clocks")
        if has_power:
            parts.append("power measured")
        if modelled:
            share = f"with {self.sensitivity:g} of the time following the clock (assumed)"
            parts.append(f"{' and '.join(modelled)} modelled {share}")
        if all(row.stage_activation_bytes is None for row in self.rows):
            parts.append("working memory not stated, taken as none")
        return parts


def _stage_of(num_clusters: int, num_stages: int) -> NDArray[np.int64]:
    """Stage of every cluster; shape (clusters,)."""
    sizes = [stop - start for start, stop in pairwise((0, *even_cuts(num_clusters, num_stages)))]
    return np.repeat(np.arange(num_stages), sizes)


def _divided(stage_bytes: Sequence[int], stage_of: NDArray[np.int64]) -> list[int]:
    """Bytes of every cluster: whole numbers that add up to those of its stage."""
    sizes = np.bincount(stage_of)
    return [
        size * (part + 1) // count - size * part // count
        for size, count in zip(stage_bytes, sizes.tolist(), strict=True)
        for part in range(count)
    ]


def _nested(table: Floats) -> tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]:
    return tuple(
        tuple(tuple(tuple(cell) for cell in matrix) for matrix in configuration)
        for configuration in table.tolist()
    )
