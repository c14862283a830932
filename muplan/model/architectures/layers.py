"""Operators that the model families share.

Bytes count what a kernel must read and write if nothing stays in cache between kernels: inputs,
outputs, and the KV cache where there is one. Weights are counted by the operator itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from muplan.model.graph import AttentionKernel, Monomial, Operator, OperatorKind, Phase, Polynomial

# Passes of unfused attention over its scores (heads × tokens × context): the matmul that makes them
# writes them once, the one that uses them reads them once, and scaling, masking and softmax read or
# write them seven times between. `docs/validation.md` tests the sum of nine on V100.
SOFTMAX_PASSES = 7
# Floating-point operations per score: scale, mask, maximum, subtract, exponential (about 4), sum, divide.
SOFTMAX_FLOPS = 10
# Floating-point operations per element, all on the vector units.
NORM_FLOPS = 8
ACTIVATION_FLOPS = 10


def per_token(coefficient: float) -> Polynomial:
    """Return ``coefficient · batch · tokens``."""
    return Polynomial(terms=(Monomial(coefficient=coefficient, batch=1, tokens=1),))


def per_sequence(coefficient: float) -> Polynomial:
    """Return ``coefficient · batch``."""
    return Polynomial(terms=(Monomial(coefficient=coefficient, batch=1),))


def per_context(coefficient: float) -> Polynomial:
    """Return ``coefficient · batch · context``."""
    return Polynomial(terms=(Monomial(coefficient=coefficient, batch=1, context=1),))


def per_score(coefficient: float) -> Polynomial:
    """Return ``coefficient · batch · tokens · context``."""
    return Polynomial(terms=(Monomial(coefficient=coefficient, batch=1, tokens=1, context=1),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """What every operator of a stack of layers has in common.

    ``rows`` makes a polynomial of rows of the stack: `per_token` where every token passes through,
    `per_sequence` where one token of each sequence does.
    """

    hidden: int
    element_bytes: int
    phases: tuple[Phase, ...]
    one_row: bool = False

    def rows(self, coefficient: float) -> Polynomial:
        """Return ``coefficient`` times the rows of the stack."""
        return per_sequence(coefficient) if self.one_row else per_token(coefficient)

    def stream(self) -> Polynomial:
        """Return the bytes of the residual stream."""
        return self.rows(self.hidden * self.element_bytes)


def matmul(
    width: Width,
    name: str,
    inputs: int,
    outputs: int,
    *,
    bias: bool,
    max_shards: int,
    last_row: bool = False,
    tied: bool = False,
    cut_after: bool = False,
) -> Operator:
    """Build a linear layer; ``last_row`` applies it to the last token of each sequence only."""
    rows = per_sequence if last_row else width.rows
    return Operator(
        name=name,
        kind=OperatorKind.MATMUL,
        phases=width.phases,
        flops=rows(2.0 * inputs * outputs),
        activation_bytes=rows(float((inputs + outputs) * width.element_bytes)),
        weight_bytes=(inputs * outputs + outputs * bias) * width.element_bytes,
        output_bytes=rows(float(outputs * width.element_bytes)),
        max_shards=max_shards,
        tied=tied,
        cut_after=cut_after,
    )


def all_reduce(width: Width, name: str) -> Operator:
    """Sum a layer's partial outputs over tensor-parallel GPUs."""
    return Operator(
        name=name,
        kind=OperatorKind.ALL_REDUCE,
        phases=width.phases,
        output_bytes=width.stream(),
        comm_bytes=width.stream(),
    )


def gather(width: Width, name: str, outputs: int) -> Operator:
    """Collect the sharded outputs of the last row: half the traffic of an all-reduce of them."""
    return Operator(
        name=name,
        kind=OperatorKind.ALL_REDUCE,
        phases=width.phases,
        output_bytes=per_sequence(float(outputs * width.element_bytes)),
        comm_bytes=per_sequence(outputs * width.element_bytes / 2),
        cut_after=True,
    )


def norm(width: Width, name: str, *, bias: bool, cut_after: bool = False) -> Operator:
    """Normalise (layer or RMS) the residual stream."""
    return Operator(
        name=name,
        kind=OperatorKind.NORM,
        phases=width.phases,
        flops=width.rows(float(NORM_FLOPS * width.hidden)),
        activation_bytes=width.rows(2.0 * width.hidden * width.element_bytes),
        weight_bytes=width.hidden * (1 + bias) * width.element_bytes,
        output_bytes=width.stream(),
        cut_after=cut_after,
    )


def residual(width: Width, name: str, *, cut_after: bool = False) -> Operator:
    """Add a layer's output to the residual stream."""
    return Operator(
        name=name,
        kind=OperatorKind.ELEMENTWISE,
        phases=width.phases,
        flops=width.rows(float(width.hidden)),
        activation_bytes=width.rows(3.0 * width.hidden * width.element_bytes),
        output_bytes=width.stream(),
        cut_after=cut_after,
    )


def activation(width: Width, name: str, elements: int, *, inputs: int = 1, max_shards: int) -> Operator:
    """Apply an activation function; with ``inputs`` = 2 it gates one input by the other."""
    return Operator(
        name=name,
        kind=OperatorKind.ACTIVATION,
        phases=width.phases,
        flops=width.rows(float(ACTIVATION_FLOPS * elements)),
        activation_bytes=width.rows(float((inputs + 1) * elements * width.element_bytes)),
        output_bytes=width.rows(float(elements * width.element_bytes)),
        max_shards=max_shards,
    )


