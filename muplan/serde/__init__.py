"""Strict YAML and JSON ⇄ typed documents.

Every file that muplan reads or writes is a `Document`: frozen, typed, unknown keys refused, NaN
refused, with its kind and schema version at the top. `read_document` reports all faults of a file
at once, each with its dotted key and line. `write_document` writes atomically, and equal documents
give equal bytes: no time of day, no absolute path, no unordered keys.
"""

from muplan.serde.document import Document, Part, digest
from muplan.serde.reading import locate_faults, parse_document, read_document, read_kind
from muplan.serde.writing import to_json, write_document, write_text

__all__ = [
    "Document",
    "Part",
    "digest",
    "locate_faults",
    "parse_document",
    "read_document",
    "read_kind",
    "to_json",
    "write_document",
    "write_text",
]
