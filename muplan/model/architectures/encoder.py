"""Encoders that answer a request in one pass: BERT and ViT."""

from __future__ import annotations

from muplan.model.architectures.config import BuildOptions, Keys
from muplan.model.architectures.layers import (
    Heads,
    Width,
    activation,
    lookup,
    matmul,
    norm,
    per_sequence,
    per_token,
    prefixed,
)
from muplan.model.architectures.transformer import LayerShape, layer
from muplan.model.graph import Block, ModelGraph, Operator, OperatorKind, Phase

_FORWARD = (Phase.FORWARD,)


def bert(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build BERT with the head that its architecture names: masked language model, or classifier."""
    hidden = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    width = Width(hidden=hidden, element_bytes=options.element_bytes, phases=_FORWARD)
    heads = Heads(query=num_heads, kv=num_heads, size=keys.heads_divide(hidden, num_heads))
    shape = LayerShape(
        width=width,
        heads=heads,
        feed_forward=keys.integer("intermediate_size"),
        bias=True,
        norm_bias=True,
        pre_norm=False,
    )
    positions = keys.integer("max_position_embeddings")
    return ModelGraph(
        name=options.name,
        family="bert",
        source=options.source,
        request_kind="forward",
        element_bytes=options.element_bytes,
        attention=options.attention or "unfused",
        hidden_size=hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        max_context=options.max_context or positions,
        vocabulary_size=keys.integer("vocab_size"),
        blocks=(
            Block(name="embedding", operators=_bert_embedding(keys, width, options)),
            Block(name="layer", repeat=keys.integer("num_hidden_layers"), operators=layer(shape)),
            Block(name="head", operators=_bert_head(keys, width)),
        ),
    )


def _bert_embedding(keys: Keys, width: Width, options: BuildOptions) -> tuple[Operator, ...]:
    vocabulary = keys.integer("vocab_size")
    word = lookup(width, "word", vocabulary)
    if options.embedding == "one_hot":
        one_hot = matmul(
            width,
            "word",
            vocabulary,
            width.hidden,
            bias=False,
            max_shards=keys.integer("num_attention_heads"),
        )
        # The one-hot vectors are written before the matmul reads them.
        written = per_token(float(vocabulary * width.element_bytes))
        word = one_hot.model_copy(update={"activation_bytes": one_hot.activation_bytes + written})
    return (
        word,
        lookup(width, "position", keys.integer("max_position_embeddings")),
        lookup(width, "token_type", keys.integer("type_vocab_size", default=2)),
        norm(width, "norm", bias=True, cut_after=True),
    )


def _bert_head(keys: Keys, width: Width) -> tuple[Operator, ...]:
    hidden, shards = width.hidden, keys.integer("num_attention_heads")
    if keys.architecture() in ("BertForMaskedLM", "BertForPreTraining"):
        vocabulary = keys.integer("vocab_size")
        tied = keys.boolean("tie_word_embeddings", default=True)
        outputs = matmul(
            width,
            "vocabulary",
            hidden,
            vocabulary,
            bias=not tied,
            max_shards=shards,
            tied=tied,
            cut_after=True,
        )
        return (
            matmul(width, "transform", hidden, hidden, bias=True, max_shards=1),
            activation(width, "activation", hidden, max_shards=1),
            norm(width, "norm", bias=True, cut_after=True),
            outputs,
        )
    pooler = matmul(width, "pooler", hidden, hidden, bias=True, max_shards=1, last_row=True)
    if keys.architecture() in ("", "BertModel"):
        return (pooler.model_copy(update={"cut_after": True}),)
    classes = keys.num_labels()
    classifier = matmul(
        width, "classifier", hidden, classes, bias=True, max_shards=1, last_row=True, cut_after=True
    )
    return (pooler, classifier)


def vit(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build a vision transformer with its classifier; ``tokens`` is the number of patches plus one."""
    hidden = keys.integer("hidden_size")
    num_heads = keys.integer("num_attention_heads")
    width = Width(hidden=hidden, element_bytes=options.element_bytes, phases=_FORWARD)
    heads = Heads(query=num_heads, kv=num_heads, size=keys.heads_divide(hidden, num_heads))
    shape = LayerShape(
        width=width,
        heads=heads,
        feed_forward=keys.integer("intermediate_size"),
        bias=True,
        norm_bias=True,
    )
    num_patches = (keys.integer("image_size") // keys.integer("patch_size")) ** 2
    classifier = matmul(
        width,
        "classifier",
        hidden,
        keys.num_labels(default=1000),
        bias=True,
        max_shards=1,
        last_row=True,
        cut_after=True,
    )
    return ModelGraph(
        name=options.name,
        family="vit",
        source=options.source,
        request_kind="forward",
        element_bytes=options.element_bytes,
        attention=options.attention or "unfused",
        hidden_size=hidden,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        max_context=num_patches + 1,
        fixed_tokens=num_patches + 1,
        vocabulary_size=0,
        blocks=(
            Block(name="embedding", operators=_patches(keys, width, num_patches)),
            Block(name="layer", repeat=keys.integer("num_hidden_layers"), operators=layer(shape)),
            Block(name="head", operators=(norm(width, "norm", bias=True, cut_after=True), classifier)),
        ),
    )


def _patches(keys: Keys, width: Width, num_patches: int) -> tuple[Operator, ...]:
    """Turn patches into vectors, put a class token before them, and add position embeddings."""
    pixels = keys.integer("num_channels", default=3) * keys.integer("patch_size") ** 2
    element_bytes, hidden = width.element_bytes, width.hidden
    project = Operator(
        name="patch",
        kind=OperatorKind.CONVOLUTION,
        phases=width.phases,
        flops=per_sequence(2.0 * num_patches * pixels * hidden),
        activation_bytes=per_sequence(float(num_patches * (pixels + hidden) * element_bytes)),
        weight_bytes=(pixels + 1) * hidden * element_bytes,
        output_bytes=width.stream(),
    )
    position = Operator(
        name="position",
        kind=OperatorKind.ELEMENTWISE,
        phases=width.phases,
        flops=per_token(float(hidden)),
        activation_bytes=per_token(2.0 * hidden * element_bytes),
        weight_bytes=(num_patches + 2) * hidden * element_bytes,
        output_bytes=width.stream(),
        cut_after=True,
    )
    return (project, *prefixed("token", (position,)))
