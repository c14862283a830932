"""Strict YAML and JSON ⇄ typed documents.

Every file that muplan reads or writes is a `Document`: frozen, typed, unknown keys refused, NaN
refused, with its kind and schema version at the top. `read_document` reports all faults of a file
at once, each with its dotted key and line. `write_document` writes atomically, and equal documents
give equal bytes: no time of day, no absolute path, no unordered keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from muplan.errors import Fault, InputError


class Part(BaseModel):
    """A piece of a document: frozen, strict, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __eq__(self, other: object) -> bool:
        """Compare the fields alone; cached properties, which may be arrays, do not count."""
        if type(self) is not type(other):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).model_fields)


class Document(Part):
    """A file's whole content. Sub-classes name their ``KIND`` and ``SCHEMA_VERSION``."""

    KIND: ClassVar[str]
    SCHEMA_VERSION: ClassVar[int] = 1

    kind: str
    schema_version: int


DocumentT = TypeVar("DocumentT", bound=Document)


# --- reading -----------------------------------------------------------------------------------


def read_document(path: Path, document_type: type[DocumentT]) -> DocumentT:
    """Read and check one file.

    Parameters
    ----------
    path
        A ``.yaml``, ``.yml`` or ``.json`` file.
    document_type
        The document that the file should hold.

    Raises
    ------
    InputError
        The file is missing, cannot be parsed, or has faults; all of them are listed, each with
        its line and dotted key.
    """
    return parse_document(_read_text(path), document_type, file=str(path))


def parse_document(text: str, document_type: type[DocumentT], *, file: str) -> DocumentT:
    """Check the text of a document; ``file`` is the name used in the faults."""
    content = _parse(text, file)
    faults = _check_header(content, document_type, text, file)
    if faults:
        raise InputError.from_faults(faults, _header_remedy(document_type))
    try:
        # JSON mode lets lists become tuples and strings become enumerations, and nothing else.
        return document_type.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise InputError.from_faults(
            _faults(error, text, file),
            f"Correct the lines above; docs/formats.md describes the keys of a {document_type.KIND}.",
        ) from None


def read_kind(path: Path) -> str:
    """The ``kind`` that a file declares; an empty string if it declares none."""
    content = _parse(_read_text(path), str(path))
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Check the path.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a file.", "Name a file in it.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}).", "Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None


def _parse(text: str, file: str) -> Any:
    """Parse JSON if it is JSON (fast), else YAML; repeated keys are faults."""
    text = text.removeprefix("\ufeff")
    try:
        return _parse_json(text, file) if text.lstrip().startswith("{") else _parse_yaml(text, file)
    except RecursionError:
        raise InputError(f"{file} is nested too deeply.", "Write it flatter.") from None


def _parse_json(text: str, file: str) -> Any:
    is_repeated = False

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_repeated
        content = dict(pairs)
        is_repeated |= len(content) < len(pairs)
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        fault = Fault(file=file, key="", line=error.lineno, message=f"not valid JSON: {error.msg}")
        raise InputError.from_faults([fault], "Correct the syntax at that line.") from None
    if is_repeated:
        raise InputError.from_faults(_structure_faults(_compose(text, file), "", file), "Keep one of each.")
    return content


