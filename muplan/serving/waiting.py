"""Waiting requests of generate groups in queue order: skew heaps over shared rows, compiled.

Each group has one heap by priority and, where waits are bounded or a batch waits for its oldest, one by the
time of queueing. Requests that wait beyond the limit by leave are not in the latter, but linked in the order
in which they got it.
Skew heaps: Sleator and Tarjan, Self-adjusting heaps, 1986, §2.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.ageing import LAST_MULTIPLE, may_wait_on
from muplan.serving.compiled import compiled
from muplan.serving.layout import Row, Rows
from muplan.serving.policies import is_due, queue_key, remaining_work

WAITS, WAITS_ON = 1, 2
"""Of a waiting request: that it waits; that it waits beyond the limit, by leave."""


@compiled
def put(settings: Row, group: Row, requests: Rows, nodes: Rows, place: int, limit_s: float) -> None:
    """Let a request with a TTFT limit wait at a group (again)."""
    request = requests[place]
    request.is_waiting = WAITS
    group.num_waiting += 1
    work = remaining_work(settings.queue_order, request.work, request.generated)
    key = queue_key(settings.queue_order, request.queued_s, work, limit_s)
    group.root_by_key = _inserted(nodes, group.root_by_key, place, key)
    if settings.ages or settings.is_dynamic:
        by_age = place + len(requests)
        group.root_by_age = _inserted(nodes, group.root_by_age, by_age, request.queued_s)


@compiled
def first_waiting(settings: Row, group: Row, requests: Rows, nodes: Rows, now_s: float) -> int:
    """The request that is next: the oldest that is due and may not wait on, else the one with the least key.

    −1 if none waits.
    """
    if settings.ages and group.num_waiting > 0:
        due = _first_due(group, requests, nodes, now_s)
        if due >= 0:
            return due
    return int(group.root_by_key)


@compiled
def oldest_queued_s(group: Row, requests: Rows, nodes: Rows) -> float:
    """When the oldest waiting request was queued, seconds; some wait."""
    oldest_s = np.inf
    if group.root_by_age >= 0:
        oldest_s = nodes[group.root_by_age].key
    if group.spared >= 0:
        oldest_s = min(oldest_s, requests[group.spared - len(requests)].queued_s)
    return oldest_s


@compiled
def take(settings: Row, group: Row, requests: Rows, nodes: Rows, place: int) -> None:
    """Let a waiting request go."""
    group.root_by_key = _without(nodes, group.root_by_key, place)
    by_age = place + len(requests)
    if requests[place].is_waiting == WAITS_ON:
        _unlink(group, nodes, by_age)
    elif settings.ages or settings.is_dynamic:
        group.root_by_age = _without(nodes, group.root_by_age, by_age)
    requests[place].is_waiting = 0
    group.num_waiting -= 1


@compiled
def _first_due(group: Row, requests: Rows, nodes: Rows, now_s: float) -> int:
    """The request that goes first because it is due, −1 if none; lets those wait on that may."""
    if group.spared >= 0:
        spared = int(group.spared - len(requests))
        if is_due(now_s, requests[spared].queued_s, LAST_MULTIPLE * group.wait_limit_s):
            return spared
    while group.root_by_age >= 0:
        oldest = int(group.root_by_age - len(requests))
        if not is_due(now_s, requests[oldest].queued_s, group.wait_limit_s):
            return -1
        if not may_wait_on(group):
            return oldest
        _spare(group, requests, nodes, oldest)
    return -1


@compiled
def _spare(group: Row, requests: Rows, nodes: Rows, oldest: int) -> None:
    """Let the first of the heap by age wait on: it becomes the last of those that do."""
    place, last = group.root_by_age, group.last_spared
    group.root_by_age = _without(nodes, group.root_by_age, place)
    nodes[place].left, nodes[place].right = last, -1
    if last >= 0:
        nodes[last].right = place
    else:
        group.spared = place
    group.last_spared = place
    requests[oldest].is_waiting = WAITS_ON
    group.num_spared += 1


@compiled
def _unlink(group: Row, nodes: Rows, place: int) -> None:
    """Take a node out of those that wait on."""
    before, behind = nodes[place].left, nodes[place].right
    if before >= 0:
        nodes[before].right = behind
    else:
        group.spared = behind
    if behind >= 0:
        nodes[behind].left = before
    else:
        group.last_spared = before
    group.num_spared -= 1


@compiled
def _inserted(nodes: Rows, root: int, place: int, key: float) -> int:
    """Insert a node into a heap; returns the root."""
    node = nodes[place]
    node.key, node.left, node.right = key, -1, -1
    return _merged(nodes, root, place)


@compiled
def _without(nodes: Rows, root: int, place: int) -> int:
    """Take a node out of its heap; returns the root."""
    above = nodes[place].above
    rest = _merged(nodes, nodes[place].left, nodes[place].right)
    if above < 0:
        return rest
    if nodes[above].left == place:
        nodes[above].left = rest
    else:
        nodes[above].right = rest
    if rest >= 0:
        nodes[rest].above = above
    return root


@compiled
def _merged(nodes: Rows, first: int, second: int) -> int:
    """Merge two heaps; returns the root. Of equal keys the earlier request comes first."""
    root, parent = -1, -1
    while first >= 0 and second >= 0:
        key, other = nodes[first].key, nodes[second].key
        if other < key or (other == key and second < first):
            first, second = second, first
        root = _linked(nodes, root, parent, first)
        rest = nodes[first].right
        nodes[first].right = nodes[first].left
        parent, first = first, rest
    return _linked(nodes, root, parent, first if first >= 0 else second)


@compiled
def _linked(nodes: Rows, root: int, parent: int, place: int) -> int:
    """Make a node (−1: none) the left child of ``parent``, or the root where that is −1; returns the root."""
    if place >= 0:
        nodes[place].above = parent
    if parent < 0:
        return place
    nodes[parent].left = place
    return root
