"""Runnable modules of a model graph's segments, with random weights.

A segment's operators are interpreted one after the other, each as the kernel that serving software runs
for it. Shapes follow from the operators themselves: a matmul's from its FLOPs and its output, a table's
from its weights. This file imports torch; import it only where a pass is to be run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from muplan.errors import InputError
from muplan.model.graph import ModelGraph, Operator, OperatorKind, Phase

if TYPE_CHECKING:
    from muplan.profiling.measured.captured_modules import CapturedModule

_DTYPES = {2: torch.float16, 4: torch.float32}
_WEIGHTLESS = {
    OperatorKind.ATTENTION,
    OperatorKind.ATTENTION_SCORES,
    OperatorKind.SOFTMAX,
    OperatorKind.ATTENTION_VALUES,
    OperatorKind.ALL_REDUCE,
    OperatorKind.ACTIVATION,
    OperatorKind.ELEMENTWISE,
}
_ROTARY_BASE = 10_000.0


class Batch(Protocol):
    """The sequences of a pass: where their tokens stand, and what they attend to."""

    @property
    def phase(self) -> Phase:
        """Whose operators run."""

    def positions(self, device: torch.device) -> Tensor:
        """Of the tokens, in their sequences; shape (tokens,)."""

    def last_tokens(self, hidden: Tensor) -> Tensor:
        """The rows of the tokens from which a next one follows; shape (sequences, hidden)."""

    def attended(self, module: SegmentModule, flow: Flow) -> Tensor:
        """Fused attention of the new tokens; shape of the residual stream."""

    def through(self, module: CapturedModule, entering: Tensor) -> Tensor:
        """What a part of a captured model makes of what enters it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassShape:
    """A pass: ``batch`` sequences of ``tokens`` new tokens, which attend to ``context`` tokens."""

    phase: Phase
    batch: int
    tokens: int
    context: int

    def positions(self, device: torch.device) -> Tensor:
        """Of the tokens: the last of the context."""
        return torch.arange(self.context - self.tokens, self.context, device=device)

    def last_tokens(self, hidden: Tensor) -> Tensor:
        """The last of each sequence."""
        return hidden[:, -1]

    def attended(self, module: SegmentModule, flow: Flow) -> Tensor:
        """Attention to the whole context, causal in a prefill; what is not new comes from the cache."""
        module.remember(flow, self)
        return joined(attention(flow.query, flow.key, flow.value, causal=self.phase is Phase.PREFILL))

    def through(self, module: CapturedModule, entering: Tensor) -> Tensor:
        """The tensor whole, behind a cache of zeros."""
        return module.run(entering, module.alone(self, entering.device))


def pass_shape(phase: Phase, batch: int, tokens: int) -> PassShape:
    """Return the pass of a profile's point, whose ``tokens`` are the context in decode."""
    new = 1 if phase is Phase.DECODE else tokens
    return PassShape(phase=phase, batch=batch, tokens=new, context=tokens)


@dataclass(slots=True)
class Flow:
    """The tensors that operators of a segment hand on."""

    entering: Tensor
    hidden: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scores: Tensor


