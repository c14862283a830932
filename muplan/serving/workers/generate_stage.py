"""Stages of models that generate: iterations of a continuous batch. This file imports torch."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from muplan.errors import InputError
from muplan.serving.realtime.backend import Span
from muplan.serving.workers.kv_cache import KvCache, SpanBatch
from muplan.serving.workers.messages import Iterate, Order
from muplan.serving.workers.parts import Part
from muplan.serving.workers.stage import WARM_UPS, Stage


class GenerateStage(Stage):
    """A part of a model that generates, with the keys and values of its sequences.

    Room for every sequence at its longest is set aside when it is made.
    """

    def __init__(self, part: Part, device: torch.device) -> None:
        super().__init__(part, device)
        counts = [module.num_layers for module in self.segments]
        firsts = accumulate(counts, initial=0)
        self._layers = dict(zip(self.segments, firsts, strict=False))
        heads, size = _kv_shape(part, {shape for module in self.segments for shape in module.kv_shapes})
        self.cache = KvCache(
            num_layers=sum(counts),
            num_slots=part.max_batch,
            num_heads=heads,
            length=part.tokens,
            head_size=size,
            device=device,
            dtype=self.dtype,
        )

    def run(self, order: Order) -> Tensor:
        """Run an iteration; the last stage answers with the next tokens of the spans that are last."""
        assert isinstance(order, Iterate)  # noqa: S101 - so the executor sends it
        for request in order.released:
            self.cache.release(request)
        entering = torch.from_numpy(order.entering).to(self.device)
        leaving = self.iterate(entering if self.is_first else entering.to(self.dtype), order.spans)
        return leaving.argmax(dim=-1) if leaving.dim() == 2 else leaving.float()

    def iterate(self, flowing: Tensor, spans: tuple[Span, ...]) -> Tensor:
        """Run the part on the tokens of spans, one after the other in one row.

        Parameters
        ----------
        flowing
            Shape (1, tokens), beyond the first stage (1, tokens, hidden).

        Returns
        -------
        Tensor
            Shape (1, tokens, hidden); of the last stage the scores of the next tokens of the spans that are
            last, shape (spans, vocabulary).
        """
        return self.flow(flowing, SpanBatch(spans, self.cache, self._layers))

    def warm_up(self) -> None:
        """Prefill and decode one sequence and as many as there may be."""
        length = self.part.tokens
        for batch in sorted({1, self.part.max_batch}):
            for _ in range(WARM_UPS):
                for number in range(batch):
                    self._iterate_anything((Span(request=number, begin=0, end=length - 1, is_last=True),))
                self._iterate_anything(
                    tuple(
                        Span(request=number, begin=length - 1, end=length, is_last=True)
                        for number in range(batch)
                    )
                )
                for number in range(batch):
                    self.cache.release(number)

    def _iterate_anything(self, spans: tuple[Span, ...]) -> None:
        tokens = sum(span.end - span.begin for span in spans)
        size = (1, tokens) if self.is_first else (1, tokens, self.part.graph.hidden_size)
        dtype = torch.int64 if self.is_first else self.dtype
        self.iterate(torch.zeros(size, device=self.device, dtype=dtype), spans)


def make_stage(part: Part, device: torch.device) -> Stage:
    """Make a part's stage, with random weights."""
    return GenerateStage(part, device) if part.generates else Stage(part, device)


def _kv_shape(part: Part, shapes: set[tuple[int, int]]) -> tuple[int, int]:
    """Heads, and elements of each, of the keys and the values of every layer."""
    if len(shapes) > 1:
        raise InputError(
            f"Layers of {part.graph.name} keep keys and values of several sizes: workers keep one.",
            "Execute it on the simulated backend.",
        )
    return next(iter(shapes), (1, 1))
