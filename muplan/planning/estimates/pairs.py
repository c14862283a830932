"""Pairs: two-stage partitions at every pair of clocks, by figures alone, since there are thousands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.planning.estimates.clusters import Floats
from muplan.planning.estimates.estimate import Shape
from muplan.planning.estimates.forward_costs import ForwardCosts
from muplan.planning.estimates.pipelines import Choice, Stages
from muplan.planning.stated.model import StageClusters


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Two-stage partitions at every pair of clocks; the second stage's clock changes fastest.

    ``figures`` are those of `muplan.planning.estimates.pipelines.Pipelines`, ``moved_s`` the transfers;
    shapes (pairs, figures) and (pairs,).
    """

    partitions: tuple[StageClusters, ...]
    num_clocks: int
    figures: Floats
    moved_s: Floats

    @property
    def full_use_j(self) -> Floats:
        """As of `muplan.planning.estimates.pipelines.Pipelines`."""
        loaded_w, energy_j, _, bottleneck_s, _ = self.figures.T
        return np.asarray(energy_j + loaded_w * bottleneck_s)

    def choices(self, places: Iterable[int] | NDArray[np.int64]) -> list[Choice]:
        """The partitions and clocks at ``places``."""
        found: list[Choice] = []
        for place in places:
            partition, pair = divmod(int(place), self.num_clocks**2)
            found.append((self.partitions[partition], divmod(pair, self.num_clocks)))
        return found


def all_pairs(costs: ForwardCosts, shape: Shape, partitions: Sequence[StageClusters]) -> Pairs:
    """Work out the figures of partitions on two stages at every pair of clocks."""
    stages = Stages.of(costs, shape, partitions)
    stage_s = costs.stretch(2) * stages.latency_s[:, :, 0, :]
    above_j = costs.stretch(2) * shape.tensor_parallel * stages.energy_j
    loaded_w = np.broadcast_to(shape.tensor_parallel * costs.loaded_w, stage_s.shape)
    everywhere = (len(partitions), len(costs.clocks_mhz), len(costs.clocks_mhz))
    moved_s = np.broadcast_to(stages.moved_s[:, 0, None, None], everywhere)
    weight_bytes = np.broadcast_to(stages.weight_bytes.max(axis=1)[:, None, None], everywhere)

    def over_pairs(values: Floats) -> tuple[Floats, Floats]:
        return values[:, 0, :, None], values[:, 1, None, :]

    figures = [
        np.add(*over_pairs(loaded_w)),
        np.add(*over_pairs(above_j)),
        np.add(*over_pairs(stage_s)) + moved_s + costs.overhead_s,
        np.maximum(*over_pairs(stage_s)),
        weight_bytes,
    ]
    return Pairs(
        partitions=tuple(partitions),
        num_clocks=len(costs.clocks_mhz),
        figures=np.stack(figures, axis=-1).reshape(-1, len(figures)),
        moved_s=moved_s.reshape(-1),
    )
