"""A higher bound by branching on how many groups there are of a shape, or of a form.

The relaxation takes fractions of groups. A whole number of groups of a shape, or of a form (a shape at
given clocks), is at most the part below or at least the part above; either way the relaxation costs more,
and the bound is the lesser of the two (Land and Doig, 1960). Such rows price every group of a type alike,
so pricing stays as it is (Vanderbeck, 2000, on branching in column generation).
"""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass

import numpy as np

from muplan.planning.solvers.master import Relaxation, relax
from muplan.planning.solvers.pricing import Pricer
from muplan.planning.solvers.rows import TypeRow
from muplan.planning.stated.model import Floats, PlanningModel

_FRACTION = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Node:
    rows: tuple[TypeRow, ...]
    relaxation: Relaxation


class BoundTree:
    """A best-first search tree; its bound rises as nodes are branched on."""

    def __init__(self, model: PlanningModel, pricer: Pricer, root: Relaxation) -> None:
        self._model, self._pricer = model, pricer
        self._order = itertools.count()
        self._open = [(root.bound, next(self._order), _Node(rows=(), relaxation=root))]
        self._closed = math.inf
        self._keys = _branching_keys(model)

    @property
    def bound(self) -> float:
        """No plan has a smaller objective."""
        return min(self._closed, self._open[0][0] if self._open else math.inf)

    @property
    def is_done(self) -> bool:
        """Whether the node that limits the bound cannot be branched on."""
        return not self._open or self._closed <= self._open[0][0]

    def branch(self, cutoff: float) -> None:
        """Split the node that limits the bound; what is above ``cutoff`` needs no further look."""
        bound, _, node = heapq.heappop(self._open)
        row = self._fractional(node.relaxation)
        if row is None:
            self._closed = min(self._closed, bound)
            return
        weight, name, level = row
        for lower, upper in ((-math.inf, math.floor(level)), (math.ceil(level), math.inf)):
            limited = TypeRow(name=name, weight=weight, lower=lower, upper=upper)
            rows = (*node.rows, limited)
            child = relax(
                self._model, self._pricer, columns=node.relaxation.columns, rows=rows, cutoff=cutoff
            )
            if child.feasible or child.bound < cutoff:
                reached = max(bound, child.bound)
                heapq.heappush(self._open, (reached, next(self._order), _Node(rows=rows, relaxation=child)))

    def _fractional(self, relaxation: Relaxation) -> tuple[Floats, str, float] | None:
        """The coarsest count that is most fractional: its weights, name and level."""
        by_type = np.zeros(len(self._model.group_types))
        for column, level in zip(relaxation.columns, relaxation.levels, strict=True):
            by_type[column.type] += level
        for family in self._keys:
            levels = np.array([weight @ by_type for _, weight in family])
            distance = np.abs(levels - np.round(levels))
            if len(distance) and distance.max() > _FRACTION:
                place = int(distance.argmax())
                return family[place][1], family[place][0], float(levels[place])
        return None


def _branching_keys(model: PlanningModel) -> list[list[tuple[str, Floats]]]:
    """What may be counted, coarse to fine: groups of a shape, of a form, of a type."""
    shape = [(item.form.pool, item.form.tensor_parallel, item.form.num_stages) for item in model.group_types]
    form = [(*key, item.form.clocks_mhz) for key, item in zip(shape, model.group_types, strict=True)]
    families: list[list[tuple[str, Floats]]] = []
    for keys in (shape, form):
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        code = np.array([numbers[key] for key in keys], dtype=np.int64)
        families.append(
            [
                ("count_" + "_".join(map(str, key)), (code == number).astype(float))
                for key, number in numbers.items()
            ]
        )
    return families
