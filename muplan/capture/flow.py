"""What of a trace depends on the requests, and which of its nodes do work. This file imports torch.

A *flowing* value depends on the requests' data. What depends on sizes, positions and weights alone is
*side* work: a stage does again what it needs of it, so it does not keep the model from being cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from muplan.capture.subject import CACHE
from muplan.capture.trace import Node, Trace

FREE = frozenset(
    {
        "alias",
        "chunk",
        "clone",
        "contiguous",
        "detach",
        "detach_",
        "dropout",
        "expand",
        "expand_as",
        "feature_dropout",
        "flatten",
        "lift_fresh",
        "movedim",
        "narrow",
        "numpy_T",
        "permute",
        "reshape",
        "select",
        "slice",
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "to",
        "_to_copy",
        "transpose",
        "type_as",
        "unbind",
        "unflatten",
        "unsqueeze",
        "_unsafe_view",
        "view",
        "view_as",
    }
)
"""Operators that a kernel does without: it reads its operands in any layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """How values of a trace depend on each other.

    Parameters
    ----------
    flowing
        Values that depend on the requests' data.
    bookkeeping
        Nodes that make positions and masks: neither flowing, nor from parameters.
    needed
        Nodes that the answer depends on.
    origin
        Of each value that is another one, or a weight, in another layout: the value, or the weight's name.
    """

    flowing: frozenset[int]
    bookkeeping: frozenset[int]
    needed: frozenset[int]
    origin: dict[int, int | str]


def analyse(trace: Trace, side: frozenset[str], parameters: frozenset[str]) -> Flow:
    """Find what depends on what.

    Parameters
    ----------
    side
        Inputs that are none of the requests' data.
    parameters
        Names of the weights that are parameters.
    """
    flowing = {
        value for value, name in enumerate(trace.inputs) if name not in side and not name.startswith(CACHE)
    }
    cached = {value for value, name in enumerate(trace.inputs) if name.startswith(CACHE)}
    flowing |= cached
    made = trace.made_by()
    learnt: set[int] = set()  # nodes that depend on parameters
    moving: set[int] = set()  # nodes that depend on the requests
    origin: dict[int, int | str] = {}
    for index, node in enumerate(trace.nodes):
        if any(value in flowing for value in node.reads) or node.after & moving:
            moving.add(index)
            flowing.update(node.makes)
        if parameters & set(node.weights) or node.after & learnt:
            learnt.add(index)
        if node.op_name in FREE:
            source = _source(node)
            for value in node.makes:
                origin[value] = origin.get(source, source) if isinstance(source, int) else source
    return Flow(
        flowing=frozenset(flowing),
        bookkeeping=frozenset(range(len(trace.nodes))) - moving - learnt,
        needed=_needed(trace, made),
        origin=origin,
    )


def _source(node: Node) -> int | str:
    """What a node that changes the layout alone reads; a constant has no name."""
    if node.reads:
        return node.reads[0]
    return node.weights[0] if node.weights else ""


def _needed(trace: Trace, made: dict[int, int]) -> frozenset[int]:
    waiting = [made[trace.answer]]
    found: set[int] = set()
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting.extend(trace.nodes[index].after)
    return frozenset(found)


def last_reads(trace: Trace, flow: Flow) -> dict[int, int]:
    """Return the last needed node that reads each value; the answer is read at the end."""
    found: dict[int, int] = {}
    for index in sorted(flow.needed):
        found.update(dict.fromkeys(trace.nodes[index].reads, index))
    for value, name in enumerate(trace.inputs):
        if name.startswith(CACHE):
            found.pop(value, None)
    found[trace.answer] = len(trace.nodes)
    return found
