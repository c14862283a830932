"""Generators with an encoder: T5 and Whisper.

A prefill pass runs the encoder over ``tokens`` source tokens, makes the cross-attention keys and
values, and runs the decoder on its first token. In decode the ``context`` counts the source tokens
and the tokens generated so far together: a source token leaves as many bytes in the cross-attention
cache as a generated token leaves in the decoder's own, so one term, on the cross-attention, holds the
work of both.
"""

from __future__ import annotations

from dataclasses import replace

from muplan.model.architectures.config import BuildOptions, Keys
from muplan.model.architectures.layers import (
    Heads,
    Width,
    all_reduce,
    attention_core,
    gather,
    lookup,
    matmul,
    norm,
    per_sequence,
    per_token,
    prefixed,
    residual,
)
from muplan.model.architectures.transformer import (
    LayerShape,
    feed_forward,
    layer,
    output_projection,
    projections,
)
from muplan.model.graph import Block, ModelGraph, Operator, OperatorKind, Phase

_PREFILL = (Phase.PREFILL,)
_BOTH = (Phase.PREFILL, Phase.DECODE)


def t5(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build T5: relative positions, RMS normalisation, no biases."""
    num_heads = keys.integer("num_heads")
    width = Width(hidden=keys.integer("d_model"), element_bytes=options.element_bytes, phases=_PREFILL)
    shape = LayerShape(
        width=width,
        heads=Heads(query=num_heads, kv=num_heads, size=keys.integer("d_kv")),
        feed_forward=keys.integer("d_ff"),
        bias=False,
        norm_bias=False,
        gated=keys.text("feed_forward_proj", default="relu").startswith("gated"),
    )
    layers = keys.integer("num_layers")
    vocabulary = keys.integer("vocab_size")
    buckets = keys.integer("relative_attention_num_buckets", default=32)
    one_row = replace(width, phases=_BOTH, one_row=True)
    embedding = (
        lookup(width, "word", vocabulary),
        lookup(width, "relative_position", buckets, columns=num_heads, cut_after=True),
    )
    decoder_embedding = (
        lookup(one_row, "word", vocabulary, tied=True),
        lookup(one_row, "relative_position", buckets, columns=num_heads, cut_after=True),
    )
    return _encoder_decoder(
        options,
        "t5",
        shape,
        embedding=embedding,
        decoder_embedding=decoder_embedding,
        num_layers=(layers, keys.integer("num_decoder_layers", default=layers)),
        vocabulary=vocabulary,
        tied=keys.boolean("tie_word_embeddings", default=True),
        max_context=options.max_context or 2 * keys.integer("n_positions", default=512),
        fixed_tokens=None,
    )


def whisper(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build Whisper: two convolutions over 30 seconds of sound make its fixed number of source tokens."""
    num_heads = keys.integer("encoder_attention_heads")
    hidden = keys.integer("d_model")
    width = Width(hidden=hidden, element_bytes=options.element_bytes, phases=_PREFILL)
    shape = LayerShape(
        width=width,
        heads=Heads(query=num_heads, kv=num_heads, size=keys.heads_divide(hidden, num_heads)),
        feed_forward=keys.integer("encoder_ffn_dim"),
        bias=True,
        norm_bias=True,
        key_bias=False,
    )
    vocabulary = keys.integer("vocab_size")
    source = keys.integer("max_source_positions")
    target = keys.integer("max_target_positions")
    one_row = replace(width, phases=_BOTH, one_row=True)
    mels = keys.integer("num_mel_bins")
    embedding = (
        _convolution(width, "first", mels, hidden, input_frames=2 * source, output_frames=2 * source),
        _convolution(width, "second", hidden, hidden, input_frames=2 * source, output_frames=source),
        lookup(width, "position", source, cut_after=True),
    )
    decoder_embedding = (
        lookup(one_row, "word", vocabulary),
        lookup(one_row, "position", target, cut_after=True),
    )
    return _encoder_decoder(
        options,
        "whisper",
        shape,
        embedding=embedding,
        decoder_embedding=decoder_embedding,
        num_layers=(keys.integer("encoder_layers"), keys.integer("decoder_layers")),
        vocabulary=vocabulary,
        tied=True,
        max_context=source + target,
        fixed_tokens=source,
    )


def _convolution(
    width: Width, name: str, inputs: int, outputs: int, *, input_frames: int, output_frames: int
) -> Operator:
    """Convolve over time with a kernel of three frames, and its activation."""
    element_bytes = width.element_bytes
    moved = (input_frames * inputs + output_frames * outputs) * element_bytes
    return Operator(
        name=f"{name}_convolution",
        kind=OperatorKind.CONVOLUTION,
        phases=width.phases,
        flops=per_sequence(2.0 * 3 * inputs * outputs * output_frames),
        activation_bytes=per_sequence(float(moved)),
        weight_bytes=(3 * inputs + 1) * outputs * element_bytes,
        output_bytes=per_sequence(float(output_frames * outputs * element_bytes)),
    )


def _encoder_decoder(
    options: BuildOptions,
    family: str,
    shape: LayerShape,
    *,
    embedding: tuple[Operator, ...],
    decoder_embedding: tuple[Operator, ...],
    num_layers: tuple[int, int],
    vocabulary: int,
    tied: bool,
    max_context: int,
    fixed_tokens: int | None,
) -> ModelGraph:
    width = shape.width
    one_row = replace(width, phases=_BOTH, one_row=True)
    head = (
        norm(one_row, "norm", bias=shape.norm_bias),
        matmul(
            one_row,
            "vocabulary",
            width.hidden,
            vocabulary,
            bias=False,
            max_shards=shape.heads.query,
            tied=tied,
        ),
        gather(one_row, "gather", vocabulary),
    )
    decoder = _decoder_layer(replace(shape, width=one_row), width)
    return ModelGraph(
        name=options.name,
        family=family,
        source=options.source,
        request_kind="generate",
        element_bytes=options.element_bytes,
        attention=options.attention or "unfused",
        hidden_size=width.hidden,
        num_heads=shape.heads.query,
        num_kv_heads=shape.heads.kv,
        max_context=max_context,
        fixed_tokens=fixed_tokens,
        vocabulary_size=vocabulary,
        blocks=(
            Block(name="embedding", operators=embedding),
            Block(name="encoder", repeat=num_layers[0], operators=layer(shape)),
            Block(name="encoder_end", operators=(norm(width, "norm", bias=shape.norm_bias, cut_after=True),)),
            Block(name="decoder_embedding", operators=decoder_embedding),
            Block(name="decoder", repeat=num_layers[1], operators=decoder),
            Block(name="head", operators=head),
        ),
    )


def _decoder_layer(shape: LayerShape, source: Width) -> tuple[Operator, ...]:
    """Build self-attention of one token, cross-attention over the source, feed-forward."""
    width, heads = shape.width, shape.heads
    self_attention = [
        norm(width, "norm", bias=shape.norm_bias),
        *projections(shape),
        output_projection(shape),
        all_reduce(width, "all_reduce"),
        residual(width, "residual"),
    ]
    query, _, _ = projections(shape)
    _, key, value = projections(replace(shape, width=source))
    kv_bytes = 2 * heads.kv_elements * width.element_bytes
    cross_attention = [
        norm(width, "norm", bias=shape.norm_bias),
        query,
        key,
        value,
        *attention_core(width, heads, kv_bytes_per_token=kv_bytes),
        output_projection(shape),
        all_reduce(width, "all_reduce"),
        residual(width, "residual"),
    ]
    # What is live between decoder layers: the decoder's token, and in prefill the encoder's output too.
    live = per_token(float(width.hidden * width.element_bytes))
    *inner, last = feed_forward(shape)
    return (
        *prefixed("self_attention", self_attention),
        *prefixed("cross_attention", cross_attention),
        *inner,
        last.model_copy(update={"output_bytes": live}),
    )
