"""Configurations of transformers' architectures in which every size is small."""

from __future__ import annotations

from typing import Any

_TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_IMAGE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}

FORWARD: dict[str, dict[str, Any]] = {
    "bert": {**_TEXT, "architectures": ["BertForSequenceClassification"]},
    "roberta": {**_TEXT, "architectures": ["RobertaForMaskedLM"]},
    "distilbert": {"vocab_size": 61, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "albert": {**_TEXT, "embedding_size": 16},
    "deberta-v2": {
        **_TEXT,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 8,
    },
    "t5": {
        "vocab_size": 61,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "architectures": ["T5EncoderModel"],
    },
    "vit": {**_IMAGE, "architectures": ["ViTForImageClassification"]},
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "image_size": 32},
    "resnet": {
        "hidden_sizes": [16, 32],
        "depths": [2, 2],
        "embedding_size": 8,
        "image_size": 32,
        "architectures": ["ResNetForImageClassification"],
    },
    "whisper": {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 8,
        "max_source_positions": 16,
        "architectures": ["WhisperEncoder"],
    },
    "clip_vision_model": _IMAGE,
}
"""Models that answer in one pass, by type."""

GENERATE: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": _GROUPED,
    "gemma": _GROUPED,
    "gpt_neox": _TEXT,
    "phi": _TEXT,
    "falcon": {**_TEXT, "multi_query": True, "alibi": False},
    "bloom": {"vocab_size": 61, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}
"""Models that answer token by token, by type."""