def rotary(width: Width, name: str, elements: int, *, max_shards: int) -> Operator:
    """Rotate queries and keys, ``elements`` in all per token."""
    return Operator(
        name=name,
        kind=OperatorKind.ELEMENTWISE,
        phases=width.phases,
        flops=width.rows(6.0 * elements),
        activation_bytes=width.rows(2.0 * elements * width.element_bytes),
        output_bytes=width.rows(float(elements * width.element_bytes)),
        max_shards=max_shards,
    )


def lookup(
    width: Width,
    name: str,
    rows: int,
    *,
    tied: bool = False,
    columns: int | None = None,
    cut_after: bool = False,
) -> Operator:
    """Gather one of ``rows`` vectors for each token."""
    length = columns or width.hidden
    return Operator(
        name=name,
        kind=OperatorKind.EMBEDDING,
        phases=width.phases,
        activation_bytes=width.rows(2.0 * length * width.element_bytes),
        weight_bytes=rows * length * width.element_bytes,
        output_bytes=width.stream(),
        tied=tied,
        cut_after=cut_after,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Shape of an attention: ``kv`` ≤ ``query`` heads of ``size`` elements each."""

    query: int
    kv: int
    size: int

    @property
    def query_elements(self) -> int:
        """Elements of a token's query, and of its attention output."""
        return self.query * self.size

    @property
    def kv_elements(self) -> int:
        """Elements of a token's key, and of its value."""
        return self.kv * self.size


def attention_core(
    width: Width, heads: Heads, *, kv_bytes_per_token: int = 0, causal: bool = False
) -> list[Operator]:
    """Attend, between the projections: one fused operator, or scores, softmax and values.

    The fused kernel keeps scores on chip and skips the masked half of a causal prefill (Dao, 2023,
    section 3.1); the unfused one writes all of them.
    """
    if not causal:
        return [
            _fused(width, heads, width.phases, kv_bytes_per_token, share=1.0),
            *_unfused(width, heads, kv_bytes_per_token),
        ]
    several = tuple(phase for phase in width.phases if phase is not Phase.DECODE)
    single = tuple(phase for phase in width.phases if phase is Phase.DECODE)
    operators = [_fused(width, heads, several, kv_bytes_per_token, share=0.5)] if several else []
    if single:
        decode = _fused(width, heads, single, 0 if several else kv_bytes_per_token, share=1.0)
        operators.append(decode.model_copy(update={"name": f"{decode.name}_decode"}) if several else decode)
    return [*operators, *_unfused(width, heads, kv_bytes_per_token)]


def _attention_bytes(width: Width, heads: Heads, operands: int) -> Polynomial:
    """Count the bytes of ``operands`` query-like tensors and as many key-like ones."""
    return width.rows(float(operands * heads.query_elements * width.element_bytes)) + per_context(
        float(operands * heads.kv_elements * width.element_bytes)
    )


def _scores(width: Width, coefficient: float) -> Polynomial:
    return per_context(coefficient) if width.one_row else per_score(coefficient)


def _fused(
    width: Width, heads: Heads, phases: tuple[Phase, ...], kv_bytes_per_token: int, *, share: float
) -> Operator:
    return Operator(
        name="fused",
        kind=OperatorKind.ATTENTION,
        phases=phases,
        flops=_scores(width, 4.0 * heads.query_elements * share),
        activation_bytes=_attention_bytes(width, heads, 2),
        output_bytes=width.rows(float(heads.query_elements * width.element_bytes)),
        kv_bytes_per_token=kv_bytes_per_token,
        max_shards=heads.query,
        attention="fused",
    )


def _unfused(width: Width, heads: Heads, kv_bytes_per_token: int) -> list[Operator]:
    kernel: AttentionKernel = "unfused"
    score_bytes = float(heads.query * width.element_bytes)
    return [
        Operator(
            name="scores",
            kind=OperatorKind.ATTENTION_SCORES,
            phases=width.phases,
            flops=_scores(width, 2.0 * heads.query_elements),
            activation_bytes=_attention_bytes(width, heads, 1) + _scores(width, score_bytes),
            output_bytes=_scores(width, score_bytes),
            kv_bytes_per_token=kv_bytes_per_token,
            max_shards=heads.query,
            attention=kernel,
        ),
        Operator(
            name="softmax",
            kind=OperatorKind.SOFTMAX,
            phases=width.phases,
            flops=_scores(width, float(SOFTMAX_FLOPS * heads.query)),
            activation_bytes=_scores(width, SOFTMAX_PASSES * score_bytes),
            output_bytes=_scores(width, score_bytes),
            max_shards=heads.query,
            attention=kernel,
        ),
        Operator(
            name="values",
            kind=OperatorKind.ATTENTION_VALUES,
            phases=width.phases,
            flops=_scores(width, 2.0 * heads.query_elements),
            activation_bytes=_attention_bytes(width, heads, 1) + _scores(width, score_bytes),
            output_bytes=width.rows(float(heads.query_elements * width.element_bytes)),
            max_shards=heads.query,
            attention=kernel,
        ),
    ]


def prefixed(prefix: str, operators: Iterable[Operator]) -> tuple[Operator, ...]:
    """Put ``prefix.`` before the operators' names."""
    return tuple(operator.model_copy(update={"name": f"{prefix}.{operator.name}"}) for operator in operators)
