"""Keys and values of running sequences, and attention to them. This file imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from muplan.model.graph import Phase
from muplan.profiling.measured.captured_modules import CapturedModule
from muplan.profiling.measured.modules import Flow, SegmentModule, attention, joined
from muplan.serving.realtime.backend import Span


class KvCache:
    """Room for the keys and values of a number of sequences of some length, in each of a stage's layers.

    Sequences stand one after the other from slot 0 on, so that all that run are one slice; where one goes,
    the last takes its slot.

    Parameters
    ----------
    num_layers
        Layers of the stage that attend.
    num_slots, length
        Sequences, and tokens of each.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_heads: int,
        length: int,
        head_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        size = (num_layers, num_slots, num_heads, length, head_size)
        self.keys = torch.zeros(size, device=device, dtype=dtype)
        self.values = torch.zeros(size, device=device, dtype=dtype)
        self._requests: list[int] = []
        self._slots: dict[int, int] = {}
        self._held: list[int] = []

    def __len__(self) -> int:
        """How many sequences there are."""
        return len(self._requests)

    def slot(self, span: Span) -> int:
        """The slot of a span's sequence, which is new where it begins at 0."""
        if span.request not in self._slots:
            self._slots[span.request] = len(self._requests)
            self._requests.append(span.request)
            self._held.append(0)
        slot = self._slots[span.request]
        if span.begin not in (0, self._held[slot]):
            raise ValueError(
                f"{self._held[slot]} tokens of {span.request} are there; it goes on at {span.begin}"
            )
        self._held[slot] = span.end
        return slot

    def release(self, request: int) -> None:
        """Let a sequence go, if it is there: a worker that was started again has none of those before."""
        if request not in self._slots:
            return
        slot, last = self._slots.pop(request), len(self._requests) - 1
        moved, held = self._requests.pop(), self._held.pop()
        if slot == last:
            return
        self.keys[:, slot, :, :held] = self.keys[:, last, :, :held]
        self.values[:, slot, :, :held] = self.values[:, last, :, :held]
        self._requests[slot], self._held[slot], self._slots[moved] = moved, held, slot


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a span's tokens stand: in the cache, and among the tokens of the iteration."""

    slot: int
    begin: int
    end: int
    first: int

    @property
    def rows(self) -> slice:
        """Its rows among the tokens of the iteration."""
        return slice(self.first, self.first + self.end - self.begin)


