"""From a configuration to a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from muplan.errors import InputError
from muplan.model.architectures.config import BuildOptions, Keys
from muplan.model.architectures.decoder import gpt2, llama, opt
from muplan.model.architectures.encoder import bert, vit
from muplan.model.architectures.encoder_decoder import t5, whisper
from muplan.model.architectures.resnet import resnet
from muplan.model.graph import ModelGraph

_BUILDERS: Mapping[str, Callable[[Keys, BuildOptions], ModelGraph]] = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "opt": opt,
    "resnet": resnet,
    "t5": t5,
    "vit": vit,
    "whisper": whisper,
}
BUILT_TYPES = frozenset(_BUILDERS)
"""The ``model_type`` of configurations that graphs are built of."""


def build_graph(configuration: Mapping[str, Any] | object, options: BuildOptions) -> ModelGraph:
    """Build the operator graph of a model.

    Parameters
    ----------
    configuration
        The mapping of a ``config.json``, or an instance of a `transformers` configuration class.
    options
        What the configuration does not say.

    Raises
    ------
    InputError
        The model type is not supported, or a key is missing or impossible.
    """
    content = configuration if isinstance(configuration, Mapping) else _content_of(configuration)
    model_type = content.get("model_type")
    if model_type not in _BUILDERS:
        raise InputError(
            f"{options.name}: models of type {model_type!r} are not supported.",
            f"Supported model types: {', '.join(_BUILDERS)}. Capture others with torch (muplan model"
            " capture), and name the file that it writes.",
        )
    return _BUILDERS[str(model_type)](Keys(content, options.name), options)


def _content_of(configuration: object) -> Mapping[str, Any]:
    to_dict = getattr(configuration, "to_dict", None)
    if to_dict is None:
        raise InputError(
            f"A {type(configuration).__name__} is no model configuration.",
            "Pass a transformers configuration, or the mapping of its config.json.",
        )
    content = to_dict()
    if not isinstance(content, Mapping):
        raise InputError(
            f"The to_dict() of a {type(configuration).__name__} gives no mapping.",
            "Pass a transformers configuration, or the mapping of its config.json.",
        )
    return content
