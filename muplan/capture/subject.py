"""What is captured: a module, what enters a pass of it, and what is known of it beside its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from muplan.capture.sizes import Grid, Sizes, fixed_grid, forward_grid, generate_grid
from muplan.model.graph import Origin

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What enters a pass.

    Parameters
    ----------
    inputs
        Every tensor that enters, by name.
    arguments
        What the module is called with; its tensors are those of the inputs.
    """

    inputs: Mapping[str, Tensor]
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to capture.

    Parameters
    ----------
    class_name
        Of the module.
    make
        Makes the module, in evaluation mode; the caller decides whether on fake tensors.
    enter
        Makes what enters a pass of the module at the sizes.
    answer
        Takes the tensor that answers the requests from what the module returns.
    lengths
        ``fixed``: inputs have one size; ``whole``: sequences of any length; ``cached``: new tokens after
        those in a KV cache.
    hidden_size, num_heads
        As the configuration states them (heads of queries, and of keys); what the trace shows where absent.
    side
        Inputs that tell of the pass and not of the requests' data: positions, masks. Every stage has them.
    """

    name: str
    family: str
    source: str
    origin: Origin
    class_name: str
    element_bytes: int
    lengths: Literal["fixed", "whole", "cached"]
    make: Callable[[], nn.Module]
    enter: Callable[[nn.Module, Sizes], Pass]
    answer: Callable[[Any], Tensor]
    max_context: int
    vocabulary_size: int = 0
    hidden_size: int | None = None
    num_heads: tuple[int, int] | None = None
    side: frozenset[str] = frozenset()

    @property
    def request_kind(self) -> Literal["forward", "generate"]:
        """How requests are answered."""
        return "generate" if self.lengths == "cached" else "forward"

    @property
    def grid(self) -> Grid:
        """The sizes at which the module is traced."""
        if self.lengths == "fixed":
            return fixed_grid()
        return (forward_grid if self.lengths == "whole" else generate_grid)(self.max_context)


CACHE = "cache."
"""Names of cached inputs begin so: ``cache.3.key``."""


def first_tensor(made: Any) -> Tensor:
    """Take the scores or the pooled state where what a module returns names such, else its first tensor."""
    from torch.utils._pytree import tree_flatten

    if isinstance(made, dict):
        for key in ("logits", "pooler_output", "last_hidden_state"):
            if made.get(key) is not None:
                return made[key]
    flat, _ = tree_flatten(made)
    return next(item for item in flat if hasattr(item, "untyped_storage"))
