"""Reading documents: strictly, with all faults of a file at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from muplan.errors import Fault, InputError
from muplan.serde.document import Document
from muplan.serde.faults import check_header, faults_of, header_remedy, path_of
from muplan.serde.text import compose, line_of, parse_text, read_text

DocumentT = TypeVar("DocumentT", bound=Document)


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
    return parse_document(read_text(path), document_type, file=str(path))


def parse_document(text: str, document_type: type[DocumentT], *, file: str) -> DocumentT:
    """Check the text of a document; ``file`` is the name used in the faults."""
    content = parse_text(text, file)
    faults = check_header(content, document_type, text, file)
    if faults:
        raise InputError.from_faults(faults, header_remedy(document_type))
    try:
        # JSON mode lets lists become tuples and strings become enumerations, and nothing else.
        return document_type.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise InputError.from_faults(
            faults_of(error, text, file),
            f"Correct the lines above; docs/formats.md describes the keys of a {document_type.KIND}.",
        ) from None


def read_kind(path: Path) -> str:
    """The ``kind`` that a file declares; an empty string if it declares none."""
    content = parse_text(read_text(path), str(path))
    kind = content.get("kind") if isinstance(content, dict) else None
    return kind if isinstance(kind, str) else ""


def locate_faults(faults: Sequence[Fault], path: Path) -> tuple[Fault, ...]:
    """Give faults that are known by their keys the name of the file and the lines of the keys in it."""
    root = compose(read_text(path), str(path))
    return tuple(replace(fault, file=str(path), line=line_of(root, path_of(fault.key))) for fault in faults)
