"""Which host of a Ray cluster is which node of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muplan.errors import DeviceError
from muplan.serving.workers.machine import PROCESSOR
from muplan.serving.workers.parts import WorkerParts
from muplan.serving.workers.transport import NoPlaceError

NAMED = "muplan:"
"""Begins the name of the custom resource by which a user says which node of a plan a host is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host of the cluster.

    Parameters
    ----------
    ray_id
        By which Ray knows it.
    address
        By which people do.
    resources
        All that it has, free or not, by Ray's names.
    """

    ray_id: str
    address: str
    resources: Mapping[str, float]

    def num_devices(self, device: str) -> int:
        """Its GPUs, or processor cores where that is the device."""
        return int(self.resources.get(resource_of(device), 0.0))

    @property
    def name(self) -> str:
        """As people are told of it: of one machine there may be several in Ray's eyes."""
        return f"{self.address} ({self.ray_id[:8]})"

    @property
    def gpu_types(self) -> frozenset[str]:
        """Types of its GPUs, as far as Ray knows them."""
        return frozenset(name for name in self.resources if name.startswith("accelerator_type:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanNode:
    """A node of a plan, and how many of its GPUs or cores the plan uses."""

    name: str
    device: str
    num_used: int


def resource_of(device: str) -> str:
    """What Ray calls a device."""
    return "CPU" if device == PROCESSOR else "GPU"


def node_of(held: WorkerParts) -> str:
    """The plan's node of a worker: its GPU's name is ``pool/node/number``."""
    return held.gpu.rpartition("/")[0]


def plan_nodes(workers: Sequence[WorkerParts]) -> tuple[PlanNode, ...]:
    """The nodes that a plan uses, the largest first."""
    used = Counter(node_of(held) for held in workers)
    devices = {node_of(held): held.device for held in workers}
    nodes = [PlanNode(name=name, device=devices[name], num_used=count) for name, count in used.items()]
    return tuple(sorted(nodes, key=lambda node: (-node.num_used, node.name)))


def place_nodes(nodes: Sequence[PlanNode], hosts: Sequence[Host]) -> dict[str, Host]:
    """The host of each node of a plan.

    A node goes to the host that has its custom resource. Where no host has any, it goes by count: each to a
    host of its own where there are enough that are large enough, of these the smallest; else beside others.

    Raises
    ------
    DeviceError
        Names what is missing, and what there is.
    """
    if any(name.startswith(NAMED) for host in hosts for name in host.resources):
        named: dict[str, Host] = {}
        for node in nodes:
            named[node.name] = _named(node, hosts, named, nodes)
        return named
    devices = sorted({node.device for node in nodes})
    if len(devices) > 1:
        raise DeviceError(
            f"The plan is for {', '.join(devices)}: which host has which cannot be told from counts.",
            f"Name them: {_advice(nodes[0])}",
        )
    placed: dict[str, Host] = {}
    for node in nodes:
        fitting = [host for host in hosts if _num_free(host, node.device, placed, nodes) >= node.num_used]
        if not fitting:
            raise DeviceError(
                f"No host of the Ray cluster has {_count(node)} free for node {node.name} of the plan;"
                f" {_what_there_is(node.device, placed, hosts, nodes)}.",
                "Add hosts, or solve the workload for the fleet that there is.",
            )
        taken = Counter(host.ray_id for host in placed.values())
        placed[node.name] = min(
            fitting, key=lambda host: (taken[host.ray_id], _num_free(host, node.device, placed, nodes))
        )
    return placed


def replace_node(node: PlanNode, lost: Host, hosts: Sequence[Host], taken: Mapping[str, int]) -> Host:
    """Another host for a part of a plan's node whose own is lost: the smallest rest that has room.

    Parameters
    ----------
    node
        With as many GPUs or cores as are to be placed together.
    taken
        How many devices of each host the plan uses, by Ray's name of the host.

    Raises
    ------
    NoPlaceError
        There is none.
    """

    def num_free(host: Host) -> int:
        return host.num_devices(node.device) - taken.get(host.ray_id, 0)

    fitting = [host for host in hosts if num_free(host) >= node.num_used and host.gpu_types == lost.gpu_types]
    if not fitting:
        raise NoPlaceError(
            f"Host {lost.name} is lost, and no other host of the Ray cluster has {_count(node)} free for"
            f" node {node.name} of the plan.",
            "Bring it back, or solve the workload for the hosts that are left.",
        )
    return min(fitting, key=lambda host: (num_free(host), host.address))


def _named(
    node: PlanNode, hosts: Sequence[Host], placed: Mapping[str, Host], nodes: Sequence[PlanNode]
) -> Host:
    """The host that has a node's custom resource, and enough GPUs or cores."""
    having = [host for host in hosts if host.resources.get(NAMED + node.name, 0.0) > 0.0]
    if not having:
        names = sorted({name for host in hosts for name in host.resources if name.startswith(NAMED)})
        raise DeviceError(
            f"No host of the Ray cluster has the resource {NAMED + node.name!r}; there are"
            f" {', '.join(names)}.",
            f"Start Ray on that node with it: {_advice(node)}",
        )
    host = max(having, key=lambda one: _num_free(one, node.device, placed, nodes))
    num_free = _num_free(host, node.device, placed, nodes)
    if num_free < node.num_used:
        raise DeviceError(
            f"Host {host.name} is to be node {node.name} of the plan, which uses {_count(node)}; it has"
            f" {num_free} free.",
            f"Tell Ray of all it has, or give the resource {NAMED + node.name!r} to another host.",
        )
    return host


def _num_free(host: Host, device: str, placed: Mapping[str, Host], nodes: Sequence[PlanNode]) -> int:
    used = sum(node.num_used for node in nodes if placed.get(node.name) == host)
    return host.num_devices(device) - used


def _count(node: PlanNode) -> str:
    return f"{node.num_used} {resource_of(node.device)}{'s' if node.num_used > 1 else ''}"


def _what_there_is(
    device: str, placed: Mapping[str, Host], hosts: Sequence[Host], nodes: Sequence[PlanNode]
) -> str:
    free = [f"{host.name} has {_num_free(host, device, placed, nodes)}" for host in hosts]
    return ", ".join(free) or "it has no hosts"


def _advice(node: PlanNode) -> str:
    return f"""ray start --resources='{{"{NAMED}{node.name}": 1}}' ..."""
