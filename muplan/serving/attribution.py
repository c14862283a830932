"""Energy of a run by service."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from muplan.serving.records import Records, ReplicaEnergy


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEnergy:
    """What a service took of the GPUs that host it, within the measured period."""

    hosted_s: float
    """GPU-seconds of all groups that host it, whatever they did."""
    busy_s: float
    """GPU-seconds of its passes."""
    busy_j: float
    loaded_j: float
    """Its share of their energy while they were loaded and idle."""

    @property
    def energy_j(self) -> float:
        """All of it."""
        return self.busy_j + self.loaded_j


def attribute_energy(records: Records) -> dict[str, ServiceEnergy]:
    """Attribute the energy of every GPU that hosts something to the services on it.

    A pass is of one service, and so is its energy. What the GPUs of a group draw while they wait is shared in
    proportion to the time that the services' passes took there; equally, where none ran. Parked GPUs are
    no service's: all services and parked GPUs together are the fleet. Empty where a group did not tell the
    passes of its services apart, as in real time where several share it.
    """
    loaded_j, num_gpus = defaultdict[str, float](float), defaultdict[str, int](int)
    for stage in records.stages:
        loaded_j[stage.group] += stage.loaded_j
        num_gpus[stage.group] += stage.num_gpus
    hosted = defaultdict[str, list[ReplicaEnergy]](list)
    for replica in records.replicas:
        hosted[replica.group].append(replica)
    if hosted.keys() != loaded_j.keys():
        return {}
    parts = defaultdict[str, list[ServiceEnergy]](list)
    for group, replicas in hosted.items():
        total_s = sum(replica.busy_s for replica in replicas)
        for replica in replicas:
            share = replica.busy_s / total_s if total_s > 0.0 else 1.0 / len(replicas)
            part = ServiceEnergy(
                hosted_s=num_gpus[group] * records.measured_s,
                busy_s=replica.busy_s,
                busy_j=replica.busy_j,
                loaded_j=share * loaded_j[group],
            )
            parts[replica.service].append(part)
    return {service: _sum_of(of_service) for service, of_service in parts.items()}


def _sum_of(parts: list[ServiceEnergy]) -> ServiceEnergy:
    return ServiceEnergy(
        hosted_s=sum(part.hosted_s for part in parts),
        busy_s=sum(part.busy_s for part in parts),
        busy_j=sum(part.busy_j for part in parts),
        loaded_j=sum(part.loaded_j for part in parts),
    )
