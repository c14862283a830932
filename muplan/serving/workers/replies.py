"""Texts of the sequences under way: prompts, and the replies to them as far as they go."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import numpy as np

from muplan.serving.realtime.backend import Iteration
from muplan.serving.workers.messages import Array


class Replies:
    """Tokens of sequences, which outlive the workers: what is lost with one is computed again from them.

    A prompt is random, the same for the same request.

    Parameters
    ----------
    vocabulary_sizes
        By service.
    """

    def __init__(self, vocabulary_sizes: Mapping[str, int]) -> None:
        self._vocabulary_sizes = vocabulary_sizes
        self.texts: dict[int, array[int]] = {}
        """Of the sequences that are not known to be complete, by request."""

    def entering(self, work: Iteration) -> Array:
        """The tokens of an iteration's spans, one after the other; shape (1, tokens)."""
        for request in work.answered:
            self.complete(request, self.texts.pop(request))
        size = self._vocabulary_sizes[work.service]
        parts = []
        for span in work.spans:
            text = self.texts.setdefault(span.request, array("q"))
            if len(text) < span.end:  # so far its prompt alone
                text.frombytes(prompt(span.request, len(text), span.end, size).tobytes())
            if span.is_last:  # a reply that was begun anew
                del text[span.end :]
            parts.append(np.array(text[span.begin : span.end], dtype=np.int64))
        return np.concatenate(parts)[None]

    def note(self, work: Iteration, tokens: Array) -> None:
        """Put the next tokens of the spans that are last to their texts."""
        last = [span.request for span in work.spans if span.is_last]
        for request, token in zip(last, tokens.tolist(), strict=True):
            self.texts[request].append(token)

    def complete(self, request: int, text: array[int]) -> None:
        """Is told the whole text of a request, prompt and reply; a plan's verdict does not ask for it."""


def prompt(request: int, begin: int, end: int, vocabulary_size: int) -> Array:
    """The tokens of a request's prompt from ``begin`` to ``end``; shape (tokens,)."""
    return np.random.default_rng(request).integers(vocabulary_size, size=end, dtype=np.int64)[begin:]
