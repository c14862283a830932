"""Capture what a user names: a configuration or folder of transformers, or a function that makes a module."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muplan.capture.factory import factory_subject, is_factory
from muplan.errors import InputError
from muplan.model.architectures.build import BUILT_TYPES
from muplan.model.catalog import load_model
from muplan.model.graph import AttentionKernel, ModelGraph, Origin

if TYPE_CHECKING:
    from muplan.capture.capture import Captured
    from muplan.capture.subject import Subject

Source = str | Path | Mapping[str, Any] | object
"""A path of a ``config.json`` or of the folder that holds one, its content, a transformers configuration, or
``module:function``."""


def capture(
    source: Source,
    *,
    name: str | None = None,
    dtype: str | None = None,
    attention: AttentionKernel | None = None,
    is_real: bool = False,
) -> Captured:
    """Trace a model, and make a graph of it that can be cut into stages.

    Parameters
    ----------
    name
        Of the model; the file's, folder's or function's where absent.
    dtype
        Type of weights and activations; the configuration's or the module's own where absent.
    attention
        The attention kernel that the graph stands for; fused for generators, unfused for others where
        absent.
    is_real
        Hold weights, so that stages run: those in the named folder, else random ones. Without it, neither
        weights nor activations take memory.

    Raises
    ------
    InputError
        There is no such model, it cannot be traced, or torch or transformers is not installed.
    """
    subject = _subject(source, name=name, dtype=dtype, is_real=is_real)
    from muplan.capture.capture import capture_subject

    return capture_subject(subject, attention=attention, is_real=is_real)


def recapture(graph: ModelGraph, *, seed: str, dtype: str | None = None) -> Captured:
    """Make the module of a captured graph again, with weights, so that stages of it run.

    Parameters
    ----------
    seed
        Random weights are drawn by it.
    dtype
        Type of weights and activations; that of the graph where absent.

    Raises
    ------
    InputError
        The graph does not say what it was captured from, that is not there any more, or it is another now.
    """
    origin = graph.origin
    if origin is None:
        raise InputError(
            f"The graph of {graph.name} does not say what it was captured from.",
            "Capture the model again: muplan model capture --help",
        )
    subject = _subject_of(origin, name=graph.name, dtype=dtype or origin.dtype)
    import torch

    from muplan.capture.capture import capture_subject

    torch.manual_seed(zlib.crc32(seed.encode()))
    captured = capture_subject(subject, attention=graph.attention, is_real=True)
    if _names(captured.graph) != _names(graph):
        raise InputError(
            f"The model that {graph.name} was captured from is another now: its operators have changed.",
            "Capture, profile and plan it again: muplan model capture --help",
        )
    return captured


def _subject_of(origin: Origin, *, name: str, dtype: str) -> Subject:
    """The subject that a graph was captured from, with weights."""
    if origin.configuration is None:
        return _subject(str(origin.factory), name=name, dtype=dtype, is_real=True)
    _check_installed()
    from muplan.capture.transformers_subject import transformers_subject

    weights = None if origin.weights is None else Path(origin.weights)
    if weights is not None and not (weights.is_dir() and _has_weights(weights)):
        raise InputError(
            f"{weights}, where the weights of {name} were, has none.",
            "Put them back, or capture the model again from where it is now.",
        )
    return transformers_subject(origin.configuration, name=name, dtype=dtype, weights=weights, is_real=True)


def _names(graph: ModelGraph) -> list[str]:
    return [operator.name for operator in graph.operators()]


def find_graph(name: str | Path) -> ModelGraph:
    """Find the graph of a model, whatever names it.

    A shipped model, a graph file, and a configuration of a type that muplan builds graphs of need no torch;
    another configuration, and ``module:function``, are captured.

    Raises
    ------
    InputError
        There is no such model, or it cannot be captured.
    """
    if is_factory(str(name)):
        return capture(str(name)).graph
    content = _content(Path(name))
    if content is not None and "kind" not in content and content.get("model_type") not in BUILT_TYPES:
        return capture(name).graph
    return load_model(name)


def _check_installed() -> None:
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"Capturing a model needs torch and transformers ({error}).",
            "Install them: pip install 'muplan[torch]'",
        ) from None


def _subject(source: Source, *, name: str | None, dtype: str | None, is_real: bool) -> Subject:
    _check_installed()
    import dataclasses

    from muplan.capture.transformers_subject import transformers_subject

    if isinstance(source, str) and is_factory(source):
        subject = factory_subject(source, dtype=dtype)
        return subject if name is None else dataclasses.replace(subject, name=name)
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.exists():
            raise InputError(f"{source} does not exist.", "Check the path, or write module:function.")
        content = _content(path)
        if content is None or "model_type" not in content:
            raise InputError(
                f"{source} is no model that can be captured.",
                "Name a config.json of transformers, the folder of a model, or a function that makes a torch"
                " module: module:function.",
            )
        folder = path if path.is_dir() else path.parent
        own = path.stem if path.is_file() and path.name != "config.json" else folder.resolve().name
        return transformers_subject(
            content,
            name=name or own,
            label=str(source),
            dtype=dtype,
            weights=folder if path.is_dir() and _has_weights(folder) else None,
            is_real=is_real,
        )
    content = source if isinstance(source, Mapping) else _to_dict(source)
    return transformers_subject(content, name=name or str(content.get("model_type")), dtype=dtype)


def _to_dict(source: object) -> Mapping[str, Any]:
    to_dict = getattr(source, "to_dict", None)
    content = to_dict() if callable(to_dict) else None
    if not isinstance(content, Mapping):
        raise InputError(
            f"A {type(source).__name__} is no model that can be captured.",
            "Pass a path, a transformers configuration, its content, or 'module:function'.",
        )
    return content


def _content(path: Path) -> Mapping[str, Any] | None:
    """The content of a configuration file, or of the one in a folder; None where it is something else."""
    file = path / "config.json" if path.is_dir() else path
    if file.suffix != ".json" or not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads it says what is wrong with it
    return content if isinstance(content, Mapping) else None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
