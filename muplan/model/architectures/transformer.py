"""One transformer layer, in the variants that the supported families need."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.model.architectures.layers import (
    Heads,
    Width,
    activation,
    all_reduce,
    attention_core,
    matmul,
    norm,
    prefixed,
    residual,
    rotary,
)
from muplan.model.graph import Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """Shape and variant of a transformer layer.

    Attributes
    ----------
    feed_forward
        Elements of the hidden layer of the feed-forward network.
    bias, norm_bias
        Whether linear layers, and normalisations, have a bias.
    key_bias
        Whether the key projection has one too.
    gated
        The feed-forward network multiplies an activated projection by a second one.
    merged_projections
        Query, key and value are one matmul.
    pre_norm
        Normalise before attention and feed-forward rather than after the residual additions.
    causal
        Tokens look at earlier tokens only.
    rotary
        Rotary position embedding.
    cached
        Keys and values are kept in the KV cache.
    """

    width: Width
    heads: Heads
    feed_forward: int
    bias: bool
    norm_bias: bool
    key_bias: bool = True
    gated: bool = False
    merged_projections: bool = False
    pre_norm: bool = True
    causal: bool = False
    rotary: bool = False
    cached: bool = False

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of a token's key and value in this layer's cache; 0 if nothing is kept."""
        return 2 * self.heads.kv_elements * self.width.element_bytes * self.cached


def layer(shape: LayerShape) -> tuple[Operator, ...]:
    """Build a layer of self-attention and feed-forward."""
    return (*attention(shape), *feed_forward(shape))


def attention(shape: LayerShape) -> tuple[Operator, ...]:
    """Build the attention half of a layer, up to and with its residual addition."""
    width, heads = shape.width, shape.heads
    operators = [norm(width, "norm", bias=shape.norm_bias)] if shape.pre_norm else []
    operators += projections(shape)
    if shape.rotary:
        elements = heads.query_elements + heads.kv_elements
        operators.append(rotary(width, "rotary", elements, max_shards=heads.query))
    operators += attention_core(
        width, heads, kv_bytes_per_token=shape.kv_bytes_per_token, causal=shape.causal
    )
    operators.append(output_projection(shape))
    operators += _end(shape)
    return prefixed("attention", operators)


def projections(shape: LayerShape) -> list[Operator]:
    """Build the query, key and value projections."""
    width, heads, bias = shape.width, shape.heads, shape.bias
    if shape.merged_projections:
        outputs = heads.query_elements + 2 * heads.kv_elements
        name = "query_key_value"
        return [matmul(width, name, width.hidden, outputs, bias=bias, max_shards=heads.query)]
    return [
        matmul(width, "query", width.hidden, heads.query_elements, bias=bias, max_shards=heads.query),
        matmul(
            width, "key", width.hidden, heads.kv_elements, bias=bias and shape.key_bias, max_shards=heads.kv
        ),
        matmul(width, "value", width.hidden, heads.kv_elements, bias=bias, max_shards=heads.kv),
    ]


def output_projection(shape: LayerShape) -> Operator:
    """Project the heads' outputs back to the residual stream."""
    heads = shape.heads
    return matmul(
        shape.width,
        "output",
        heads.query_elements,
        shape.width.hidden,
        bias=shape.bias,
        max_shards=heads.query,
    )


def feed_forward(shape: LayerShape) -> tuple[Operator, ...]:
    """Build the feed-forward half of a layer, up to and with its residual addition."""
    width, inner, shards = shape.width, shape.feed_forward, shape.feed_forward
    operators = [norm(width, "norm", bias=shape.norm_bias)] if shape.pre_norm else []
    up = "gate_up" if shape.gated else "up"
    factor = 2 if shape.gated else 1
    operators += [
        matmul(width, up, width.hidden, factor * inner, bias=shape.bias, max_shards=shards),
        activation(width, "activation", inner, inputs=factor, max_shards=shards),
        matmul(width, "down", inner, width.hidden, bias=shape.bias, max_shards=shards),
    ]
    operators += _end(shape)
    return prefixed("feed_forward", operators)


def _end(shape: LayerShape) -> list[Operator]:
    width = shape.width
    if shape.pre_norm:
        return [all_reduce(width, "all_reduce"), residual(width, "residual", cut_after=True)]
    return [
        all_reduce(width, "all_reduce"),
        residual(width, "residual"),
        norm(width, "norm", bias=shape.norm_bias, cut_after=True),
    ]
