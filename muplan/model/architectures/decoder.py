"""Decoder-only generators: GPT-2, OPT and LLaMA."""

from __future__ import annotations

from muplan.model.architectures.config import BuildOptions, Keys
from muplan.model.architectures.layers import Heads, Width, gather, lookup, matmul, norm
from muplan.model.architectures.transformer import LayerShape, layer
from muplan.model.graph import Block, ModelGraph, Operator, Phase

_PHASES = (Phase.PREFILL, Phase.DECODE)


def gpt2(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build GPT-2: learned positions, biases, tied output."""
    hidden = keys.integer("n_embd")
    num_heads = keys.integer("n_head")
    width = Width(hidden=hidden, element_bytes=options.element_bytes, phases=_PHASES)
    shape = LayerShape(
        width=width,
        heads=Heads(query=num_heads, kv=num_heads, size=keys.heads_divide(hidden, num_heads)),
        feed_forward=keys.integer("n_inner", default=4 * hidden),
        bias=True,
        norm_bias=True,
        merged_projections=True,
        causal=True,
        cached=True,
    )
    positions = keys.integer("n_positions")
    embedding = (
        lookup(width, "word", keys.integer("vocab_size")),
        lookup(width, "position", positions, cut_after=True),
    )
    tied = keys.boolean("tie_word_embeddings", default=True)
    return _generator(keys, options, "gpt2", shape, keys.integer("n_layer"), positions, embedding, tied=tied)


def opt(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build OPT: learned positions (two more than the context), biases, tied output, normalisation first."""
    hidden = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    width = Width(hidden=hidden, element_bytes=options.element_bytes, phases=_PHASES)
    shape = LayerShape(
        width=width,
        heads=Heads(query=num_heads, kv=num_heads, size=keys.heads_divide(hidden, num_heads)),
        feed_forward=keys.integer("ffn_dim"),
        bias=True,
        norm_bias=True,
        merged_projections=True,
        causal=True,
        cached=True,
    )
    positions = keys.integer("max_position_embeddings")
    embedding = (
        lookup(width, "word", keys.integer("vocab_size")),
        lookup(width, "position", positions + 2, cut_after=True),
    )
    tied = keys.boolean("tie_word_embeddings", default=True)
    layers = keys.integer("num_hidden_layers")
    return _generator(keys, options, "opt", shape, layers, positions, embedding, tied=tied)


def llama(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build LLaMA: rotary positions, RMS normalisation, gated feed-forward, grouped KV heads."""
    hidden = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    width = Width(hidden=hidden, element_bytes=options.element_bytes, phases=_PHASES)
    shape = LayerShape(
        width=width,
        heads=Heads(
            query=num_heads,
            kv=keys.integer("num_key_value_heads", default=num_heads),
            size=keys.heads_divide(hidden, num_heads),
        ),
        feed_forward=keys.integer("intermediate_size"),
        bias=False,
        norm_bias=False,
        gated=True,
        merged_projections=True,
        causal=True,
        rotary=True,
        cached=True,
    )
    positions = keys.integer("max_position_embeddings")
    embedding = (lookup(width, "word", keys.integer("vocab_size"), cut_after=True),)
    tied = keys.boolean("tie_word_embeddings", default=False)
    layers = keys.integer("num_hidden_layers")
    return _generator(keys, options, "llama", shape, layers, positions, embedding, tied=tied)


def _generator(
    keys: Keys,
    options: BuildOptions,
    family: str,
    shape: LayerShape,
    num_layers: int,
    positions: int,
    embedding: tuple[Operator, ...],
    *,
    tied: bool,
) -> ModelGraph:
    width, vocabulary = shape.width, keys.integer("vocab_size")
    head = (
        norm(width, "norm", bias=shape.norm_bias),
        # The vocabulary is padded to a multiple of the tensor parallelism where it is not one.
        matmul(
            width,
            "vocabulary",
            width.hidden,
            vocabulary,
            bias=False,
            max_shards=shape.heads.query,
            last_row=True,
            tied=tied,
        ),
        gather(width, "gather", vocabulary),
    )
    return ModelGraph(
        name=options.name,
        family=family,
        source=options.source,
        request_kind="generate",
        element_bytes=options.element_bytes,
        attention=options.attention or "fused",
        hidden_size=width.hidden,
        num_heads=shape.heads.query,
        num_kv_heads=shape.heads.kv,
        max_context=options.max_context or positions,
        vocabulary_size=vocabulary,
        blocks=(
            Block(name="embedding", operators=embedding),
            Block(name="layer", repeat=num_layers, operators=layer(shape)),
            Block(name="head", operators=head),
        ),
    )
