"""Runnable parts of captured models. This file imports torch; import it only where a pass is to be run.

A part runs the calls that were traced on whole tensors: sequences of as many new tokens each, behind as many
cached ones; which of those belong to a sequence is said by a mask, as the model's own code has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from muplan.capture.capture import Captured
from muplan.capture.sizes import Sizes
from muplan.errors import InputError
from muplan.profiling.measured.modules import Batch, PassShape

_MASK, _POSITIONS = "attention_mask", "position_ids"


class Rectangle(Protocol):
    """Sequences with as many new tokens each, and what is cached of them."""

    @property
    def tokens(self) -> int:
        """New tokens of each."""

    @property
    def begins(self) -> Tensor:
        """How many of each are cached; shape (sequences,)."""

    @property
    def longest(self) -> int:
        """The most of these."""

    @property
    def side(self) -> Mapping[int, Tensor] | None:
        """Values that depend on the numbers and places of tokens alone, where they are there already."""

    def cached(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; shapes (sequences, heads, longest, size), what is beyond is ignored."""

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Take the new keys and values of a layer; shapes (sequences, heads, tokens, size)."""


class CapturedModule(nn.Module):  # type: ignore[misc]  # torch is not there for the type checker
    """A range of a captured model's segments.

    Side work (masks, positions) that depends on the shape of a pass alone is done once for each shape. That
    of iterations, no two of which are alike, is done by the first part of the model, as once in a stage.

    Parameters
    ----------
    first, last
        Half-open range.

    Raises
    ------
    InputError
        More than one tensor enters a pass of the model, or its layers keep keys and values in another way.
    """

    def __init__(self, captured: Captured, first: int, last: int, dtype: torch.dtype) -> None:
        super().__init__()
        self._does_side = first == 0 and captured.graph.request_kind == "generate"
        self.stage = captured.stage(first, last, does_all_side=self._does_side)
        self.dtype, self.answers = dtype, last == len(captured.segments)
        self._trace, self._vocabulary = captured.trace, captured.graph.vocabulary_size
        if len(self.stage.entering) != 1:
            names = ", ".join(self._trace.inputs[value] for value in self.stage.entering)
            raise InputError(
                f"Several tensors enter a pass of {captured.graph.name} ({names}); passes of one are run.",
                "Make a module that takes them as one tensor.",
            )
        self._zeros: dict[PassShape, _Alone] = {}

    @property
    def num_layers(self) -> int:
        """Layers that keep keys and values."""
        return len(self.kv_shapes) // 2

    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]:
        """Heads, and elements of each, of the keys and of the values of each layer."""
        shapes = [self._trace.values[cache.held].shape[0] for cache in self.stage.caches]
        return tuple((int(shape[1]), int(shape[3])) for shape in shapes)

    def reads(self, shape: PassShape, device: torch.device, generator: torch.Generator | None) -> Tensor:
        """Return a random input of a pass: numbers of tokens, or activations."""
        (entering,) = self.stage.entering
        size = self._entering_shape(Sizes(batch=shape.batch, tokens=shape.tokens, context=shape.context))
        if self._trace.inputs[entering : entering + 1] == ("input_ids",):
            most = max(self._vocabulary, 1)
            return torch.randint(most, size, generator=generator, device=device)
        return torch.randn(size, generator=generator, device=device).to(self.dtype)

    def forward(self, entering: Tensor, batch: Batch) -> Tensor:
        """Run the part on what enters it."""
        return batch.through(self, entering)

    def run(self, entering: Tensor, sequences: Rectangle) -> Tensor:
        """Run the part on whole tensors, of the shapes that the model's own code gives them."""
        sizes = _sizes(sequences)
        values = self._side(sequences, sizes) if sequences.side is None else dict(sequences.side)
        values[self.stage.entering[0]] = entering.reshape(self._entering_shape(sizes))
        pairs = list(zip(self.stage.caches[::2], self.stage.caches[1::2], strict=True))
        for layer, (keys, held) in enumerate(pairs):
            values[keys.held], values[held.held] = sequences.cached(layer)
        made = self.stage.run(values, sizes)
        for layer, (keys, held) in enumerate(pairs):
            sequences.remember(layer, made[keys.new], made[held.new])
        return made[self.stage.leaving]

    def _side(self, sequences: Rectangle, sizes: Sizes) -> dict[int, Tensor]:
        """What the model's code makes of the numbers and places of tokens alone."""
        told, names = {}, self._trace.inputs
        if _MASK in names:
            told[names.index(_MASK)] = _mask(sequences)
        if _POSITIONS in names:
            steps = torch.arange(sequences.tokens, device=sequences.begins.device)
            told[names.index(_POSITIONS)] = sequences.begins[:, None] + steps
        return self.stage.side(told, sizes)

    def _entering_shape(self, sizes: Sizes) -> tuple[int, ...]:
        return tuple(extent(sizes) for extent in self._trace.extents(self.stage.entering[0]))

    def alone(self, shape: PassShape, device: torch.device) -> Rectangle:
        """Sequences of a pass that stands by itself, the cached tokens all zeros."""
        if shape not in self._zeros:
            self._zeros.clear()  # the old ones go before the new ones come: caches are large
            past = shape.context - shape.tokens
            sizes = [self._trace.values[cache.held].shape[0] for cache in self.stage.caches]
            held = [
                torch.zeros((shape.batch, int(size[1]), past, int(size[3])), device=device, dtype=self.dtype)
                for size in sizes
            ]
            begins = torch.full((shape.batch,), past, device=device)
            made = _Alone(shape.tokens, begins, past, held)
            if not self._does_side:
                made = replace(made, side=self._side(made, _sizes(made)))
            self._zeros[shape] = made
        return self._zeros[shape]


@dataclass(frozen=True, slots=True)
class _Alone:
    """Sequences of a pass that stands by itself, behind tokens of which nothing is known."""

    tokens: int
    begins: Tensor
    longest: int
    held: Sequence[Tensor]
    side: Mapping[int, Tensor] | None = None

    def cached(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.held[2 * layer], self.held[2 * layer + 1]

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None:
        pass


def _sizes(sequences: Rectangle) -> Sizes:
    tokens = sequences.tokens
    return Sizes(batch=len(sequences.begins), tokens=tokens, context=sequences.longest + tokens)


def _mask(sequences: Rectangle) -> Tensor:
    """Which tokens there are, the cached and then the new; shape (sequences, longest + tokens)."""
    begins, past = sequences.begins, sequences.longest
    places = torch.arange(past + sequences.tokens, device=begins.device)
    return ((places < begins[:, None]) | (places >= past)).long()
