"""A model as a graph of operators whose work is polynomial in batch, tokens and context.

Variables of every polynomial:

``batch``
    sequences (or images) in the pass;
``tokens``
    new tokens of each sequence in the pass: all of them in a forward or prefill pass, 1 in decode;
``context``
    tokens that attention looks at: equal to ``tokens`` in a forward or prefill pass, the tokens so
    far in decode.

A graph is a list of blocks in the order of execution; a block that repeats (a transformer layer) is
written once. Operators of tensor-parallel execution (`OperatorKind.ALL_REDUCE`) are always in the
graph and cost nothing on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, JsonValue, model_validator

from muplan.serde import Document, Part

AttentionKernel = Literal["fused", "unfused"]
TENSOR_PARALLEL_DEGREES = (1, 2, 4, 8)


class Phase(StrEnum):
    """A kind of pass: ``forward`` of a one-pass model, ``prefill`` and ``decode`` of a generator."""

    FORWARD = "forward"
    PREFILL = "prefill"
    DECODE = "decode"


class OperatorKind(StrEnum):
    """What an operator computes; it decides which of a device's rates applies."""

    MATMUL = "matmul"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    ATTENTION_SCORES = "attention_scores"
    ATTENTION_VALUES = "attention_values"
    SOFTMAX = "softmax"
    NORM = "norm"
    ACTIVATION = "activation"
    ELEMENTWISE = "elementwise"
    EMBEDDING = "embedding"
    POOLING = "pooling"
    ALL_REDUCE = "all_reduce"


TENSOR_CORE_KINDS = frozenset(
    {
        OperatorKind.MATMUL,
        OperatorKind.CONVOLUTION,
        OperatorKind.ATTENTION,
        OperatorKind.ATTENTION_SCORES,
        OperatorKind.ATTENTION_VALUES,
    }
)


class Monomial(Part):
    """``coefficient · batch^a · tokens^b · context^c``."""

    coefficient: float = Field(ge=0)
    batch: int = Field(default=0, ge=0, le=3)
    tokens: int = Field(default=0, ge=0, le=3)
    context: int = Field(default=0, ge=0, le=3)


class Polynomial(Part):
    """A sum of monomials; the empty sum is zero."""

    terms: tuple[Monomial, ...] = ()

    def __call__(self, batch: ArrayLike, tokens: ArrayLike, context: ArrayLike) -> NDArray[np.float64]:
        """Evaluate, broadcasting the three arguments against each other."""
        b, t, c = np.broadcast_arrays(
            np.asarray(batch, dtype=float), np.asarray(tokens, dtype=float), np.asarray(context, dtype=float)
        )
        total = np.zeros(b.shape)
        for term in self.terms:
            total += term.coefficient * b**term.batch * t**term.tokens * c**term.context
        return total

    def __add__(self, other: Polynomial) -> Polynomial:
        """Return the sum, like terms collected in the order in which they first occur."""
        exponents: dict[tuple[int, int, int], float] = {}
        for term in (*self.terms, *other.terms):
            key = (term.batch, term.tokens, term.context)
            exponents[key] = exponents.get(key, 0.0) + term.coefficient
        return Polynomial(
            terms=tuple(
                Monomial(coefficient=value, batch=b, tokens=t, context=c)
                for (b, t, c), value in exponents.items()
            )
        )


ZERO = Polynomial()


class Operator(Part):
    """One node of a model's graph.

    Attributes
    ----------
    flops
        Floating-point operations; a multiply-add counts two.
    activation_bytes
        Bytes moved to and from memory in one pass besides the weights; those of the KV cache count.
    weight_bytes
        Bytes of stored weights. They are read once in a pass, except by an embedding, which reads
        the rows it looks up (counted in ``activation_bytes``).
    output_bytes
        Bytes of the activation that is live after the operator.
    kv_bytes_per_token
        Bytes that each token of a sequence leaves in the KV cache.
    comm_bytes
        Message of an all-reduce.
    max_shards
        The greatest tensor-parallel degree that still divides the work; 1 = every GPU does all.
    tied
        The weights are another operator's: held again wherever this operator is placed, counted
        once among the parameters.
    cut_after
        Only ``output_bytes`` is live after the operator: a pipeline may be cut here.
    attention
        Set on operators that exist only with that attention kernel.
    """

    name: str = Field(min_length=1)
    kind: OperatorKind
    phases: tuple[Phase, ...] = Field(min_length=1)
    flops: Polynomial = ZERO
    activation_bytes: Polynomial = ZERO
    weight_bytes: int = Field(default=0, ge=0)
    output_bytes: Polynomial = ZERO
    kv_bytes_per_token: int = Field(default=0, ge=0)
    comm_bytes: Polynomial = ZERO
    max_shards: int = Field(default=1, ge=1)
    tied: bool = False
    cut_after: bool = False
    attention: AttentionKernel | None = None

    def shards(self, tensor_parallel: int) -> int:
        """Return how many ways the operator's work and weights are divided at a tensor-parallel degree."""
        return math.gcd(tensor_parallel, self.max_shards)


