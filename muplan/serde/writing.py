"""Writing documents: atomically, with equal bytes for equal documents."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from muplan.errors import InputError
from muplan.serde.document import Document, Part


def to_json(document: Part) -> str:
    """The JSON text of a document: keys in the order of the type, two spaces, short lists on a line."""
    content = document.model_dump(mode="json", exclude_none=True)
    return _format(content, indent=0) + "\n"


def _format(content: Any, indent: int) -> str:
    flat = json.dumps(content, ensure_ascii=False, allow_nan=False)
    is_leaf = not isinstance(content, dict | list) or not content
    of_scalars = isinstance(content, list) and not any(isinstance(item, dict | list) for item in content)
    if is_leaf or of_scalars or len(flat) + indent <= 100:
        return flat
    pad, end = " " * (indent + 2), " " * indent
    if isinstance(content, dict):
        items = [f"{pad}{json.dumps(key)}: {_format(value, indent + 2)}" for key, value in content.items()]
        return "{\n" + ",\n".join(items) + f"\n{end}}}"
    return "[\n" + ",\n".join(pad + _format(item, indent + 2) for item in content) + f"\n{end}]"


def write_document(document: Document, path: Path) -> None:
    """Write a document as JSON; the file appears whole or not at all."""
    write_text(to_json(document), path)


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically, making its folder where needed.

    Raises
    ------
    InputError
        The folder cannot be made or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        remedy = "Make room there, or name another place."
        raise InputError(f"{path} cannot be written: {error.strerror}.", remedy) from None
