"""Reading a model configuration: its keys, and what muplan has to know besides them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from muplan.errors import InputError
from muplan.model.graph import AttentionKernel

_ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float8_e4m3fn": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a configuration does not say of the way a model is run.

    Attributes
    ----------
    name
        Name of the model.
    source
        Where the configuration comes from.
    attention
        The attention kernel; the family's default if left out: fused for generators, unfused for
        the others.
    embedding
        ``gather`` looks tokens up; ``one_hot`` multiplies one-hot vectors by the table, as compilers
        do that cannot partition a gather.
    max_context
        The most tokens of a sequence; the configuration's positions if left out.
    dtype
        Type of weights and activations.
    """

    name: str
    source: str
    attention: AttentionKernel | None = None
    embedding: Literal["gather", "one_hot"] = "gather"
    max_context: int | None = None
    dtype: str = "float16"

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight or activation."""
        if self.dtype not in _ELEMENT_BYTES:
            raise InputError(
                f"{self.name}: the element type {self.dtype!r} is not known.",
                f"Use one of {', '.join(_ELEMENT_BYTES)}.",
            )
        return _ELEMENT_BYTES[self.dtype]


class Keys:
    """The keys of a configuration, with the checks that a build needs."""

    def __init__(self, content: Mapping[str, Any], name: str) -> None:
        self._content = content
        self._name = name

    def integer(self, *names: str, default: int | None = None) -> int:
        """Return the first of ``names`` that is present and not null, a positive whole number."""
        for name in names:
            value = self._content.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    f"The configuration of {self._name} has {name} = {value!r}.",
                    "It must be a positive whole number.",
                )
            return value
        if default is None:
            raise InputError(
                f"The configuration of {self._name} has no {' or '.join(names)}.",
                "Name a complete transformers configuration (config.json).",
            )
        return default

    def integers(self, name: str) -> tuple[int, ...]:
        """Read a list of positive whole numbers."""
        value = self._content.get(name)
        items = value if isinstance(value, list | tuple) else ()
        if not items or not all(isinstance(item, int) and item > 0 for item in items):
            raise InputError(
                f"The configuration of {self._name} has {name} = {value!r}.",
                "It must be a list of positive whole numbers.",
            )
        return tuple(items)

    def boolean(self, name: str, *, default: bool) -> bool:
        """Read a truth value."""
        value = self._content.get(name)
        return default if value is None else bool(value)

    def text(self, name: str, *, default: str) -> str:
        """Read a string."""
        value = self._content.get(name)
        return default if value is None else str(value)

    def architecture(self) -> str:
        """Return the first of the configuration's architectures, or an empty string."""
        value = self._content.get("architectures") or [""]
        return str(value[0])

    def num_labels(self, default: int = 2) -> int:
        """Return the number of classes of a classifier head."""
        labels = self._content.get("id2label")
        return len(labels) if labels else self.integer("num_labels", default=default)

    def heads_divide(self, hidden: int, heads: int) -> int:
        """Return the elements of a head: its own key where there is one, else hidden / heads."""
        if self._content.get("head_dim") is not None:
            return self.integer("head_dim")
        if hidden % heads:
            raise InputError(
                f"The configuration of {self._name} divides {hidden} elements over {heads} heads.",
                "The heads must divide the hidden size.",
            )
        return hidden // heads
