"""Graphs of models so small that a processor runs them in no time."""

from __future__ import annotations

from typing import Any

from muplan.model.architectures.build import build_graph
from muplan.model.architectures.config import BuildOptions
from muplan.model.graph import ModelGraph

_SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}


def _built(name: str, config: dict[str, Any]) -> ModelGraph:
    return build_graph(config, BuildOptions(name=name, source="made for the tests", dtype="float32"))


def tiny_encoder() -> ModelGraph:
    """Return a BERT of three layers."""
    rest = {
        "vocab_size": 100,
        "max_position_embeddings": 64,
        "architectures": ["BertForSequenceClassification"],
    }
    return _built("tiny-encoder", {"model_type": "bert", **_SIZES, **rest})


def tiny_decoder() -> ModelGraph:
    """Return a LLaMA of three layers, with fewer KV heads than heads."""
    rest = {"num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 64}
    return _built("tiny-decoder", {"model_type": "llama", **_SIZES, **rest})
