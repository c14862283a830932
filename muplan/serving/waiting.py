"""Waiting requests of generate groups in queue order: skew heaps over shared rows, compiled.

Each group has one heap by priority and, where that is by length, one by the time
of queueing, for the ageing rule. A request that is taken from one stays in the other until it comes
to its top. Skew heaps: Sleator and Tarjan, Self-adjusting heaps, 1986, §2.
"""

from __future__ import annotations

from muplan.serving.compiled import compiled
from muplan.serving.layout import Row, Rows
from muplan.serving.policies import is_aged, orders_by_length, queue_key


@compiled
def put(order: int, group: Row, requests: Rows, nodes: Rows, place: int, limit_s: float) -> None:
    """Let a request with a TTFT limit wait at a group (again)."""
    request = requests[place]
    request.is_waiting = 1
    group.num_waiting += 1
    if nodes[place].inside == 0:
        key = queue_key(order, request.queued_s, request.work, limit_s)
        group.root_by_key = _inserted(nodes, group.root_by_key, place, key)
    by_age = place + len(requests)
    if orders_by_length(order) and nodes[by_age].inside == 0:
        group.root_by_age = _inserted(nodes, group.root_by_age, by_age, request.queued_s)


@compiled
def first_waiting(order: int, group: Row, requests: Rows, nodes: Rows, now_s: float, ageing_s: float) -> int:
    """The request that is next: the oldest if it has aged, else the one with the least key; −1 if none."""
    if group.num_waiting == 0:
        return -1
    if orders_by_length(order):
        group.root_by_age = _top(requests, nodes, group.root_by_age)
        oldest = group.root_by_age - len(requests)
        if is_aged(now_s, requests[oldest].queued_s, ageing_s):
            return int(oldest)
    group.root_by_key = _top(requests, nodes, group.root_by_key)
    return int(group.root_by_key)


@compiled
def take(group: Row, request: Row) -> None:
    """Let a waiting request go."""
    request.is_waiting = 0
    group.num_waiting -= 1


@compiled
def _inserted(nodes: Rows, root: int, place: int, key: float) -> int:
    """Insert a node; returns the root."""
    node = nodes[place]
    node.key, node.inside, node.left, node.right = key, 1, -1, -1
    return _merged(nodes, root, place)


@compiled
def _top(requests: Rows, nodes: Rows, root: int) -> int:
    """The root once all nodes on top of the heap whose requests are gone are removed."""
    while root >= 0 and requests[root % len(requests)].is_waiting == 0:
        nodes[root].inside = 0
        root = _merged(nodes, nodes[root].left, nodes[root].right)
    return root


@compiled
def _merged(nodes: Rows, first: int, second: int) -> int:
    """Merge two heaps; returns the root. Of equal keys the earlier request comes first."""
    root, parent = -1, -1
    while first >= 0 and second >= 0:
        key, other = nodes[first].key, nodes[second].key
        if other < key or (other == key and second < first):
            first, second = second, first
        if parent < 0:
            root = first
        else:
            nodes[parent].left = first
        rest = nodes[first].right
        nodes[first].right = nodes[first].left
        parent, first = first, rest
    rest = first if first >= 0 else second
    if parent < 0:
        return rest
    nodes[parent].left = rest
    return root