class SpanBatch:
    """The spans of an iteration, their tokens one after the other in one row.

    Parameters
    ----------
    cache
        Where their sequences stand, or are put.
    layers
        The layer of each module that attends, the first where it has several.
    """

    phase = Phase.PREFILL

    def __init__(self, spans: Sequence[Span], cache: KvCache, layers: Mapping[nn.Module, int]) -> None:
        self._cache, self._layers = cache, layers
        self._places, first = list[_Place](), 0
        for span in spans:
            self._places.append(_Place(cache.slot(span), span.begin, span.end, first))
            first += span.end - span.begin
        self._decodes = first == len(spans) == len(cache) and all(span.begin > 0 for span in spans)
        self._last = [
            place.rows.stop - 1 for span, place in zip(spans, self._places, strict=True) if span.is_last
        ]
        if self._decodes:  # in the order of the slots: the whole cache is one slice
            device = cache.keys.device
            self._order = torch.tensor([place.slot for place in self._places], device=device).argsort()
            self._ends = torch.tensor([place.end for place in self._places], device=device)[self._order]

    def positions(self, device: torch.device) -> Tensor:
        """Of the tokens, in their sequences."""
        return torch.cat([torch.arange(place.begin, place.end) for place in self._places]).to(device)

    def last_tokens(self, hidden: Tensor) -> Tensor:
        """The rows of the tokens from which a next one follows."""
        return hidden[0, self._last]

    def attended(self, module: SegmentModule, flow: Flow) -> Tensor:
        """Keys and values are put into the cache; each token attends to its sequence up to itself."""
        layer = self._layers[module]
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if self._decodes:
            return self._attended_together(keys, values, flow)
        parts = []
        for place in self._places:
            keys[place.slot, :, place.begin : place.end] = flow.key[0, :, place.rows]
            values[place.slot, :, place.begin : place.end] = flow.value[0, :, place.rows]
            own = slice(place.slot, place.slot + 1)
            parts.append(
                attention(
                    flow.query[:, :, place.rows],
                    keys[own, :, : place.end],
                    values[own, :, : place.end],
                    causal=place.begin == 0,
                    mask=_causal(place, keys.device) if place.begin > 0 else None,
                )
            )
        return joined(torch.cat(parts, dim=2))

    def _attended_together(self, keys: Tensor, values: Tensor, flow: Flow) -> Tensor:
        """All sequences of the cache, a token each, in one call."""
        order, ends = self._order, self._ends
        slots, longest = torch.arange(len(order), device=keys.device), int(ends.max())
        keys[slots, :, ends - 1] = flow.key[0, :, order].transpose(0, 1)
        values[slots, :, ends - 1] = flow.value[0, :, order].transpose(0, 1)
        seen = torch.arange(longest, device=keys.device) < ends[:, None]
        made = attention(
            flow.query[0, :, order].transpose(0, 1)[:, :, None],
            keys[: len(order), :, :longest],
            values[: len(order), :, :longest],
            mask=None if bool(seen.all()) else seen[:, None, None],
        )
        back = torch.empty_like(made)
        back[order] = made
        return joined(back.permute(2, 1, 0, 3))

    def through(self, module: CapturedModule, entering: Tensor) -> Tensor:
        """All sequences that decode pass the part together, any other by itself."""
        decoding = [place for place in self._places if place.begin > 0 and place.end == place.begin + 1]
        others = [[place] for place in self._places if place not in decoding]
        together = sorted(decoding, key=lambda place: place.slot)
        made: dict[int, Tensor] = {}  # by the row of the last token
        for places in [together, *others] if together else others:
            rows = torch.tensor([row for place in places for row in range(place.first, place.rows.stop)])
            entered = entering[0, rows.to(entering.device)].unflatten(0, (len(places), -1))
            left = module.run(entered, _Together(places, self._cache, self._layers[module]))
            left = left.reshape(len(places), -1, left.shape[-1])
            made |= {place.rows.stop - 1: one for place, one in zip(places, left, strict=True)}
        if module.answers:
            return torch.stack([made[row][-1] for row in self._last]) if self._last else made[0][:0]
        return torch.cat([made[place.rows.stop - 1] for place in self._places])[None]


class _Together:
    """Sequences that pass a part of a captured model together.

    Parameters
    ----------
    places
        As many tokens each; in the order of their slots.
    first_layer
        Of the part among the stage's.
    """

    def __init__(self, places: Sequence[_Place], cache: KvCache, first_layer: int) -> None:
        self._places, self._cache, self._first_layer = places, cache, first_layer
        self.side = None
        slots = [place.slot for place in places]
        is_slice = slots == list(range(slots[0], slots[0] + len(slots)))
        self._slots = slice(slots[0], slots[-1] + 1) if is_slice else torch.tensor(slots)
        self.tokens = places[0].end - places[0].begin
        self.longest = max(place.begin for place in places)
        self.begins = torch.tensor([place.begin for place in places], device=cache.keys.device)

    def cached(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all, as long as the longest."""
        number = self._first_layer + layer
        keys, values = self._cache.keys[number], self._cache.values[number]
        return keys[self._slots, :, : self.longest], values[self._slots, :, : self.longest]

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put the new ones where each sequence ends."""
        number = self._first_layer + layer
        for place, key, value in zip(self._places, keys, values, strict=True):
            self._cache.keys[number, place.slot, :, place.begin : place.end] = key
            self._cache.values[number, place.slot, :, place.begin : place.end] = value


def _causal(place: _Place, device: torch.device) -> Tensor:
    """Which tokens of a sequence each new one may see; shape (tokens, context)."""
    new = torch.arange(place.begin, place.end, device=device)
    return torch.arange(place.end, device=device) <= new[:, None]
