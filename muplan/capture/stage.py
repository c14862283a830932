"""A part of a captured model, from one cut to another, as a module that runs. This file imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from muplan.capture.capture import Captured
from muplan.capture.recording import Constant, Ref, Weight
from muplan.capture.sizes import Extent, Sizes
from muplan.capture.subject import CACHE
from muplan.capture.trace import Node
from muplan.errors import InputError


@dataclass(frozen=True, slots=True)
class Cache:
    """Keys, or values, of a layer: the input that holds those of earlier tokens, and the value that adds new.

    Shapes (batch, heads, tokens, size).
    """

    held: int
    new: int


class Stage(nn.Module):  # type: ignore[misc]  # torch is not there for the type checker
    """Segments of a captured model.

    It runs the calls that were traced, at any size: the sizes follow from the shape of what enters.
    Positions, masks and what else depends on sizes and weights alone are computed by every stage that
    reads them.

    Parameters
    ----------
    first, last
        Half-open range of the model's segments.
    does_all_side
        Whether it does the side work of the whole model.
    """

    def __init__(self, captured: Captured, first: int, last: int, *, does_all_side: bool = False) -> None:
        super().__init__()
        _check(captured, first, last)
        segments, trace = captured.segments[first:last], captured.trace
        self._side, self._moving = _schedule(captured, segments[0].first, segments[-1].last)
        if does_all_side:
            self._side, _ = _schedule(captured, 0, len(trace.nodes))
        self.leaving = segments[-1].leaving
        self.entering = _entering(captured, first)
        self.trace = trace
        self.caches = _caches(self._moving, trace.inputs)
        self._names = _hold(self, captured)
        self._dead = _last_uses(self._moving, {self.leaving, *(cache.new for cache in self.caches)})

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        held = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    def take_copies(self, device: torch.device) -> None:
        """Hold copies of the model's weights on a device, and not the model's own."""
        for name, weight in list(self._parameters.items()):
            self.register_parameter(name, nn.Parameter(weight.to(device, copy=True), requires_grad=False))
        for name, tensor in list(self._buffers.items()):
            self.register_buffer(name, tensor.to(device, copy=True))

    def tensors(self) -> tuple[Tensor, ...]:
        """Its weights, and what else it holds."""
        return (*self.parameters(), *self.buffers())

    def forward(self, *entering: Tensor) -> Tensor:
        """Run the stage on the model's inputs if it is the first, else on what the stage before it left."""
        found = dict(zip(self.entering, entering, strict=True))
        sizes = self._sizes(found)
        return self.run({**self.side({}, sizes), **found}, sizes)[self.leaving]

    def side(self, told: Mapping[int, Tensor], sizes: Sizes) -> dict[int, Tensor]:
        """Compute what depends on sizes, weights and what is told of the pass: masks, positions."""
        values, device = dict(told), self.device
        for node in self._side:
            values |= self._made(node, values, sizes, device)
        return values

    def run(self, values: Mapping[int, Tensor], sizes: Sizes) -> dict[int, Tensor]:
        """Run the calls on values by number: what enters, what is cached, and what `side` has made.

        Those returned have what leaves, and new keys and values.
        """
        values, device = dict(values), self.device
        for node, dead in zip(self._moving, self._dead, strict=True):
            values |= self._made(node, values, sizes, device)
            for number in dead:
                values.pop(number, None)
        return values

    def _made(
        self, node: Node, values: Mapping[int, Tensor], sizes: Sizes, device: torch.device
    ) -> dict[int, Tensor]:
        leaves = [self._leaf(leaf, values, sizes, device) for leaf in node.leaves]
        args, kwargs = tree_unflatten(leaves, node.spec)
        made, _ = tree_flatten(node.op(*args, **kwargs))
        return {key: one for key, one in zip(node.outputs, made, strict=True) if key is not None}

    def _leaf(self, leaf: Any, values: Mapping[int, Tensor], sizes: Sizes, device: torch.device) -> Any:
        match leaf:
            case Ref(value=value):
                return values[value]
            case Weight(name=name):
                return getattr(self, self._names[name])
            case Constant(tensor=tensor):
                return tensor.to(device) if tensor.dim() else tensor
            case Extent():
                return leaf(sizes)
            case torch.device():
                return device
        return leaf

    def _sizes(self, entering: Mapping[int, Tensor]) -> Sizes:
        """Read batch and tokens off the shapes of what enters."""
        found: dict[int, int] = {}
        for number, tensor in entering.items():
            for extent, length in zip(self.trace.extents(number), tensor.shape, strict=True):
                moving = [(powers, factor) for powers, factor in extent.terms if any(powers)]
                if len(moving) == 1 and sum(moving[0][0]) == 1:
                    rest = sum(factor for powers, factor in extent.terms if not any(powers))
                    found.setdefault(moving[0][0].index(1), int((length - rest) / moving[0][1]))
        tokens = found.get(1, 1)
        return Sizes(batch=found.get(0, 1), tokens=tokens, context=found.get(2, tokens))


