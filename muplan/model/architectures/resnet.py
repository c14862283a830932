"""ResNet: bottleneck blocks of convolutions, batch normalisation folded into them."""

from __future__ import annotations

from muplan.errors import InputError
from muplan.model.architectures.config import BuildOptions, Keys
from muplan.model.architectures.layers import per_sequence
from muplan.model.graph import Block, ModelGraph, Operator, OperatorKind, Phase

_FORWARD = (Phase.FORWARD,)
_IMAGE_SIZE = 224
_REDUCTION = 4  # a bottleneck's inner channels are a quarter of its outer ones


def resnet(keys: Keys, options: BuildOptions) -> ModelGraph:
    """Build a bottleneck ResNet with its classifier, for 224 × 224 images; ``tokens`` is 1."""
    if keys.text("layer_type", default="bottleneck") != "bottleneck":
        raise InputError(
            f"{options.name} is a ResNet without bottlenecks.", "muplan builds ResNet-50 and deeper."
        )
    element_bytes = options.element_bytes
    channels, size = keys.integer("embedding_size"), _IMAGE_SIZE // 4
    stem = (
        _convolution("convolution", 3, channels, 7, _IMAGE_SIZE, _IMAGE_SIZE // 2, element_bytes),
        _pooling("pooling", channels, _IMAGE_SIZE // 2, size, element_bytes),
    )
    blocks = [Block(name="embedding", operators=stem)]
    for index, (depth, outputs) in enumerate(
        zip(keys.integers("depths"), keys.integers("hidden_sizes"), strict=True)
    ):
        stride = 1 if index == 0 else 2
        first = _bottleneck(channels, outputs, size, stride, element_bytes)
        size, channels = size // stride, outputs
        blocks.append(Block(name=f"stage{index + 1}_first", operators=first))
        if depth > 1:
            rest = _bottleneck(outputs, outputs, size, 1, element_bytes)
            blocks.append(Block(name=f"stage{index + 1}", repeat=depth - 1, operators=rest))
    blocks.append(Block(name="head", operators=_head(channels, size, keys.num_labels(1000), element_bytes)))
    return ModelGraph(
        name=options.name,
        family="resnet",
        source=options.source,
        request_kind="forward",
        element_bytes=element_bytes,
        attention="unfused",
        hidden_size=channels,
        num_heads=1,
        num_kv_heads=1,
        max_context=1,
        fixed_tokens=1,
        vocabulary_size=0,
        blocks=tuple(blocks),
    )


def _convolution(
    name: str, inputs: int, outputs: int, kernel: int, input_size: int, output_size: int, element_bytes: int
) -> Operator:
    """Build a square convolution with its folded normalisation (a scale and a shift per channel)."""
    moved = (inputs * input_size**2 + outputs * output_size**2) * element_bytes
    return Operator(
        name=name,
        kind=OperatorKind.CONVOLUTION,
        phases=_FORWARD,
        flops=per_sequence(2.0 * kernel**2 * inputs * outputs * output_size**2),
        activation_bytes=per_sequence(float(moved)),
        weight_bytes=(kernel**2 * inputs + 2) * outputs * element_bytes,
        output_bytes=per_sequence(float(outputs * output_size**2 * element_bytes)),
    )


def _pooling(name: str, channels: int, input_size: int, output_size: int, element_bytes: int) -> Operator:
    moved = channels * (input_size**2 + output_size**2) * element_bytes
    return Operator(
        name=name,
        kind=OperatorKind.POOLING,
        phases=_FORWARD,
        flops=per_sequence(float(channels * input_size**2)),
        activation_bytes=per_sequence(float(moved)),
        output_bytes=per_sequence(float(channels * output_size**2 * element_bytes)),
        cut_after=True,
    )


def _bottleneck(
    inputs: int, outputs: int, input_size: int, stride: int, element_bytes: int
) -> tuple[Operator, ...]:
    """Build 1×1, 3×3 (with the stride), 1×1, and the addition of the shortcut with its activation."""
    inner, size = outputs // _REDUCTION, input_size // stride
    operators = [
        _convolution("reduce", inputs, inner, 1, input_size, input_size, element_bytes),
        _convolution("spatial", inner, inner, 3, input_size, size, element_bytes),
        _convolution("expand", inner, outputs, 1, size, size, element_bytes),
    ]
    if inputs != outputs:
        operators.append(_convolution("shortcut", inputs, outputs, 1, size, size, element_bytes))
    elements = outputs * size**2
    operators.append(
        Operator(
            name="residual",
            kind=OperatorKind.ELEMENTWISE,
            phases=_FORWARD,
            flops=per_sequence(2.0 * elements),
            activation_bytes=per_sequence(3.0 * elements * element_bytes),
            output_bytes=per_sequence(float(elements * element_bytes)),
            cut_after=True,
        )
    )
    return tuple(operators)


def _head(channels: int, size: int, classes: int, element_bytes: int) -> tuple[Operator, ...]:
    classifier = Operator(
        name="classifier",
        kind=OperatorKind.MATMUL,
        phases=_FORWARD,
        flops=per_sequence(2.0 * channels * classes),
        activation_bytes=per_sequence(float((channels + classes) * element_bytes)),
        weight_bytes=(channels + 1) * classes * element_bytes,
        output_bytes=per_sequence(float(classes * element_bytes)),
        cut_after=True,
    )
    return (_pooling("pooling", channels, size, 1, element_bytes), classifier)