class SegmentModule(nn.Module):  # type: ignore[misc]  # torch is not there for the type checker
    """Operators between two cut points of a graph, run on one device.

    Parameters
    ----------
    graph
        The model, for its heads and element type.
    operators
        The segment's, of the graph's attention kernel.
    dtype
        Type of weights and activations; float16 or float32 as the graph's element size says where absent.

    Raises
    ------
    InputError
        An operator that cannot be run yet: encoder-decoders and residual networks have such.
    """

    def __init__(
        self, graph: ModelGraph, operators: Sequence[Operator], dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.graph, self.operators = graph, tuple(operators)
        self.dtype = dtype or _dtype(graph)
        self.weights = nn.ModuleDict()
        self._cache: tuple[PassShape, Tensor, Tensor] | None = None
        for operator in self.operators:
            made = _layer(graph, operator, self.dtype)
            if made is not None:
                self.weights[_key(operator)] = made
            held = 0 if made is None else sum(weight.numel() for weight in made.parameters())
            if held * graph.element_bytes != operator.weight_bytes:
                raise _unknown(graph, operator)

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values, none or one."""
        return len(self.kv_shapes) // 2

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]:
        """Heads, and elements of each, of the keys and of the values of each layer."""
        kept = sum(operator.kv_bytes_per_token for operator in self.operators)
        heads = self.graph.num_kv_heads
        return ((heads, kept // self.graph.element_bytes // 2 // heads),) * 2 if kept else ()

    def reads(self, shape: PassShape, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Return a random input: token numbers or patches before an embedding, else the residual stream."""
        first, width, tokens = self.operators[0], self.graph.hidden_size, shape.tokens
        if first.kind is OperatorKind.EMBEDDING:
            rows = self.weights[_key(first)].num_embeddings
            return torch.randint(rows, (shape.batch, tokens), generator=generator, device=device)
        if first.kind in (OperatorKind.CONVOLUTION, OperatorKind.MATMUL):
            width = self.weights[_key(first)].in_features  # of patches, or of one-hot vectors
        if first.kind is OperatorKind.CONVOLUTION:
            tokens -= 1  # the class token is put before the patches
        values = torch.randn((shape.batch, tokens, width), generator=generator, device=device)
        return values.to(self.dtype)

    def forward(self, entering: Tensor, shape: Batch) -> Tensor:
        """Run the segment on what enters it; unfused attention is that of a `PassShape` alone."""
        flow = Flow(*[entering] * 6)
        for operator in self.operators:
            if shape.phase in operator.phases:
                self._run(operator, flow, shape)
        return flow.hidden

    def _run(self, operator: Operator, flow: Flow, shape: Batch) -> None:
        match operator.kind:
            case OperatorKind.ALL_REDUCE:
                pass
            case OperatorKind.EMBEDDING:
                flow.hidden = self._look_up(operator, flow, shape)
            case OperatorKind.ELEMENTWISE if operator.name.endswith("rotary"):
                positions = shape.positions(flow.query.device)
                flow.query, flow.key = _rotated(flow.query, positions), _rotated(flow.key, positions)
            case OperatorKind.ELEMENTWISE:
                flow.hidden = self._add(operator, flow)
            case OperatorKind.ACTIVATION:
                flow.hidden = _activated(operator, flow.hidden)
            case OperatorKind.ATTENTION:
                flow.hidden = shape.attended(self, flow)
            case OperatorKind.ATTENTION_SCORES if isinstance(shape, PassShape):
                self.remember(flow, shape)
                keys = _for_each_head(flow.key, flow.query)
                flow.scores = flow.query @ keys.transpose(-1, -2) * flow.query.shape[-1] ** -0.5
            case OperatorKind.SOFTMAX:
                flow.scores = flow.scores.softmax(-1)
            case OperatorKind.ATTENTION_VALUES:
                flow.hidden = joined(flow.scores @ _for_each_head(flow.value, flow.scores))
            case _:
                self._project(operator, flow, shape)

    def _project(self, operator: Operator, flow: Flow, shape: Batch) -> None:
        """Apply a linear layer or a normalisation."""
        is_last_row = operator.flops.terms and all(term.tokens == 0 for term in operator.flops.terms)
        if is_last_row and flow.hidden.dim() == 3 and operator.kind is OperatorKind.MATMUL:
            flow.hidden = shape.last_tokens(flow.hidden)
        made = self.weights[_key(operator)](flow.hidden)
        heads, kv_heads = self.graph.num_heads, self.graph.num_kv_heads
        match operator.name.rpartition(".")[2]:
            case "query_key_value":
                size = made.shape[-1] // (heads + 2 * kv_heads)
                query, key, value = made.split([heads * size, kv_heads * size, kv_heads * size], dim=-1)
                flow.query, flow.key, flow.value = (
                    _headed(query, heads),
                    _headed(key, kv_heads),
                    _headed(value, kv_heads),
                )
            case "query":
                flow.query = _headed(made, heads)
            case "key":
                flow.key = _headed(made, kv_heads)
            case "value":
                flow.value = _headed(made, kv_heads)
            case _:
                flow.hidden = made

    def _look_up(self, operator: Operator, flow: Flow, shape: Batch) -> Tensor:
        table = self.weights[_key(operator)]
        if operator is self.operators[0]:
            return torch.as_tensor(table(flow.entering))
        if operator.name.endswith("position"):
            return flow.hidden + table(shape.positions(flow.hidden.device))
        return flow.hidden + table.weight[0]

    def _add(self, operator: Operator, flow: Flow) -> Tensor:
        if operator.weight_bytes == 0:
            return flow.entering + flow.hidden
        table = self.weights[_key(operator)].weight  # a class token, then the positions
        first = table[:1].expand(flow.hidden.shape[0], 1, -1)
        return torch.cat([first, flow.hidden], dim=1) + table[1:]

    def remember(self, flow: Flow, shape: PassShape) -> None:
        """Write keys and values to the cache, where the model keeps one; attention is to all of it."""
        if self.num_layers == 0:
            return
        if self._cache is None or self._cache[0] != shape:
            size = (*flow.key.shape[:2], shape.context, flow.key.shape[-1])
            self._cache = None  # the old one goes before the new one comes: caches are large
            self._cache = (shape, flow.key.new_zeros(size), flow.key.new_zeros(size))
        _, keys, values = self._cache
        keys[:, :, shape.context - shape.tokens :] = flow.key
        values[:, :, shape.context - shape.tokens :] = flow.value
        flow.key, flow.value = keys, values


def _key(operator: Operator) -> str:
    return operator.name.replace(".", "_")


def _dtype(graph: ModelGraph) -> torch.dtype:
    if graph.element_bytes not in _DTYPES:
        raise InputError(
            f"{graph.name} has elements of {graph.element_bytes} bytes.",
            "Measure a model of elements of 2 or 4 bytes.",
        )
    return _DTYPES[graph.element_bytes]


def _layer(graph: ModelGraph, operator: Operator, dtype: torch.dtype) -> nn.Module | None:
    """Return the module that holds an operator's weights; None where it has none."""
    hidden, kind = graph.hidden_size, operator.kind
    weights = operator.weight_bytes // graph.element_bytes
    if kind is OperatorKind.MATMUL:
        outputs = round(float(operator.output_bytes(1, 1, 1)) / graph.element_bytes)
        inputs = round(float(operator.flops(1, 1, 1)) / 2 / outputs)
        return nn.Linear(inputs, outputs, bias=weights > inputs * outputs, dtype=dtype)
    if kind is OperatorKind.NORM:
        return nn.RMSNorm(hidden, dtype=dtype) if weights == hidden else nn.LayerNorm(hidden, dtype=dtype)
    if kind is OperatorKind.EMBEDDING or (kind is OperatorKind.ELEMENTWISE and weights):
        return nn.Embedding(weights // hidden, hidden, dtype=dtype)
    if kind is OperatorKind.CONVOLUTION and graph.fixed_tokens is not None and weights % hidden == 0:
        return nn.Linear(weights // hidden - 1, hidden, dtype=dtype)
    if kind in _WEIGHTLESS:
        return None
    raise _unknown(graph, operator)


def _unknown(graph: ModelGraph, operator: Operator) -> InputError:
    return InputError(
        f"The operator {operator.name!r} of {graph.name} ({operator.kind}) cannot be run yet.",
        "Measure a model that is one stack of transformer layers, or import measurements made elsewhere:"
        " muplan profile import --help",
    )


def _headed(made: Tensor, count: int) -> Tensor:
    return made.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(heads: Tensor) -> Tensor:
    """Put the heads of each token side by side; shape (batch, tokens, heads · size)."""
    return heads.transpose(1, 2).flatten(2)


def _for_each_head(kept: Tensor, heads: Tensor) -> Tensor:
    """Repeat key or value heads for the query heads that share them."""
    times = heads.shape[1] // kept.shape[1]
    return kept if times == 1 else kept.repeat_interleave(times, dim=1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Fused attention; shapes (batch, heads, tokens, size), query heads may share key and value heads."""
    grouped = query.shape[1] != key.shape[1]
    attend = functional.scaled_dot_product_attention
    return attend(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped)


def _activated(operator: Operator, hidden: Tensor) -> Tensor:
    moved = float(operator.activation_bytes(1, 1, 1)) / float(operator.output_bytes(1, 1, 1))
    if round(moved) == 3:  # two inputs read, one output written: gated
        gate, up = hidden.chunk(2, dim=-1)
        return functional.silu(gate) * up
    return functional.gelu(hidden)


def _rotated(heads: Tensor, positions: Tensor) -> Tensor:
    half = heads.shape[-1] // 2
    angles = positions[:, None] * _ROTARY_BASE ** (-torch.arange(half, device=heads.device) / half)
    cos, sin = angles.cos().to(heads.dtype), angles.sin().to(heads.dtype)
    low, high = heads[..., :half], heads[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
