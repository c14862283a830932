"""Operator clustering: the dynamic programme against every partition, and the clusters of real models.

If these fail, operators of unlike sensitivity share a clock, or pipelines cannot be balanced.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from muplan.errors import InputError
from muplan.hardware.catalog import load_device
from muplan.model.catalog import load_model
from muplan.model.graph import Block, Operator, OperatorKind, Phase
from muplan.profiling.analytical import make_profile
from muplan.profiling.clustering import (
    Costs,
    Segment,
    cluster_cost,
    cluster_segments,
    is_allowed,
    may_join,
    segments_of,
)

OPERATOR = Operator(name="x", kind=OperatorKind.MATMUL, phases=(Phase.FORWARD,), cut_after=True)


def make_segments(blocks: list[tuple[int, int]]) -> tuple[Segment, ...]:
    """Blocks of (instances, parts)."""
    return tuple(
        Segment(block=block, instance=instance, part=part, num_parts=parts, operators=(OPERATOR,))
        for block, (instances, parts) in enumerate(blocks)
        for instance in range(instances)
        for part in range(parts)
    )


def partitions(count: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Every partition of ``count`` things in a row into runs."""
    for mask in range(2 ** (count - 1)):
        ends = [index + 1 for index in range(count - 1) if mask >> index & 1] + [count]
        yield tuple(zip([0, *ends[:-1]], ends, strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_dynamic_programme_equals_every_partition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    segments = make_segments([(int(rng.integers(1, 4)), int(rng.integers(1, 4))) for _ in range(3)])[:11]
    shares = rng.dirichlet(np.ones(len(segments)), size=2).T
    costs = Costs(shares=shares, sensitivities=rng.uniform(size=shares.shape))
    tolerance, max_share = float(rng.choice([0.001, 0.05, 0.5])), float(rng.choice([0.1, 0.4, 1.0]))

    def total(partition: tuple[tuple[int, int], ...]) -> float:
        return sum(cluster_cost(costs, start, stop, tolerance) for start, stop in partition)

    allowed = [
        partition
        for partition in partitions(len(segments))
        if all(is_allowed(segments, costs, start, stop, max_share) for start, stop in partition)
    ]
    found = cluster_segments(segments, costs, tolerance=tolerance, max_share=max_share)
    assert found in allowed
    assert total(found) == pytest.approx(min(map(total, allowed)), rel=1e-9)


def test_clusters_are_parts_of_an_instance_or_whole_instances() -> None:
    segments = make_segments([(3, 2), (1, 1)])
    assert may_join(segments, 0, 2), "a whole layer"
    assert may_join(segments, 0, 4), "two whole layers"
    assert not may_join(segments, 1, 3), "the end of one layer and the start of the next"
    assert not may_join(segments, 4, 7), "a layer and the head"


def test_unlike_halves_part_and_like_halves_join() -> None:
    """Two equal halves of a layer part when they differ by more than sqrt(2 · tolerance) = 0.14."""
    segments = make_segments([(10, 2)])
    shares = np.full((20, 1), 1 / 20)

    def number(difference: float) -> int:
        values = np.tile([[0.5], [0.5 + difference]], (10, 1))
        return len(cluster_segments(segments, Costs(shares=shares, sensitivities=values), max_share=0.1))

    assert number(0.15) == 20
    assert number(0.13) == 10


def test_large_clusters_are_not_built() -> None:
    segments = make_segments([(12, 2)])
    costs = Costs(shares=np.full((24, 1), 1 / 24), sensitivities=np.full((24, 1), 0.5))
    for max_share, expected in ((1.0, 1), (0.5, 2), (0.25, 4), (0.1, 12), (0.01, 24)):
        assert len(cluster_segments(segments, costs, max_share=max_share)) == expected


def test_a_block_that_cannot_be_cut_at_its_end_is_refused() -> None:
    graph = load_model("bert-base")
    open_end = OPERATOR.model_copy(update={"cut_after": False})
    broken = graph.model_copy(
        update={"blocks": (Block(name="open", operators=(OPERATOR, open_end)), *graph.blocks)}
    )
    with pytest.raises(InputError, match="Block 'open' of the graph ends where more than one"):
        segments_of(broken)


def test_clusters_of_bert_are_attention_and_feed_forward() -> None:
    """μ-Serve's premise, on V100: unfused attention waits for memory, feed-forward computes."""
    profile = make_profile(load_model("bert-1.3b"), load_device("v100-sxm2-32gb"))
    names = [kind.name for kind in profile.cluster_types]
    assert names[:3] == ["embedding", "layer.attention", "layer.feed_forward"]
    assert [cluster.name for cluster in profile.clusters[1:4]] == [
        "layer.0.attention",
        "layer.0.feed_forward",
        "layer.1.attention",
    ]
    scores = profile.sensitivity_score(Phase.FORWARD, batch=1, tokens=2048)
    assert scores[1] < scores[2] - 0.14


@pytest.mark.parametrize("model", ["llama-2-70b", "opt-13b", "t5-large", "vit-large"])
def test_clusters_cover_the_graph_in_order(model: str) -> None:
    graph = load_model(model)
    profile = make_profile(graph, load_device("a100-sxm4-80gb"), batches=[1])
    names = [name for index in profile.cluster_type_index for name in profile.cluster_types[index].operators]
    blocks = {block.name: block for block in graph.used_blocks()}
    assert set(names) == {f"{block.name}.{o.name}" for block in blocks.values() for o in block.operators}
    assert len({cluster.name for cluster in profile.clusters}) == len(profile.clusters)
    assert [name.split(".")[0] for name in names] == sorted(
        (name.split(".")[0] for name in names), key=list(blocks).index
    )
