"""Limits on placement that name what is not there: GPUs, nodes, pools, clocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from muplan.hardware.device import Device
from muplan.hardware.fleet import Pool
from muplan.problem.problem import ResolvedService
from muplan.workload import Workload


def limit_faults(
    workload: Workload, devices: Mapping[str, Device], services: Sequence[ResolvedService]
) -> Iterator[tuple[str, str]]:
    """Dotted key and message of every limit on placement that cannot be meant as it is written.

    Parameters
    ----------
    devices
        By pool; pools whose device was not found are left out.
    services
        Those that could be resolved.
    """
    pools = workload.fleet.pools
    for index, pool in enumerate(pools):
        key = f"fleet.pools[{index}]"
        yield from _reserved_faults(key, pool)
        if pool.name in devices:
            yield from _clock_faults(key, pool, devices[pool.name], services)
    if not any(node for pool in pools for node in pool.free_gpus()):
        yield "fleet", "every GPU is reserved; leave some to plan with"
    places = {pool.name for pool in pools} | {node for pool in pools for node in pool.node_ids()}
    for index, service in enumerate(workload.services):
        for number, place in enumerate(service.pinned_to):
            if place not in places:
                known = ", ".join(f"{pool.name} and its nodes {_first_and_last(pool)}" for pool in pools)
                yield (
                    f"services[{index}].pinned_to[{number}]",
                    f"{place!r} is no pool or node of the fleet; it has {known}",
                )


def _reserved_faults(key: str, pool: Pool) -> Iterator[tuple[str, str]]:
    known = pool.gpu_ids()
    for number, gpu in enumerate(pool.reserved_gpus):
        place = f"{key}.reserved_gpus[{number}]"
        if gpu not in known:
            yield place, f"the pool has no GPU {gpu!r}; its GPUs are {known[0]} to {known[-1]}"
        elif gpu in pool.reserved_gpus[:number]:
            yield place, f"{gpu!r} stands twice; name each GPU once"


def _clock_faults(
    key: str, pool: Pool, device: Device, services: Sequence[ResolvedService]
) -> Iterator[tuple[str, str]]:
    field = "max_clock_mhz" if pool.max_clock_mhz is not None else "min_clock_mhz"
    if pool.min_clock_mhz is None and pool.max_clock_mhz is None:
        return
    usable = device.usable_clocks_mhz
    lowest, highest = pool.min_clock_mhz or usable[0], pool.max_clock_mhz or usable[-1]
    if not any(pool.allows_clock(clock) for clock in usable):
        yield (
            f"{key}.{field}",
            f"no usable clock of {device.name} lies between {lowest} and {highest} MHz;"
            f" usable are {usable[0]} to {usable[-1]} MHz",
        )
        return
    for service in services:
        profile = service.profiles.get(pool.name)
        if profile is not None and not any(pool.allows_clock(clock) for clock in profile.clocks_mhz):
            clocks = ", ".join(map(str, profile.clocks_mhz))
            yield (
                f"{key}.{field}",
                f"the profile of {profile.model} has no clock between {lowest} and {highest} MHz; it has"
                f" {clocks} MHz",
            )


def _first_and_last(pool: Pool) -> str:
    nodes = pool.node_ids()
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} to {nodes[-1]}"
