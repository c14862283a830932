"""Operations of a node, and what kind of operator it is. This file imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from muplan.capture.flow import FREE
from muplan.capture.recording import Ref, Weight
from muplan.capture.trace import Counts, Node, Trace
from muplan.errors import InputError
from muplan.model.graph import TENSOR_CORE_KINDS, OperatorKind

_MATMULS = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "addbmm": 1, "einsum": 0}
"""Which operand is multiplied from the left."""
_CONVOLUTIONS = frozenset(
    {"conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
)
_ACTIVATIONS = frozenset(
    {
        "elu",
        "erf",
        "gelu",
        "glu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log_sigmoid",
        "mish",
        "prelu",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "tanh",
    }
)
_KINDS = {
    **dict.fromkeys(_MATMULS, OperatorKind.MATMUL),
    **dict.fromkeys(_CONVOLUTIONS, OperatorKind.CONVOLUTION),
    **dict.fromkeys(_ACTIVATIONS, OperatorKind.ACTIVATION),
    "scaled_dot_product_attention": OperatorKind.ATTENTION,
    "softmax": OperatorKind.SOFTMAX,
    "_softmax": OperatorKind.SOFTMAX,
    "embedding": OperatorKind.EMBEDDING,
    "layer_norm": OperatorKind.NORM,
    "batch_norm": OperatorKind.NORM,
    "group_norm": OperatorKind.NORM,
    "instance_norm": OperatorKind.NORM,
    "rms_norm": OperatorKind.NORM,
    "max_pool1d": OperatorKind.POOLING,
    "max_pool2d": OperatorKind.POOLING,
    "avg_pool1d": OperatorKind.POOLING,
    "avg_pool2d": OperatorKind.POOLING,
    "adaptive_avg_pool1d": OperatorKind.POOLING,
    "adaptive_avg_pool2d": OperatorKind.POOLING,
    "mean": OperatorKind.POOLING,
}
LIGHT = frozenset({OperatorKind.ELEMENTWISE, OperatorKind.ACTIVATION})
"""Kinds of which several nodes in a row are one kernel."""


_MOVES = frozenset({"cat", "gather", "index", "index_select", "pad", "repeat", "roll", "stack", "where"})
"""Operators that move elements and compute nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A parameter or buffer of the module."""

    shape: tuple[int, ...]
    num_bytes: int
    is_parameter: bool


def kind_of(node: Node) -> OperatorKind:
    """Return what a node computes."""
    return _KINDS.get(node.op_name.removesuffix("_"), OperatorKind.ELEMENTWISE)


def check_known(trace: Trace, weights: Mapping[str, Stored], counted: int) -> None:
    """Refuse a trace that may hold work which no operator would have.

    Parameters
    ----------
    counted
        Operations that torch's own counter finds at the first size.

    Raises
    ------
    InputError
        A call reads a matrix of parameters and is of no kind (recurrent cells), or torch counts more.
    """
    remedy = "Capture models of linear layers, convolutions, matmuls and attention."
    matrices = {name for name, held in weights.items() if held.is_parameter and len(held.shape) > 1}
    for node in trace.nodes:
        is_known = torch.Tag.pointwise in node.op.tags or node.op_name in FREE | _MOVES
        if kind_of(node) is OperatorKind.ELEMENTWISE and not is_known and matrices & set(node.weights):
            place = node.scope.path or node.scope.class_name
            raise InputError(f"What {node.op_name} of {place} computes is not known.", remedy)
    heavy = (node for node in trace.nodes if kind_of(node) in TENSOR_CORE_KINDS)
    found = sum(int(matrix_flops(trace, node, weights)[0]) for node in heavy)
    if found < counted:
        problem = f"The operators make {found:,} operations in matrices, torch counts {counted:,}."
        raise InputError(problem, remedy)


def tensor_shapes(trace: Trace, node: Node, weights: Mapping[str, Stored]) -> list[Counts]:
    """Return the shapes (sizes, rank) of a node's operands that are tensors, in order."""
    count = len(trace.grid.sizes)
    shapes = []
    for leaf in node.leaves:
        if isinstance(leaf, Ref):
            shapes.append(trace.values[leaf.value].shape)
        elif isinstance(leaf, Weight):
            shapes.append(np.tile(np.array(weights[leaf.name].shape, dtype=np.int64), (count, 1)))
    return shapes


def matrix_flops(trace: Trace, node: Node, weights: Mapping[str, Stored]) -> Counts:
    """Return the operations of a matmul, convolution or attention at each size; a multiply-add is two."""
    shapes, made = tensor_shapes(trace, node, weights), trace.values[node.makes[0]].numel
    if node.op_name == "einsum":
        return _einsum_flops(str(node.leaves[0]), shapes)
    if node.op_name in _MATMULS:
        return np.asarray(2 * made * shapes[_MATMULS[node.op_name]][:, -1])
    if node.op_name in _CONVOLUTIONS:
        pixels = shapes[0].prod(axis=1) if "transpose" in node.op_name else made
        return np.asarray(2 * pixels * shapes[1][:, 1:].prod(axis=1))
    query, key = shapes[0], shapes[1]
    return np.asarray(2 * (query.prod(axis=1) + made) * key[:, -2])


def _einsum_flops(equation: str, shapes: list[Counts]) -> Counts:
    operands = equation.replace(" ", "").partition("->")[0].split(",")
    if len(operands) != 2 or "." in equation:
        raise InputError(
            f"The operations of einsum {equation!r} are not counted.",
            "Write it as products of two tensors, with a letter for every dimension.",
        )
    extents = {
        letter: column
        for letters, shape in zip(operands, shapes, strict=True)
        for letter, column in zip(letters, shape.T, strict=True)
    }
    return np.asarray(2 * np.prod(list(extents.values()), axis=0))
