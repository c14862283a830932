"""Model graphs: their polynomials, their FLOPs and weights against closed forms, their rules.

If these fail, every profile is wrong in proportion: time, energy and memory all start from the graph.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from muplan.model.catalog import load_model
from muplan.model.graph import (
    Block,
    ModelGraph,
    Monomial,
    Operator,
    OperatorKind,
    Phase,
    Polynomial,
    with_attention,
)

MONOMIALS = st.builds(
    Monomial,
    coefficient=st.floats(0, 1e6),
    batch=st.integers(0, 3),
    tokens=st.integers(0, 3),
    context=st.integers(0, 3),
)
POLYNOMIALS = st.builds(Polynomial, terms=st.lists(MONOMIALS, max_size=4).map(tuple))
SIZES = st.integers(1, 100)


@given(POLYNOMIALS, POLYNOMIALS, SIZES, SIZES, SIZES)
def test_polynomials_add(left: Polynomial, right: Polynomial, batch: int, tokens: int, context: int) -> None:
    total = (left + right)(batch, tokens, context)
    assert total == pytest.approx(left(batch, tokens, context) + right(batch, tokens, context), rel=1e-12)


@given(POLYNOMIALS, SIZES, SIZES)
def test_polynomials_broadcast(polynomial: Polynomial, batch: int, tokens: int) -> None:
    """An array of batches against an array of tokens gives what each pair gives alone."""
    batches, counts = np.array([[1], [batch]]), np.array([[1, 7, tokens]])
    table = polynomial(batches, counts, counts)
    assert table.shape == (2, 3)
    for row, column in itertools.product(range(2), range(3)):
        at = counts[0, column]
        assert table[row, column] == polynomial(batches[row, 0], at, at)


def test_flops_of_llama_match_the_closed_form() -> None:
    """2 FLOPs per weight and token, 4·hidden per score (half of them masked in prefill)."""
    graph = load_model("llama-2-7b")
    hidden, layers, inner, vocabulary = 4096, 32, 11008, 32000
    batch, tokens = 3, 700
    matmuls = layers * (4 * hidden**2 + 3 * hidden * inner)
    scores = layers * 4 * hidden
    prefill = batch * (2 * matmuls * tokens + scores * tokens**2 / 2 + 2 * hidden * vocabulary)
    assert graph.flops(Phase.PREFILL, batch, tokens, tokens) == pytest.approx(prefill, rel=0.005)
    decode = batch * (2 * matmuls + scores * tokens + 2 * hidden * vocabulary)
    assert graph.flops(Phase.DECODE, batch, 1, tokens) == pytest.approx(decode, rel=0.005)


def test_flops_of_bert_match_the_closed_form() -> None:
    """The one-hot look-up costs as much as the vocabulary head; no score is masked."""
    graph = load_model("bert-1.3b")
    hidden, layers, vocabulary, tokens = 2048, 24, 51200, 2048
    matmuls = layers * 12 * hidden**2 + 2 * hidden * vocabulary + hidden**2
    expected = 2 * matmuls * tokens + layers * 4 * hidden * tokens**2
    assert graph.flops(Phase.FORWARD, 1, tokens, tokens) == pytest.approx(expected, rel=0.02)


def test_flops_of_resnet_match_the_published_count() -> None:
    """4.09 G multiply-adds at 224 × 224 (torchvision's figure for ResNet-50 V1.5)."""
    assert load_model("resnet-50").flops(Phase.FORWARD, 1, 1, 1) / 2 == pytest.approx(4.09e9, rel=0.01)


def test_flops_of_vit_match_the_closed_form() -> None:
    hidden, layers, tokens = 1024, 24, 197
    expected = 2 * layers * 12 * hidden**2 * tokens + layers * 4 * hidden * tokens**2
    assert load_model("vit-large").flops(Phase.FORWARD, 1, tokens, tokens) == pytest.approx(
        expected, rel=0.02
    )


def test_kv_cache_bytes() -> None:
    """2 (key, value) × layers × KV heads × head elements × 2 bytes."""
    assert load_model("llama-2-7b").kv_bytes_per_token == 2 * 32 * 32 * 128 * 2
    assert load_model("llama-2-70b").kv_bytes_per_token == 2 * 80 * 8 * 128 * 2
    assert load_model("bert-base").kv_bytes_per_token == 0


def test_attention_kernels_differ_only_in_attention() -> None:
    unfused = load_model("bert-large")
    fused = with_attention(unfused, "fused")
    names = {operator.name for operator in unfused.operators()} ^ {o.name for o in fused.operators()}
    assert {name.split(".", 2)[2] for name in names} == {
        "attention.fused",
        "attention.scores",
        "attention.softmax",
        "attention.values",
    }
    assert fused.num_parameters == unfused.num_parameters
    moved = [
        sum(float(operator.activation_bytes(1, 512, 512)) for operator in graph.operators())
        for graph in (fused, unfused)
    ]
    scores_bytes = 24 * 16 * 512**2 * 2
    assert moved[1] - moved[0] == pytest.approx(9 * scores_bytes, rel=0.01)


@pytest.mark.parametrize("model", ["opt-6.7b", "llama-2-70b"])
def test_a_prefill_of_one_token_is_nearly_a_decode(model: str) -> None:
    graph = load_model(model)
    assert graph.flops(Phase.PREFILL, 4, 1, 1) == pytest.approx(graph.flops(Phase.DECODE, 4, 1, 1), rel=1e-3)


def test_operators_are_named_by_their_place() -> None:
    names = [operator.name for operator in load_model("bert-base").operators()]
    assert "layer.3.attention.query" in names
    assert len(set(names)) == len(names)


def test_shards_divide_heads() -> None:
    operator = Operator(name="a", kind=OperatorKind.MATMUL, phases=(Phase.FORWARD,), max_shards=12)
    assert [operator.shards(degree) for degree in (1, 2, 4, 8)] == [1, 2, 4, 4]
    assert load_model("bert-base").tensor_parallel_degrees() == (1, 2, 4)
    assert load_model("gpt2-xl").tensor_parallel_degrees() == (1,)
    assert load_model("llama-30b").tensor_parallel_degrees() == (1, 2, 4)


def _operator(name: str, *, cut_after: bool = True) -> Operator:
    return Operator(name=name, kind=OperatorKind.MATMUL, phases=(Phase.FORWARD,), cut_after=cut_after)


def _graph(*blocks: Block) -> ModelGraph:
    return ModelGraph(
        name="m",
        family="test",
        source="this test",
        request_kind="forward",
        element_bytes=2,
        attention="fused",
        hidden_size=1,
        num_heads=1,
        num_kv_heads=1,
        max_context=1,
        vocabulary_size=0,
        blocks=blocks,
    )


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((Block(name="a", operators=(_operator("x"),)),) * 2, "two blocks share a name"),
        ((Block(name="a", operators=(_operator("x"),) * 2),), "names an operator twice"),
        ((Block(name="a", operators=(_operator("x", cut_after=False),)),), "must be marked cut_after"),
    ],
)
def test_impossible_graphs_are_refused(blocks: tuple[Block, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _graph(*blocks)
