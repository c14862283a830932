"""The shipped graphs made again by capturing the modules of transformers, at two layers each.

If these fail, the graphs that are written from configurations and the models that they stand for have drifted
apart: a plan would count other operations, weights or memory than the model has.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from muplan.model.architectures.build import BUILT_TYPES, build_graph
from muplan.model.architectures.config import BuildOptions
from muplan.model.graph import ModelGraph, OperatorKind, Phase
from muplan.profiling.clustering import segments_of

pytest.importorskip("torch", reason="models are captured with torch")
pytest.importorskip("transformers", reason="models are made by transformers")

from muplan.capture.source import capture

CONFIGS = Path(__file__).parent.parent / "muplan" / "model" / "configs"
ENCODERS = {"t5-large": "T5EncoderModel", "whisper-small": "WhisperEncoder"}
"""Of encoders with decoders the encoder alone is captured."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers")
MATRICES = {OperatorKind.MATMUL, OperatorKind.CONVOLUTION}
ATTENTION = {OperatorKind.ATTENTION}
PASSES = {Phase.FORWARD: ((1, 16), (4, 128)), Phase.PREFILL: ((1, 16), (4, 128)), Phase.DECODE: ((2, 500),)}
"""Batch, and tokens or, of a decode, context."""
TRAFFIC = {"resnet-50": 1.2}
"""How far traffic may be off, 0.15 where nothing is said: eager code runs elementwise calls by themselves
that serving software fuses, of a residual network after each of its convolutions."""


def graphs(name: str) -> tuple[ModelGraph, ModelGraph]:
    """The shipped graph of a model and the captured one, two layers each."""
    content = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    config = {**content["config"], **{key: 2 for key in LAYERS if key in content["config"]}}
    # Alpa multiplies one-hot vectors by the table of embeddings, which modules look up.
    built = build_graph(config, BuildOptions(name=name, source="this test", attention="fused"))
    if name in ENCODERS:
        config["architectures"] = [ENCODERS[name]]
        blocks = [block for block in built.blocks if not block.name.startswith(("decoder", "head"))]
        built = built.model_copy(update={"blocks": tuple(blocks)})
    return built, capture(config, name=name, attention="fused").graph


def counts(graph: ModelGraph, phase: Phase, batch: int, tokens: int) -> list[float]:
    """Operations of matrices and of attention, and bytes moved."""
    new = 1 if phase is Phase.DECODE else tokens
    running = [one for one in graph.operators() if phase in one.phases]
    flops = [
        sum(float(one.flops(batch, new, tokens)) for one in running if one.kind in kinds)
        for kinds in (MATRICES, ATTENTION)
    ]
    return [*flops, sum(float(one.activation_bytes(batch, new, tokens)) for one in running)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.json")))
def test_a_shipped_graph_counts_what_its_model_does(name: str) -> None:
    built, made = graphs(name)
    assert made.num_parameters == built.num_parameters
    assert (made.num_heads, made.num_kv_heads) == (built.num_heads, built.num_kv_heads)
    if name not in ENCODERS:
        assert made.kv_bytes_per_token == built.kv_bytes_per_token
    assert len(segments_of(made)) >= len(segments_of(built)) - (name in ENCODERS)
    for phase in made.phases:
        of_built = Phase.PREFILL if name in ENCODERS else phase
        for batch, tokens in PASSES[phase]:
            length = built.fixed_tokens or tokens
            wanted = counts(built, of_built, batch, length)
            found = counts(made, phase, batch, made.fixed_tokens or tokens)
            assert found[:2] == pytest.approx(wanted[:2], rel=1e-9)
            assert found[2] == pytest.approx(wanted[2], rel=TRAFFIC.get(name, 0.15))


def test_every_family_is_captured() -> None:
    """No shipped family is left out of the comparison."""
    assert {
        json.loads(path.read_text())["config"]["model_type"] for path in CONFIGS.glob("*.json")
    } == BUILT_TYPES
