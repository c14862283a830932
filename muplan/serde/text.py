"""Text to plain content: JSON, or the core of YAML 1.2, with the lines that keys stand on."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from muplan.errors import Fault, InputError


def read_text(path: Path) -> str:
    """Read a UTF-8 file; InputError says why it cannot be read."""
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


def parse_text(text: str, file: str) -> Any:
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
        raise InputError.from_faults(_structure_faults(compose(text, file), "", file), "Keep one of each.")
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


def compose(text: str, file: str) -> Any:
    """Parse YAML (or JSON) into nodes that know their lines."""
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

    root = compose(text, file)
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


def line_of(root: Any, path: list[int | str]) -> int:
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
