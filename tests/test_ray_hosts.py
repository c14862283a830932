"""Which host of a Ray cluster is which node of a plan.

If these fail, stages that need a fast link between them are put on different hosts, or GPUs are asked for
that a host has not.
"""

from __future__ import annotations

import pytest

from muplan.errors import DeviceError
from muplan.serving.ray.hosts import Host, PlanNode, place_nodes, replace_node
from muplan.serving.workers.transport import NoPlaceError


def host(name: str, cpus: int, *, gpus: int = 0, **more: int) -> Host:
    return Host(ray_id=name, address=name, resources={"CPU": cpus, "GPU": gpus, **more})


def node(number: int, num_used: int, device: str = "h200") -> PlanNode:
    return PlanNode(name=f"big/{number}", device=device, num_used=num_used)


def placed(nodes: list[PlanNode], hosts: list[Host]) -> dict[str, str]:
    return {name: host.ray_id for name, host in place_nodes(nodes, hosts).items()}


def test_nodes_of_a_plan_go_to_the_hosts_that_are_named_after_them() -> None:
    hosts = [
        host("a", 8, gpus=8, **{"muplan:big/1": 1}),
        host("b", 8, gpus=4, **{"muplan:big/0": 1}),
        host("c", 1),
    ]
    assert placed([node(1, 8), node(0, 2)], hosts) == {"big/1": "a", "big/0": "b"}
    with pytest.raises(DeviceError, match=r"No host .* resource 'muplan:big/7'") as none:
        place_nodes([node(7, 1)], hosts)
    assert "there are muplan:big/0, muplan:big/1." in str(none.value)
    assert """ray start --resources='{"muplan:big/7": 1}'""" in str(none.value)
    assert none.value.exit_code == 3
    with pytest.raises(DeviceError, match=r"Host b .b. is to be node big/0 .* 5 GPUs; it has 4"):
        place_nodes([node(0, 5)], hosts)


def test_without_names_nodes_go_by_count() -> None:
    """The smallest host that is large enough, one each as long as there are; else beside others."""
    hosts = [host("a", 1, gpus=8), host("b", 1, gpus=4), host("c", 64)]
    assert placed([node(0, 4), node(1, 4)], hosts) == {"big/0": "b", "big/1": "a"}
    three = placed([node(0, 4), node(1, 4), node(2, 4)], hosts)
    assert three == {"big/0": "b", "big/1": "a", "big/2": "a"}
    assert placed([node(0, 2, "cpu")], hosts) == {"big/0": "c"}
    with pytest.raises(DeviceError, match=r"5 GPUs free for node big/1 .* a .a. has 3, b .b. has 4, c"):
        place_nodes([node(0, 5), node(1, 5)], hosts)
    with pytest.raises(DeviceError, match="which host has which cannot be told from counts"):
        place_nodes([node(0, 1), node(1, 1, "cpu")], hosts)


def test_a_part_of_a_lost_node_moves_to_the_smallest_rest_of_like_gpus() -> None:
    like = {"accelerator_type:H200": 1}
    lost = host("x", 1, gpus=8, **like)
    hosts = [host("a", 1, gpus=8, **like), host("b", 1, gpus=4, **like), host("c", 1, gpus=2)]
    assert replace_node(node(0, 2), lost, hosts, {"a": 6, "x": 8}).ray_id == "a"
    assert replace_node(node(0, 2), lost, hosts, {}).ray_id == "b"
    with pytest.raises(NoPlaceError, match=r"Host x .x. is lost, and no other .* has 3 GPUs"):
        replace_node(node(0, 3), lost, hosts, {"a": 6, "b": 2})
