"""Models of the `transformers` library, from their configurations."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muplan.capture.sizes import Sizes
from muplan.capture.subject import CACHE, Pass, Subject, first_tensor
from muplan.errors import InputError
from muplan.model.graph import Origin

if TYPE_CHECKING:
    from torch import Tensor, nn

_POSITIONS = ("max_position_embeddings", "n_positions", "max_source_positions", "seq_length")
_UNLIMITED = 4096
"""Context of models whose configuration states none (relative positions)."""


def transformers_subject(
    content: Mapping[str, Any],
    *,
    name: str,
    label: str | None = None,
    dtype: str | None = None,
    weights: Path | None = None,
    is_real: bool = False,
) -> Subject:
    """Make a model's subject from the content of its ``config.json``.

    Parameters
    ----------
    label
        What errors call it; its name where absent.
    dtype
        Type of weights and activations; the configuration's where absent, else float16.
    weights
        Folder of the model's weights; random ones where absent.
    is_real
        Whether the module is made with them, or with such as have no data.

    Raises
    ------
    InputError
        transformers does not know the model, or its inputs are none that muplan can make.
    """
    label = label or name
    config = _config(content, label)
    model_class = _model_class(config, label)
    chosen = str(dtype or content.get("dtype") or content.get("torch_dtype") or "float16")
    element = _element_type(chosen, label)
    generates = _generates(model_class, config)
    main = "input_ids" if generates else str(model_class.main_input_name)
    lengths = "cached" if generates else ("whole" if main == "input_ids" else "fixed")
    text = config.get_text_config()

    def make() -> nn.Module:
        if weights is None or not is_real:
            return model_class._from_config(config, dtype=element).eval()
        return model_class.from_pretrained(weights, config=config, dtype=element).eval()

    return Subject(
        name=name,
        family=str(config.model_type),
        source=f"captured from {model_class.__name__} of transformers",
        origin=Origin(
            configuration=json.loads(json.dumps(dict(content), default=str)),
            weights=None if weights is None else str(weights.resolve()),
            dtype=str(element).removeprefix("torch."),
        ),
        class_name=model_class.__name__,
        element_bytes=element.itemsize,
        lengths=lengths,  # type: ignore[arg-type]
        make=make,
        enter=_CachedPass(element)
        if generates
        else _ForwardPass(main, _main_shape(config, main, model_class), element),
        answer=first_tensor,
        max_context=1 if lengths == "fixed" else _max_context(text),
        vocabulary_size=int(getattr(text, "vocab_size", 0) or 0) if main == "input_ids" else 0,
        hidden_size=_hidden_size(text),
        num_heads=_num_heads(text),
        side=frozenset({"attention_mask", "position_ids"}),
    )


def _config(content: Mapping[str, Any], name: str) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    kind = str(content.get("model_type"))
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(kind, list(CONFIG_MAPPING), n=3)
        raise InputError(
            f"{name}: model_type is {kind!r}, which transformers {__version__} does not know.",
            f"Did you mean {' or '.join(map(repr, near))}?"
            if near
            else "Name a type that it knows, or capture the model from a function: module:function.",
        )
    keys = {key: value for key, value in content.items() if key != "model_type"}
    try:
        return AutoConfig.for_model(kind, **keys)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{name}: transformers makes no configuration of type {kind!r} of it: {_first_line(error)}",
            "Correct the configuration's keys.",
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _model_class(config: Any, name: str) -> Any:
    """The class that the configuration names as its architecture, else that of its type."""
    from transformers.models.auto import modeling_auto as auto

    wanted = (getattr(config, "architectures", None) or [None])[0]
    modelling = type(config).__module__.replace("configuration_", "modeling_")
    found = getattr(import_module(modelling), str(wanted), None) if wanted else None
    if wanted and found is None:
        raise InputError(
            f"{name}: transformers has no class {wanted!r}, which is the configuration's architecture.",
            "Correct 'architectures', or leave it out.",
        )
    if found is None:
        kind = type(config)
        is_generator = (
            kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING
            and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING
            and not config.is_encoder_decoder
        )
        mapping = auto.MODEL_FOR_CAUSAL_LM_MAPPING if is_generator else auto.MODEL_MAPPING
        if kind not in mapping:
            raise InputError(
                f"{name}: transformers has no model of type {config.model_type!r}.",
                "Name a class of transformers under 'architectures'.",
            )
        found = mapping[kind]
    if isinstance(found, tuple):
        found = found[0]
    if config.is_encoder_decoder and "Encoder" not in found.__name__:
        raise InputError(
            f"{name}: {found.__name__} is an encoder with a decoder, which is not captured.",
            "Capture its encoder: name that class under 'architectures' (T5EncoderModel).",
        )
    return found


def _generates(model_class: Any, config: Any) -> bool:
    from transformers.models.auto import modeling_auto as auto

    kind = type(config)
    if kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING or kind in auto.MODEL_FOR_MASKED_LM_MAPPING:
        return False
    return bool(auto.MODEL_FOR_CAUSAL_LM_MAPPING[kind] is model_class)


def _element_type(dtype: str, name: str) -> Any:
    import torch

    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(
            f"{name}: {dtype!r} is no type of weights and activations.",
            "Use one of float16, bfloat16, float32.",
        )
    return found


def _hidden_size(text: Any) -> int | None:
    size = getattr(text, "hidden_size", None)
    return size if isinstance(size, int) else None


def _num_heads(text: Any) -> tuple[int, int] | None:
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int):
        return None  # networks whose stages differ have a list of them
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return heads, 1
    for key in ("num_key_value_heads", "num_kv_heads"):
        if isinstance(found := getattr(text, key, None), int):
            return heads, found
    return heads, heads


def _max_context(text: Any) -> int:
    """Positions of the model; of windowed attention, the window: beyond it costs are no polynomials."""
    limits = [value for key in _POSITIONS if (value := getattr(text, key, None))]
    kinds = getattr(text, "layer_types", None) or ()
    is_windowed = "sliding_attention" in kinds or (not kinds and getattr(text, "sliding_window", None))
    if is_windowed and text.sliding_window:
        limits.append(text.sliding_window)
    return int(min(limits)) if limits else _UNLIMITED


def _main_shape(config: Any, main: str, model_class: Any) -> tuple[int, ...]:
    """The shape of a request's input, without its length where that varies."""
    if main == "input_ids":
        return ()
    if main == "pixel_values":
        sides = getattr(config, "image_size", None) or 224
        height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
        return (int(getattr(config, "num_channels", 3)), int(height), int(width))
    if (
        main == "input_features"
        and hasattr(config, "num_mel_bins")
        and hasattr(config, "max_source_positions")
    ):
        return (int(config.num_mel_bins), 2 * int(config.max_source_positions))
    raise InputError(
        f"{model_class.__name__} reads {main!r}, of which muplan does not know the size.",
        "Capture it from a factory that gives example inputs: module:function.",
    )


