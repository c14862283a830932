"""What documents and their parts have in common, and their digest."""

from __future__ import annotations

import hashlib
import json
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


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


def digest(document: Part) -> str:
    """SHA-256 of the document's canonical JSON, as ``sha256:…``; layout and comments do not count."""
    content = document.model_dump(mode="json", exclude_none=True)
    canonical = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
