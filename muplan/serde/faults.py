"""Faults of a document: what is wrong, at which dotted key and line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from muplan.errors import Fault
from muplan.serde.document import Document
from muplan.serde.text import compose, line_of


def check_header(content: Any, document_type: type[Document], text: str, file: str) -> list[Fault]:
    """Check that the content says it is a document of that type and version."""
    if not isinstance(content, dict):
        return [Fault(file=file, key="", line=1, message="the document is not a mapping of keys to values")]
    faults = []
    expected = {"kind": document_type.KIND, "schema_version": document_type.SCHEMA_VERSION}
    for key, value in expected.items():
        found = content.get(key)
        if type(found) is type(value) and found == value:
            continue
        line = line_of(compose(text, file), [key])
        message = f"is {found!r}, expected {value!r}" if key in content else "is missing"
        faults.append(Fault(file=file, key=key, line=line, message=message))
    return faults


def header_remedy(document_type: type[Document]) -> str:
    """Say how a document of that type begins."""
    return (
        f"Begin the file with 'kind: {document_type.KIND}' and"
        f" 'schema_version: {document_type.SCHEMA_VERSION}', or name a file with a {document_type.KIND}."
    )


_PLACE_IN_MESSAGE = re.compile(r"^((?:[a-z_]+(?:\[\d+\])?\.)*[a-z_]+\[\d+\](?:\.[a-z_]+)*): (?s:(.+))$")


def faults_of(error: ValidationError, text: str, file: str) -> list[Fault]:
    """Turn pydantic's errors into faults, in the order of the lines.

    A validator of a whole part may begin its message with the place below it that is at fault
    (``services[1].name: …``).
    """
    root = compose(text, file)
    details = error.errors(include_url=False)
    faults = []
    for detail in details:
        if detail["type"] == "too_short" and detail["input"] and _is_prefix(detail["loc"], details):
            continue  # a list counts as empty when its items are faulty; the items say why
        path = _path_in(root, detail["loc"], is_missing=detail["type"] == "missing")
        message = _message(detail["type"], detail)
        if (place := _PLACE_IN_MESSAGE.match(message)) is not None:
            path, message = [*path, *path_of(place[1])], place[2]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        faults.append(Fault(file=file, key=key, line=line_of(root, path), message=message))
    return sorted(faults, key=lambda fault: fault.line)


def _path_in(root: Any, location: Sequence[int | str], *, is_missing: bool) -> list[int | str]:
    """The parts of pydantic's location that stand in the file; its names of union members do not.

    Of a missing key all but the last part stand there.
    """
    import yaml

    node, path = root, list[int | str]()
    for part in location:
        if isinstance(node, yaml.MappingNode):
            children = {name.value: value for name, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            children = dict(enumerate(node.value))
        else:
            children = {}
        if part in children:
            path.append(part)
            node = children[part]
    return [*path, location[-1]] if is_missing else path


def _is_prefix(place: tuple[int | str, ...], details: Sequence[Any]) -> bool:
    """Whether another error lies inside ``place``."""
    return any(len(d["loc"]) > len(place) and d["loc"][: len(place)] == place for d in details)


def path_of(key: str) -> list[int | str]:
    """Parts of a dotted key: ``services[2].slo`` is services, 2, slo."""
    return [int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key)]


def _message(kind: str, detail: Any) -> str:
    value = detail.get("input")
    shown = "" if isinstance(value, dict | list) else f" (found {value!r})"
    if kind == "missing":
        return "this key is required"
    if kind == "extra_forbidden":
        return "no such key"
    if kind in ("too_short", "too_long"):
        bound, limit = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        count = detail["ctx"][limit]
        noun = "item" if count == 1 else "items"
        return f"must have at {bound} {count} {noun} (found {detail['ctx']['actual_length']})"
    message = str(detail["msg"])
    for prefix in ("Value error, ", "Input ", "String "):
        message = message.removeprefix(prefix)
    return f"{message}{shown}"