_TAG = "tag:yaml.org,2002:"
_VALUE_TAGS = tuple(f"{_TAG}{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null"))
_SCALARS = (  # the core schema of YAML 1.2: no octal 010, no 1:30 for 90, no yes for true
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?", "-+0123456789"),
    ("float", r"[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
)


@cache
def _yaml_loader() -> Any:
    import yaml

    class StrictLoader(yaml.CSafeLoader):
        """SafeLoader that reads the scalars of YAML 1.2 as numbers and all others as text."""

    StrictLoader.yaml_implicit_resolvers = {}
    for name, pattern, first in _SCALARS:
        StrictLoader.add_implicit_resolver(f"{_TAG}{name}", re.compile(f"^(?:{pattern})$"), list(first))
    return StrictLoader


def _compose(text: str, file: str) -> Any:
    import yaml

    try:
        return yaml.compose(text, Loader=_yaml_loader())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        fault = Fault(file=file, key="", line=line, message=f"not valid YAML: {error.problem or error}")
        raise InputError.from_faults([fault], "Correct the syntax at that line.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not valid YAML: {error}", "Correct the syntax.") from None


def _parse_yaml(text: str, file: str) -> Any:
    import yaml

    root = _compose(text, file)
    if root is None:
        raise InputError(f"{file} is empty.", "Write the document, or name another file.")
    faults = _structure_faults(root, "", file)
    if faults:
        raise InputError.from_faults(faults, "Correct these lines.")
    return yaml.load(text, Loader=_yaml_loader())  # noqa: S506 - a SafeLoader


def _structure_faults(node: Any, key: str, file: str) -> list[Fault]:
    """Faults that a parser would pass over: keys that stand twice or are no text, values of foreign kinds."""
    import yaml

    line = node.start_mark.line + 1
    if node.tag not in _VALUE_TAGS:
        kind = node.tag.replace(_TAG, "!!")
        return [Fault(file=file, key=key, line=line, message=f"a document holds no value of the kind {kind}")]
    faults: list[Fault] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            line = name.start_mark.line + 1
            if name.tag != f"{_TAG}str":
                shown = name.value if isinstance(name, yaml.ScalarNode) else "a list or mapping"
                message = f"{shown} cannot be a key, for it is no text; put it in quotes"
                faults.append(Fault(file=file, key=key, line=line, message=message))
                continue
            child = f"{key}.{name.value}" if key else str(name.value)
            if name.value in seen:
                faults.append(Fault(file=file, key=child, line=line, message="the key stands twice"))
            seen.add(name.value)
            faults += _structure_faults(value, child, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            faults += _structure_faults(value, f"{key}[{index}]", file)
    return faults


def _check_header(content: Any, document_type: type[Document], text: str, file: str) -> list[Fault]:
    if not isinstance(content, dict):
        return [Fault(file=file, key="", line=1, message="the document is not a mapping of keys to values")]
    faults = []
    expected = {"kind": document_type.KIND, "schema_version": document_type.SCHEMA_VERSION}
    for key, value in expected.items():
        found = content.get(key)
        if type(found) is type(value) and found == value:
            continue
        line = _line_of(_compose(text, file), [key])
        message = f"is {found!r}, expected {value!r}" if key in content else "is missing"
        faults.append(Fault(file=file, key=key, line=line, message=message))
    return faults


def _header_remedy(document_type: type[Document]) -> str:
    return (
        f"Begin the file with 'kind: {document_type.KIND}' and"
        f" 'schema_version: {document_type.SCHEMA_VERSION}', or name a file with a {document_type.KIND}."
    )


_PLACE_IN_MESSAGE = re.compile(r"^((?:[a-z_]+(?:\[\d+\])?\.)*[a-z_]+\[\d+\](?:\.[a-z_]+)*): (?s:(.+))$")


def _faults(error: ValidationError, text: str, file: str) -> list[Fault]:
    """Turn pydantic's errors into faults, in the order of the lines.

    A validator of a whole part may begin its message with the place below it that is at fault
    (``services[1].name: …``).
    """
    root = _compose(text, file)
    details = error.errors(include_url=False)
    faults = []
    for detail in details:
        if detail["type"] == "too_short" and detail["input"] and _is_prefix(detail["loc"], details):
            continue  # a list counts as empty when its items are faulty; the items say why
        path = _path_in(root, detail["loc"], is_missing=detail["type"] == "missing")
        message = _message(detail["type"], detail)
        if (place := _PLACE_IN_MESSAGE.match(message)) is not None:
            path, message = [*path, *_path_of(place[1])], place[2]
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        faults.append(Fault(file=file, key=key, line=_line_of(root, path), message=message))
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


def locate_faults(faults: Sequence[Fault], path: Path) -> tuple[Fault, ...]:
    """Give faults that are known by their keys the name of the file and the lines of the keys in it."""
    root = _compose(_read_text(path), str(path))
    return tuple(replace(fault, file=str(path), line=_line_of(root, _path_of(fault.key))) for fault in faults)


def _path_of(key: str) -> list[int | str]:
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


def _line_of(root: Any, path: list[int | str]) -> int:
    """The line of the deepest part of ``path`` that the file holds."""
    import yaml

    node, line = root, root.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(name, value) for name, value in node.value if name.value == str(part)]
            if not found:
                return int(line)
            name, node = found[0]
            line = name.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return int(line)
    return int(line)


# --- writing -----------------------------------------------------------------------------------


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
        raise InputError(
            f"{path} cannot be written: {error.strerror}.", "Name another place with -o."
        ) from None


def digest(document: Part) -> str:
    """SHA-256 of the document's canonical JSON, as ``sha256:…``; layout and comments do not count."""
    content = document.model_dump(mode="json", exclude_none=True)
    canonical = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