class _ForwardPass:
    """What enters a pass of a model that answers in one."""

    def __init__(self, main: str, shape: tuple[int, ...], element: Any) -> None:
        self.main, self.shape, self.element = main, shape, element

    def __call__(self, module: nn.Module, sizes: Sizes) -> Pass:
        import torch

        if self.main == "input_ids":
            made = torch.zeros((sizes.batch, sizes.tokens), dtype=torch.long)
        else:
            made = torch.zeros((sizes.batch, *self.shape), dtype=self.element)
        inputs = {self.main: made}
        known = inspect.signature(module.forward).parameters
        extra = {key: False for key in ("use_cache",) if key in known}
        return Pass(inputs=inputs, arguments={**inputs, **extra, "return_dict": True})


class _CachedPass:
    """What enters a pass of a generator: new tokens, positions and mask, keys and values of earlier ones."""

    def __init__(self, element: Any) -> None:
        self.element = element
        self._shapes: list[tuple[int, int, int]] = []

    def __call__(self, module: nn.Module, sizes: Sizes) -> Pass:
        import torch

        known = inspect.signature(module.forward).parameters
        inputs = {
            "input_ids": torch.zeros((sizes.batch, sizes.tokens), dtype=torch.long),
            "attention_mask": torch.ones((sizes.batch, sizes.context), dtype=torch.long),
        }
        if "position_ids" in known:
            inputs["position_ids"] = torch.zeros((sizes.batch, sizes.tokens), dtype=torch.long)
        arguments: dict[str, Any] = {**inputs, "use_cache": True, "return_dict": True}
        if "logits_to_keep" in known:
            arguments["logits_to_keep"] = 1
        name = "cache" if "cache" in known else "past_key_values"
        self._shapes = self._shapes or _cached_shapes(module, name)
        cache, held = self._filled_cache(module, sizes)
        return Pass(inputs={**inputs, **held}, arguments={**arguments, name: cache})

    def _filled_cache(self, module: nn.Module, sizes: Sizes) -> tuple[Any, dict[str, Tensor]]:
        """Make a cache that holds ``sizes.past`` tokens, and name the tensors in it."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=module.config)
        held: dict[str, Tensor] = {}
        for index, (heads, key, value) in enumerate(self._shapes):
            made = [
                torch.zeros((sizes.batch, heads, sizes.past, elements), dtype=self.element)
                for elements in (key, value)
            ]
            cache.update(*made, index)
            layer = cache.layers[index]
            held[f"{CACHE}{index}.key"], held[f"{CACHE}{index}.value"] = layer.keys, layer.values
        return cache, held


def _cached_shapes(module: nn.Module, argument: str) -> list[tuple[int, int, int]]:
    """Heads, and elements of a key's and of a value's head, that each layer keeps after a short pass."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=module.config)
    module(input_ids=torch.zeros((1, 2), dtype=torch.long), **{argument: cache}, use_cache=True)
    shapes = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != 2:
            raise InputError(
                f"Layer {index} of {type(module).__name__} keeps no keys and values of its tokens"
                f" ({type(layer).__name__}).",
                "Capture models whose layers all attend to a KV cache.",
            )
        shapes.append((keys.shape[1], keys.shape[3], values.shape[3]))
    return shapes