class Block(Part):
    """Operators in order of execution, repeated ``repeat`` times one after the other."""

    name: str = Field(min_length=1)
    repeat: int = Field(default=1, ge=1)
    operators: tuple[Operator, ...] = Field(min_length=1)


class Origin(Part):
    """What the module of a captured graph is made from, so that it can be made again and run.

    Attributes
    ----------
    configuration
        Content of a ``config.json`` of transformers; absent for a module of the user's own.
    factory
        The function that makes the module, ``module:function``; absent for a model of transformers.
    weights
        Folder of the model's weights; random ones where absent.
    dtype
        Type of weights and activations, as torch names it.
    """

    configuration: dict[str, JsonValue] | None = None
    factory: str | None = None
    weights: str | None = None
    dtype: str = Field(min_length=1)


class ModelGraph(Document):
    """A model's operators, with what a planner needs to know of the model as a whole.

    Attributes
    ----------
    request_kind
        ``forward``: one pass answers a request. ``generate``: a prefill pass, then one decode pass
        a token.
    attention
        Which attention kernel the graph stands for; `with_attention` gives the other.
    fixed_tokens
        The only token count of a forward or prefill pass (images, audio windows); absent where the
        count varies.
    max_context
        The most tokens that a sequence may hold.
    source
        The configuration that the graph was made from.
    captured_from
        The class of the module that the operators were traced in; absent where they were built from a
        configuration.
    origin
        What that module is made from.
    """

    KIND: ClassVar[str] = "model"

    kind: Literal["model"] = "model"
    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    family: str = Field(min_length=1)
    source: str = Field(min_length=1)
    captured_from: str | None = None
    origin: Origin | None = None
    request_kind: Literal["forward", "generate"]
    element_bytes: int = Field(ge=1, le=8)
    attention: AttentionKernel
    hidden_size: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    max_context: int = Field(ge=1)
    fixed_tokens: int | None = Field(default=None, ge=1)
    vocabulary_size: int = Field(ge=0)
    blocks: tuple[Block, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> ModelGraph:
        names = [block.name for block in self.blocks]
        if len(set(names)) < len(names):
            raise ValueError(f"two blocks share a name: {names}")
        for block in self.blocks:
            operators = [operator.name for operator in block.operators]
            if len(set(operators)) < len(operators):
                raise ValueError(f"block {block.name!r} names an operator twice")
        last = [operator for operator in self.blocks[-1].operators if self._is_used(operator)][-1]
        if not last.cut_after:
            raise ValueError("the last operator must be marked cut_after")
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The passes that the model runs."""
        return (Phase.FORWARD,) if self.request_kind == "forward" else (Phase.PREFILL, Phase.DECODE)

    def _is_used(self, operator: Operator) -> bool:
        return operator.attention in (None, self.attention)

    def used_blocks(self) -> tuple[Block, ...]:
        """Return the blocks with the operators of the graph's attention kernel only."""
        return tuple(
            block.model_copy(update={"operators": tuple(filter(self._is_used, block.operators))})
            for block in self.blocks
        )

    def operators(self) -> tuple[Operator, ...]:
        """Return every operator in order of execution, named in full (``layer.3.attention.query``)."""
        return tuple(self._expand())

    def _expand(self) -> Iterator[Operator]:
        for block in self.used_blocks():
            for index in range(block.repeat):
                prefix = f"{block.name}.{index}" if block.repeat > 1 else block.name
                for operator in block.operators:
                    yield operator.model_copy(update={"name": f"{prefix}.{operator.name}"})

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, tied weights counted once."""
        return self._sum_weights(tied=False) // self.element_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights on one GPU that holds the whole model, each copy of a tied weight counted."""
        return self._sum_weights(tied=False) + self._sum_weights(tied=True)

    def _sum_weights(self, *, tied: bool) -> int:
        return sum(
            block.repeat * operator.weight_bytes
            for block in self.used_blocks()
            for operator in block.operators
            if operator.tied == tied
        )

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that a token leaves in the KV cache of the whole model."""
        return sum(
            block.repeat * operator.kv_bytes_per_token
            for block in self.used_blocks()
            for operator in block.operators
        )

    def flops(self, phase: Phase, batch: float, tokens: float, context: float) -> float:
        """Return the floating-point operations of one pass."""
        return sum(
            block.repeat * float(operator.flops(batch, tokens, context))
            for block in self.used_blocks()
            for operator in block.operators
            if phase in operator.phases
        )

    def tensor_parallel_degrees(self) -> tuple[int, ...]:
        """Return the degrees that divide the attention heads (KV heads divide the degree or the reverse)."""
        return tuple(
            degree
            for degree in TENSOR_PARALLEL_DEGREES
            if self.num_heads % degree == 0
            and (self.num_kv_heads % degree == 0 or degree % self.num_kv_heads == 0)
        )


def with_attention(graph: ModelGraph, attention: AttentionKernel) -> ModelGraph:
    """Return the same model run with the other attention kernel."""
    return graph.model_copy(update={"attention": attention})
