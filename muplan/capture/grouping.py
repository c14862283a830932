"""Nodes of a trace, grouped as the operators that serving software has kernels for. Imports torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from muplan.capture.costs import LIGHT, kind_of
from muplan.capture.flow import FREE, Flow
from muplan.capture.subject import CACHE
from muplan.capture.trace import Node, Trace
from muplan.model.graph import OperatorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes that are one operator; ``path`` is of the module that runs them."""

    kind: OperatorKind
    path: str
    name: str
    nodes: tuple[int, ...]

    @property
    def last(self) -> int:
        """The last of its nodes."""
        return self.nodes[-1]


@dataclass(slots=True, kw_only=True)
class _Open:
    """A group that nodes are still added to."""

    key: object
    nodes: list[int] = field(default_factory=list)


def group_nodes(trace: Trace, flow: Flow) -> tuple[Group, ...]:
    """Group the nodes that do work.

    A module without modules in it is one operator if it does one thing. Else a matmul, an attention, a
    softmax, a look-up is an operator, and elementwise nodes in a row are one. A group of elementwise
    nodes which one other such group alone reads is run with it.
    """
    heavy = Counter(
        node.scope.run
        for index, node in enumerate(trace.nodes)
        if index not in flow.bookkeeping and node.op_name not in FREE and kind_of(node) not in LIGHT
    )
    opened: list[_Open] = []
    for index, node in enumerate(trace.nodes):
        if index in flow.bookkeeping or node.op_name in FREE or keeps_cache(trace, node):
            continue
        kind = kind_of(node)
        is_whole = _is_norm(node) or (node.scope.is_leaf and heavy[node.scope.run] <= 1)
        key = (node.scope.run,) if is_whole else (node.scope.run, kind if kind in LIGHT else index)
        if not opened or opened[-1].key != key:
            opened.append(_Open(key=key))
        opened[-1].nodes.append(index)
    groups = [_close(trace, flow, tuple(one.nodes)) for one in opened]
    return tuple(_fuse(trace, flow, groups))


def keeps_cache(trace: Trace, node: Node) -> bool:
    """Whether a node puts new keys or values behind cached ones: serving software writes them in place."""
    return node.op_name == "cat" and any(
        value < len(trace.inputs) and trace.inputs[value].startswith(CACHE) for value in node.reads
    )


def _is_norm(node: Node) -> bool:
    return "Norm" in node.scope.class_name and (node.scope.is_leaf or "Layer" in node.scope.class_name)


def _close(trace: Trace, flow: Flow, nodes: tuple[int, ...]) -> Group:
    members = [trace.nodes[index] for index in nodes]
    kinds = [kind_of(node) for node in members]
    heavy = [kind for kind in kinds if kind not in LIGHT]
    first = members[0]
    if _is_norm(first):
        kind = OperatorKind.NORM
    elif heavy:
        kind = heavy[0]
    elif OperatorKind.ACTIVATION in kinds:
        kind = OperatorKind.ACTIVATION
    else:
        kind = OperatorKind.ELEMENTWISE
    is_module = first.scope.is_leaf or _is_norm(first)
    name = "" if is_module else _word(members, kind)
    if kind is OperatorKind.MATMUL and not _reads_weight(flow, members):
        kind = _attention_kind(trace, members)
        name = "values" if kind is OperatorKind.ATTENTION_VALUES else "scores"
    return Group(kind=kind, path=first.scope.path, name=name, nodes=nodes)


def _word(members: list[Node], kind: OperatorKind) -> str:
    names = {node.op_name.removesuffix("_") for node in members}
    return names.pop() if len(names) == 1 else str(kind)


def _reads_weight(flow: Flow, members: list[Node]) -> bool:
    """Whether one of the nodes reads a weight, in whatever layout."""
    return any(
        node.weights or any(isinstance(flow.origin.get(value), str) for value in node.reads)
        for node in members
    )


def _attention_kind(trace: Trace, members: list[Node]) -> OperatorKind:
    """A product of two activations: of shares that a softmax has made with values, or of scores."""
    made = trace.made_by()
    for value in members[-1].reads:
        while value in made:
            node = trace.nodes[made[value]]
            if kind_of(node) is OperatorKind.SOFTMAX:
                return OperatorKind.ATTENTION_VALUES
            if node.op_name not in FREE or not node.reads:
                break
            value = node.reads[0]
    return OperatorKind.ATTENTION_SCORES


def readers(trace: Trace, flow: Flow) -> dict[int, set[int]]:
    """Return the nodes that read each value, in whatever layout; changes of layout do not count."""
    found: dict[int, set[int]] = {}
    for index, node in enumerate(trace.nodes):
        if node.op_name not in FREE:
            for value in node.reads:
                source = flow.origin.get(value, value)
                if isinstance(source, int):
                    found.setdefault(source, set()).add(index)
    return found


def _fuse(trace: Trace, flow: Flow, groups: list[Group]) -> list[Group]:
    """Run light groups with the one light group that reads them, within a module and what it calls."""
    read_by = readers(trace, flow)
    place = {index: number for number, group in enumerate(groups) for index in group.nodes}
    kept: list[Group | None] = list(groups)
    answer = flow.origin.get(trace.answer, trace.answer)
    for number in range(len(groups)):
        group = kept[number]
        if group is None or group.kind not in LIGHT:
            continue
        made = [value for index in group.nodes for value in trace.nodes[index].makes]
        after = {
            place.get(index, -1)
            for value in made
            for index in read_by.get(value, ())
            if index not in group.nodes
        }
        if len(after) != 1 or answer in made:
            continue
        other = after.pop()
        reader = kept[other] if other >= 0 else None
        if reader is None or reader.kind not in LIGHT or not _belongs(group.path, reader.path):
            continue
        is_active = OperatorKind.ACTIVATION in (group.kind, reader.kind)
        nodes = tuple(sorted(group.nodes + reader.nodes))
        kept[other] = replace(
            reader,
            kind=OperatorKind.ACTIVATION if is_active else reader.kind,
            name="activation" if is_active else reader.name,
            nodes=nodes,
        )
        kept[number] = None
        place.update(dict.fromkeys(nodes, other))
    return [group for group in kept if group is not None]


def _belongs(path: str, reader: str) -> bool:
    return reader in (path, path.rpartition(".")[0])
