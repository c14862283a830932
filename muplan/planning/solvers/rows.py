"""Rows of the master programme beside the demand: what a group takes of the fleet, by its type or hosts.

They are the constraints of `muplan.planning.stated.constraints`, under the same names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from muplan.planning.stated.constraints import slot_widths
from muplan.planning.stated.model import Floats, PlanningModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TypeRow:
    """A row in which a group counts by its type alone; ``weight`` has the shape (types,)."""

    name: str
    weight: Floats
    lower: float = -math.inf
    upper: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class HostingRow:
    """A row that counts the groups that host a service."""

    name: str
    service: str
    lower: float = -math.inf
    upper: float = math.inf


def type_rows(model: PlanningModel) -> list[TypeRow]:
    """GPUs of every pool at every width, and the caps on peak power of nodes and fleet."""
    rows = []
    for pool in model.pools:
        mine = np.array([item.form.pool == pool.name for item in model.group_types], dtype=np.bool_)
        shapes = [
            (item.form.num_gpus, item.form.tensor_parallel)
            for item in model.group_types
            if item.form.pool == pool.name
        ]
        numbers = {shape: number for number, shape in enumerate(dict.fromkeys(shapes))}
        shape_of = np.array([numbers[shape] for shape in shapes], dtype=np.int64)
        for width in slot_widths(model, pool):
            taken = np.array([pool.slots_taken(*shape, width) for shape in numbers], dtype=float)
            weight = np.zeros(len(model.group_types))
            weight[mine] = taken[shape_of]
            rows.append(_most(model, f"gpus_available_{pool.name}_{width}", weight, pool.num_slots(width)))
        if math.isfinite(pool.node_power_cap_w):
            weight = np.where(mine, above_parked_w(model), 0.0)
            rows.append(_most(model, f"node_power_cap_{pool.name}", weight, pool.spare_node_power_w))
            for level in pool.power_levels:
                heavy = np.zeros(len(model.group_types))
                heavy[mine] = [
                    pool.is_heavy(above_w, *shape, level)
                    for above_w, shape in zip(weight[mine].tolist(), shapes, strict=True)
                ]
                name = f"node_power_cap_{pool.name}_{level}"
                rows.append(_most(model, name, heavy, level * len(pool.free_per_node)))
    if math.isfinite(model.power_cap_w):
        rows.append(_most(model, "power_cap", above_parked_w(model), model.power_cap_w - model.parked_w))
    return rows


def _most(model: PlanningModel, name: str, weight: Floats, upper: float) -> TypeRow:
    return TypeRow(name=name, weight=weight, upper=upper - model.taken.get(name, 0.0))


def above_parked_w(model: PlanningModel) -> Floats:
    """Peak power of a group of every type above that of its GPUs parked; shape (types,)."""
    return np.array(
        [
            item.peak_w - item.form.num_gpus * model.pool(item.form.pool).parked_w
            for item in model.group_types
        ],
        dtype=float,
    )


def hosting_rows(model: PlanningModel) -> list[HostingRow]:
    """Least and most numbers of replicas, where the workload limits them."""
    rows = []
    for service, number in model.min_replicas.items():
        name = f"min_replicas_{service}"
        if number > 1:
            rows.append(HostingRow(name=name, service=service, lower=number - model.taken.get(name, 0.0)))
    for service, number in model.max_replicas.items():
        name = f"anti_affinity_{service}"
        rows.append(HostingRow(name=name, service=service, upper=number - model.taken.get(name, 0.0)))
    return rows