def _check(captured: Captured, first: int, last: int) -> None:
    count = len(captured.segments)
    if not 0 <= first < last <= count:
        raise InputError(
            f"{captured.graph.name} has no stage from segment {first} to {last}.",
            f"Name a range of its {count} segments: 0 to {count} is the whole model.",
        )
    if not captured.is_real:
        raise InputError(
            f"{captured.graph.name} was captured without weights, so that no stage of it can run.",
            "Capture it with is_real=True.",
        )


def _entering(captured: Captured, first: int) -> tuple[int, ...]:
    """The values that enter: the model's inputs, or the one that the segment before leaves."""
    if first:
        return (captured.segments[first - 1].leaving,)
    names = enumerate(captured.trace.inputs)
    return tuple(
        value for value, name in names if value in captured.flow.flowing and not name.startswith(CACHE)
    )


def _schedule(captured: Captured, first: int, last: int) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The nodes that a stage runs: side work that it reads, and what its answer needs between its cuts."""
    trace, flow = captured.trace, captured.flow
    moving = {index for index, node in enumerate(trace.nodes) if set(node.makes) & flow.flowing}
    chosen = {index for index in flow.needed & moving if first <= index <= last}
    waiting = list(chosen)
    while waiting:
        for index in trace.nodes[waiting.pop()].after:
            if index not in chosen and index not in moving:
                chosen.add(index)
                waiting.append(index)
    side, own = (
        tuple(trace.nodes[index] for index in sorted(some)) for some in (chosen - moving, chosen & moving)
    )
    return side, own


def _hold(stage: Stage, captured: Captured) -> dict[str, str]:
    """Register the weights that a stage reads; names of attributes have no dots."""
    names: dict[str, str] = {}
    for node in (*stage._side, *stage._moving):
        for name in node.weights:
            if name in names:
                continue
            names[name], tensor = name.replace(".", "__"), captured.weights[name]
            if isinstance(tensor, nn.Parameter):
                stage.register_parameter(names[name], tensor)
            else:
                stage.register_buffer(names[name], tensor)
    return names


def _caches(nodes: tuple[Node, ...], inputs: tuple[str, ...]) -> tuple[Cache, ...]:
    """The caches that a stage reads, keys before values, layer by layer."""
    found = []
    for value, name in enumerate(inputs):
        reading = [node for node in nodes if value in node.reads] if name.startswith(CACHE) else []
        if not reading:
            continue
        if len(reading) > 1 or reading[0].op_name != "cat" or len(reading[0].reads) != 2:
            raise InputError(
                f"A layer puts new keys and values not behind the cached ones ({name}: {reading[0].op}).",
                "Run models whose layers keep keys and values of all tokens in their order.",
            )
        found.append(Cache(held=value, new=reading[0].reads[1]))
    return tuple(found)


def _last_uses(nodes: tuple[Node, ...], kept: set[int]) -> tuple[tuple[int, ...], ...]:
    """The values that nobody reads any more after each node, but for those that are kept."""
    last: dict[int, int] = {}
    for index, node in enumerate(nodes):
        last.update(dict.fromkeys((*node.reads, *node.makes), index))
    last = {value: index for value, index in last.items() if value not in kept}
    dead: list[list[int]] = [[] for _ in nodes]
    for value, index in last.items():
        dead[index].append(value)
    return tuple(map(tuple, dead))
