"""The models that ship with muplan, and models in files of the user.

``configs/`` holds the configurations' facts, ``graphs/`` the graphs made from them;
``python -m muplan.model.catalog`` makes the graphs again, and a test checks that they are the same.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from muplan.errors import InputError
from muplan.model.architectures.build import build_graph
from muplan.model.architectures.config import BuildOptions
from muplan.model.graph import ModelGraph
from muplan.serde import parse_document, read_document, write_document


@cache
def model_names() -> tuple[str, ...]:
    """Return the names of the shipped models, sorted."""
    folder = files("muplan.model") / "graphs"
    return tuple(
        sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    )


def load_model(name_or_path: str | Path) -> ModelGraph:
    """Load a model's graph.

    Parameters
    ----------
    name_or_path
        A name of `model_names`; a graph file (``.json`` or ``.yaml``); a ``config.json`` of
        transformers, or the folder that holds one.

    Raises
    ------
    InputError
        There is no such model, or the file has faults.
    """
    name = str(name_or_path)
    if name in model_names():
        return _shipped_model(name)
    path = Path(name)
    if path.is_dir():
        return _model_of_config(path / "config.json")
    if path.suffix in (".json", ".yaml", ".yml"):
        return _model_of_config(path) if _is_config(path) else read_document(path, ModelGraph)
    near = difflib.get_close_matches(name, model_names(), n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"There is no model {name!r}.",
        f"{hint}Shipped models: {', '.join(model_names())}. To use your own, name its config.json,"
        " or the file that 'muplan model capture' writes.",
    )


@cache
def _shipped_model(name: str) -> ModelGraph:
    resource = files("muplan.model") / "graphs" / f"{name}.json"
    return parse_document(resource.read_text(encoding="utf-8"), ModelGraph, file=f"graphs/{name}.json")


def build_shipped_model(name: str) -> ModelGraph:
    """Build the graph of a shipped model from its configuration."""
    resource = files("muplan.model") / "configs" / f"{name}.json"
    content: dict[str, Any] = json.loads(resource.read_text(encoding="utf-8"))
    options = BuildOptions(name=name, source=content["source"], **content.get("options", {}))
    return build_graph(content["config"], options)


def _is_config(path: Path) -> bool:
    content = _read_json(path) if path.suffix == ".json" and path.is_file() else None
    return isinstance(content, dict) and "model_type" in content and "kind" not in content


def _model_of_config(path: Path) -> ModelGraph:
    content = _read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no model configuration.", "Name a config.json of transformers.")
    name = path.parent.name if path.name == "config.json" and path.parent.name else path.stem
    dtype = content.get("dtype") or content.get("torch_dtype") or "float16"
    options = BuildOptions(name=name, source=f"configuration file {path.name}", dtype=str(dtype))
    return build_graph(content, options)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: not valid JSON: {error.msg}.", "Correct the file."
        ) from None


def write_shipped_graphs(folder: Path) -> tuple[Path, ...]:
    """Make every shipped graph again in ``folder``; returns the files written."""
    names = sorted(
        entry.name.removesuffix(".json")
        for entry in (files("muplan.model") / "configs").iterdir()
        if entry.name.endswith(".json")
    )
    paths = tuple(folder / f"{name}.json" for name in names)
    for name, path in zip(names, paths, strict=True):
        write_document(build_shipped_model(name), path)
    return paths


if __name__ == "__main__":
    write_shipped_graphs(Path(__file__).parent / "graphs")
