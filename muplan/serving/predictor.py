"""Prediction of output lengths for speculative shortest-job-first.

A predictor in the simulator must err as the real one does, and the scheduler must see nothing but
the prediction. The published five-class predictor (BERT on the prompts of 85,482 Vicuna-13B replies)
is given by its confusion matrix: the true length's class is turned into a predicted class with the
matrix's odds, and the scheduler sees the length that is expected where that class is predicted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from muplan.problem.problem import ResolvedService

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CLASS_QUANTILES = (0.25, 0.50, 0.75, 0.99)
"""Where the published classes divide the output lengths (42, 141, 294 and 503 tokens there)."""

CONFUSION = (
    (17290, 3290, 648, 355, 90),
    (3273, 11969, 4095, 1605, 204),
    (643, 4582, 9680, 5855, 454),
    (275, 1450, 5266, 12148, 1466),
    (14, 45, 133, 447, 205),
)
"""Published confusion matrix of the predictor: rows are true classes, columns predicted ones."""

PREDICTION_LATENCY_S = 0.0078
"""Published latency of one prediction on a GPU."""

_NUM_QUANTILE_SAMPLES = 20_000


class LengthPredictor(Protocol):
    """What the scheduler asks for the length of a reply."""

    @property
    def latency_s(self) -> float:
        """Time of one prediction; every request pays it before it is queued."""

    def predict(self, output_tokens: Integers, rng: np.random.Generator) -> Floats:
        """Return predicted lengths, tokens; shape (requests,).

        ``output_tokens`` are the true lengths, which a simulated predictor needs to err realistically.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPredictor:
    """The published five-class predictor, its classes set to a service's own lengths.

    Parameters
    ----------
    bounds
        Lengths that divide the classes, tokens, ascending; shape (4,). A length equal to a bound
        belongs to the class above it.
    representatives
        Length that stands for each class, tokens; shape (5,).
    """

    bounds: tuple[float, ...]
    representatives: tuple[float, ...]
    latency_s: float = PREDICTION_LATENCY_S

    def predict(self, output_tokens: Integers, rng: np.random.Generator) -> Floats:
        """Draw the predicted class of every request from its true class's row of the matrix."""
        odds = np.array(CONFUSION, dtype=np.float64)
        cumulative = np.cumsum(odds / odds.sum(axis=1, keepdims=True), axis=1)
        true_class = np.searchsorted(self.bounds, output_tokens, side="right")
        height = rng.random(len(output_tokens))
        predicted = (height[:, None] >= cumulative[true_class, :-1]).sum(axis=1)
        return np.asarray(np.asarray(self.representatives)[predicted])


def fitted_predictor(lengths: NDArray[np.integer], bounds: tuple[float, ...] | None = None) -> ClassPredictor:
    """Return the published predictor fitted to output lengths, tokens; shape (requests,).

    The classes divide the lengths at the published quantiles, unless ``bounds`` are given, so that each class
    holds the same share of requests as there. A predicted class stands for the mean length of the requests
    that it is predicted for, by the confusion matrix: right on average, so that predicted work adds up. The
    predictor is assumed to err as often as the published one.
    """
    bounds = bounds or tuple(float(bound) for bound in np.quantile(lengths, CLASS_QUANTILES))
    true_class = np.searchsorted(bounds, lengths, side="right")
    odds = np.array(CONFUSION, dtype=np.float64)
    odds /= odds.sum(axis=1, keepdims=True)
    predicted = np.bincount(true_class, minlength=len(odds)) @ odds
    tokens = np.bincount(true_class, weights=lengths, minlength=len(odds)) @ odds
    return ClassPredictor(
        bounds=bounds, representatives=tuple(float(length) for length in tokens / predicted)
    )


def class_predictor(service: ResolvedService) -> ClassPredictor:
    """Return the published predictor fitted to a service's output lengths."""
    if service.trace is not None:
        return fitted_predictor(service.trace.output_tokens)
    if service.lengths is not None:
        _, lengths = service.lengths.sample(_NUM_QUANTILE_SAMPLES, np.random.default_rng(0))
        return fitted_predictor(lengths)
    return fitted_predictor(np.array([round(service.output_tokens)]))
