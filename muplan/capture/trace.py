"""Recordings of a module at several sizes, made one trace that holds at every size. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._pytree import TreeSpec

from muplan.capture.recording import Call, Constant, Recording, Ref, Scope, Weight
from muplan.capture.sizes import Extent, Grid, NotPolynomialError
from muplan.errors import InputError

Counts = NDArray[np.int64]
"""A number of the pass at each size of the grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A call, its arguments holding at every size.

    Parameters
    ----------
    leaves
        Arguments flattened: `Ref`, `Weight`, `Constant`, `Extent`, or what torch takes as it is.
    outputs
        Values that it makes, in the order of its flattened result.
    after
        Nodes that must have run: those that made what it reads, and those that changed it since.
    """

    op: Any
    spec: TreeSpec
    leaves: tuple[Any, ...]
    outputs: tuple[int | None, ...]
    scope: Scope
    after: frozenset[int]

    @property
    def op_name(self) -> str:
        """The operator without its overload: ``add``, ``linear``."""
        return str(self.op._schema.name).partition("::")[2]

    @property
    def reads(self) -> tuple[int, ...]:
        """Values that it reads, each once."""
        return tuple(dict.fromkeys(leaf.value for leaf in self.leaves if isinstance(leaf, Ref)))

    @property
    def weights(self) -> tuple[str, ...]:
        """Parameters and buffers that it reads."""
        return tuple(dict.fromkeys(leaf.name for leaf in self.leaves if isinstance(leaf, Weight)))

    @property
    def makes(self) -> tuple[int, ...]:
        """Values that it makes."""
        return tuple(value for value in self.outputs if value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """A value at all sizes: dimensions (sizes, rank), and bytes of an element."""

    shape: Counts
    element_bytes: int

    @property
    def numel(self) -> Counts:
        """Elements at each size."""
        return np.asarray(self.shape.prod(axis=1, dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A module's pass at every size.

    Parameters
    ----------
    inputs
        Names of the inputs; they are the first values.
    """

    grid: Grid
    inputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: tuple[Tensors, ...]
    answer: int

    def made_by(self) -> dict[int, int]:
        """Return the node that makes each value, inputs left out."""
        return {value: index for index, node in enumerate(self.nodes) for value in node.makes}

    def extents(self, value: int) -> tuple[Extent, ...]:
        """Return the dimensions of a value as polynomials of the sizes."""
        return tuple(self.grid.fit(column) for column in self.values[value].shape.T)


def join_recordings(grid: Grid, recordings: Sequence[Recording]) -> Trace:
    """Make one trace of recordings at ``grid.sizes``.

    Raises
    ------
    InputError
        The module does other things at other sizes, or a number is no polynomial of the sizes.
    """
    first = recordings[0]
    calls = list(zip(*(recording.calls for recording in recordings), strict=False))
    for together in calls:
        if len({_kind_of(call) for call in together}) > 1:
            raise _differs(together[0])
    if len({len(recording.calls) for recording in recordings}) > 1:
        raise _differs(first.calls[min(len(recording.calls) for recording in recordings) - 1])
    after = _dependencies(first)
    nodes = tuple(
        Node(
            op=together[0].op,
            spec=together[0].spec,
            leaves=tuple(
                _join(grid, leaves, together[0])
                for leaves in zip(*(call.leaves for call in together), strict=True)
            ),
            outputs=together[0].outputs,
            scope=together[0].scope,
            after=after[index],
        )
        for index, together in enumerate(calls)
    )
    values = tuple(
        Tensors(
            shape=np.array([value.shape for value in together], dtype=np.int64).reshape(len(together), -1),
            element_bytes=together[0].element_bytes,
        )
        for together in zip(*(recording.values for recording in recordings), strict=True)
    )
    return Trace(grid=grid, inputs=first.inputs, nodes=nodes, values=values, answer=first.answer)


def _kind_of(call: Call) -> tuple[Any, ...]:
    return call.op, call.scope.path, call.outputs, str(call.spec)


def _dependencies(recording: Recording) -> list[frozenset[int]]:
    """Find for each call those that it must follow."""
    made: dict[int, int] = {}
    changed: dict[int, list[int]] = {}
    found = []
    for index, call in enumerate(recording.calls):
        after: set[int] = set()
        for leaf in call.leaves:
            if isinstance(leaf, Ref):
                after |= {made[leaf.value]} if leaf.value in made else set()
                after |= set(changed.get(recording.values[leaf.value].storage, ()))
        found.append(frozenset(after))
        made.update({value: index for value in call.outputs if value is not None})
        for storage in call.writes:
            changed.setdefault(storage, []).append(index)
    return found


def _join(grid: Grid, leaves: tuple[Any, ...], call: Call) -> Any:
    """Make one argument of those at all sizes."""
    first = leaves[0]
    if isinstance(first, Constant):
        return first if all(_equal(first, leaf) for leaf in leaves) else _refuse(call)
    if isinstance(first, float) and first != first:
        return first
    if all(leaf == first for leaf in leaves):
        return first
    if not all(isinstance(leaf, int) for leaf in leaves):
        return _refuse(call)
    try:
        return grid.fit(leaves)
    except NotPolynomialError:
        return _refuse(call)


def _equal(first: Constant, leaf: Any) -> bool:
    if not isinstance(leaf, Constant) or first.tensor.shape != leaf.tensor.shape:
        return False
    has_data = type(first.tensor) is torch.Tensor and first.tensor.device.type == "cpu"
    return not has_data or torch.equal(first.tensor, leaf.tensor)


def _refuse(call: Call) -> Any:
    raise InputError(
        f"An argument of {call.op} in {call.scope.path or 'the model'} is no polynomial of batch and tokens.",
        "Capture models whose shapes follow from batch and tokens, or fix the length of their inputs.",
    )


def _differs(call: Call) -> InputError:
    return InputError(
        f"{call.scope.path or 'The model'} ({call.scope.class_name}) computes differently at other batches or"
        f" lengths, from {call.op} on.",
        "Capture models whose control flow does not depend on batch and tokens.",
    )
