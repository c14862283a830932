"""Token lengths of generate requests: joint quantiles of prompt and reply.

A distribution is kept as facts, not as requests: quantiles of the input length, and quantiles of the
output length within strata of equal probability along the input length. Between its quantiles a
length is uniform, so a sample needs two uniform numbers and every mean is exact.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from muplan.errors import InputError
from muplan.serde import Document, parse_document, read_document

Floats = NDArray[np.float64]
Tokens = NDArray[np.int32]

_SUFFIXES = (".yaml", ".yml", ".json")
_TAIL = (0.98, 0.99, 0.995, 0.998)
_FORTIETHS = tuple(round(0.025 * step, 3) for step in range(1, 40))
_INPUT_PROBABILITIES = (0.0, 0.005, 0.01, 0.02, *_FORTIETHS, *_TAIL, 0.9995, 1.0)
_TENTHS = tuple(round(0.1 * step, 1) for step in range(1, 10))
_OUTPUT_PROBABILITIES = (0.0, 0.02, 0.05, *_TENTHS[:-1], 0.85, 0.9, 0.925, 0.95, 0.97, *_TAIL, 0.999, 1.0)


class LengthDistribution(Document):
    """Joint distribution of the prompt and reply lengths of a generate service.

    Parameters
    ----------
    source
        Where the quantiles come from, and under which licence.
    num_requests, rate_rps, cv
        The record behind the quantiles: its requests, their mean rate, and the coefficient of
        variation of their inter-arrival times.
    input_probabilities, input_tokens
        Quantiles of the input length, tokens; probabilities ascend from 0 to 1.
    output_probabilities, output_tokens
        Quantiles of the output length, tokens, one row for each stratum of the input length; the
        strata are of equal probability, shortest inputs first.
    context_limit
        Longest prompt and reply together, tokens. A prompt that would leave no room for its reply
        is shortened (its oldest tokens dropped), as chat servers do. No limit where absent.
    """

    KIND: ClassVar[str] = "lengths"

    kind: Literal["lengths"] = "lengths"
    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    source: str = Field(min_length=1)
    num_requests: int = Field(ge=1)
    rate_rps: float | None = Field(default=None, gt=0)
    cv: float | None = Field(default=None, gt=0)
    input_probabilities: tuple[float, ...] = Field(min_length=2)
    input_tokens: tuple[int, ...]
    output_probabilities: tuple[float, ...] = Field(min_length=2)
    output_tokens: tuple[tuple[int, ...], ...] = Field(min_length=1)
    context_limit: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _are_quantiles(self) -> Self:
        _check_quantiles("input", self.input_probabilities, self.input_tokens)
        for index, row in enumerate(self.output_tokens):
            _check_quantiles(f"output_tokens[{index}]", self.output_probabilities, row)
        return self

    def limited_to(self, context_limit: int) -> LengthDistribution:
        """Return the distribution for a model whose context holds ``context_limit`` tokens.

        A distribution whose longest request fits is returned as it is.

        Raises
        ------
        InputError
            The limit leaves no room for a prompt and a reply of one token each.
        """
        if context_limit < 2:
            raise InputError(
                f"A context of {context_limit} tokens holds no prompt and reply.", "Choose a longer context."
            )
        if self.max_context <= context_limit:
            return self
        return self.model_copy(update={"context_limit": context_limit})

    def sample(self, num_requests: int, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """Draw requests.

        Returns
        -------
        input_tokens, output_tokens
            Tokens, at least 1; both int32 of shape (num_requests,).
        """
        position, height = rng.random((2, num_requests))
        inputs = _rounded(np.interp(position, self.input_probabilities, self.input_tokens))
        stratum = (position * len(self.output_tokens)).astype(np.intp)
        outputs = np.empty(num_requests, dtype=np.int32)
        for index, row in enumerate(self.output_tokens):
            members = stratum == index
            outputs[members] = _rounded(np.interp(height[members], self.output_probabilities, row))
        if self.context_limit is None:
            return inputs, outputs
        outputs = np.minimum(outputs, self.context_limit - 1).astype(np.int32)
        return np.minimum(inputs, self.context_limit - outputs).astype(np.int32), outputs

    @property
    def mean_input_tokens(self) -> float:
        """Mean input length, tokens; exact."""
        if self.context_limit is None:
            return _mean(self.input_probabilities, self.input_tokens)
        return float(np.mean([self._limited_input_mean(index) for index in range(len(self.output_tokens))]))

    @property
    def mean_output_tokens(self) -> float:
        """Mean output length, tokens; exact."""
        if self.context_limit is None:
            return float(np.mean([_mean(self.output_probabilities, row) for row in self.output_tokens]))
        return float(np.mean([self._output_reaches(index).sum() for index in range(len(self.output_tokens))]))

    @property
    def max_input_tokens(self) -> int:
        """Longest prompt that can be drawn, tokens."""
        longest = self.input_tokens[-1]
        return longest if self.context_limit is None else min(longest, self.context_limit - 1)

    @property
    def max_context(self) -> int:
        """Longest prompt and reply together that can be drawn, tokens."""
        num_strata = len(self.output_tokens)
        ends = np.arange(1, num_strata + 1) / num_strata
        longest = _rounded(np.interp(ends, self.input_probabilities, self.input_tokens))
        context = max(int(length) + row[-1] for length, row in zip(longest, self.output_tokens, strict=True))
        return context if self.context_limit is None else min(context, self.context_limit)

    def _output_reaches(self, stratum: int) -> Floats:
        """Probability that a limited output is at least 1, 2, …, context_limit − 1 tokens."""
        lengths = np.arange(1, self._limit)
        return _reaches(self.output_probabilities, self.output_tokens[stratum], lengths)

    def _limited_input_mean(self, stratum: int) -> float:
        """Mean of min(input, limit − output) in a stratum: Σ over k of P(input ≥ k) P(output ≤ limit − k)."""
        num_strata = len(self.output_tokens)
        low, high = stratum / num_strata, (stratum + 1) / num_strata
        inner = [p for p in self.input_probabilities if low < p < high]
        probabilities = np.array([low, *inner, high])
        tokens = np.interp(probabilities, self.input_probabilities, self.input_tokens)
        lengths = np.arange(1, self._limit)
        input_reaches = _reaches((probabilities - low) * num_strata, tokens, lengths)
        # P(output > limit − k) for k = limit − 1, …, 1; no output exceeds limit − 1, for it is cut there.
        output_exceeds = np.append(self._output_reaches(stratum)[1:], 0.0)
        return float((input_reaches * (1.0 - output_exceeds[::-1])).sum())

    @property
    def _limit(self) -> int:
        if self.context_limit is None:
            raise ValueError("the distribution has no context limit")
        return self.context_limit


def fit_lengths(
    input_tokens: ArrayLike, output_tokens: ArrayLike, *, name: str, source: str, num_strata: int = 10
) -> LengthDistribution:
    """Derive the quantiles of recorded requests.

    Parameters
    ----------
    input_tokens, output_tokens
        Tokens of each request; shape (requests,).
    name, source
        The distribution's name, and where the record comes from.
    num_strata
        Strata of the input length, of equally many requests; equal lengths keep their order.

    Raises
    ------
    InputError
        There are fewer than ten requests for each stratum, or a length below 1.
    """
    inputs, outputs = np.asarray(input_tokens), np.asarray(output_tokens)
    if len(inputs) != len(outputs) or len(inputs) < 10 * num_strata:
        raise InputError(
            f"{len(inputs)} input and {len(outputs)} output lengths are too few for {num_strata} strata.",
            "Give at least ten requests for each stratum, with both lengths.",
        )
    if min(inputs.min(), outputs.min()) < 1:
        raise InputError("A request has a length below 1 token.", "Remove requests without prompt or reply.")
    strata = np.array_split(np.argsort(inputs, kind="stable"), num_strata)
    return LengthDistribution(
        name=name,
        source=source,
        num_requests=len(inputs),
        input_probabilities=_INPUT_PROBABILITIES,
        input_tokens=_quantiles(inputs, _INPUT_PROBABILITIES),
        output_probabilities=_OUTPUT_PROBABILITIES,
        output_tokens=tuple(_quantiles(outputs[members], _OUTPUT_PROBABILITIES) for members in strata),
    )


def lengths_names() -> tuple[str, ...]:
    """Names of the shipped length distributions, sorted."""
    folder = files("muplan.traces") / "length_distributions"
    names = [entry.name for entry in folder.iterdir() if entry.name.endswith(".json")]
    return tuple(sorted(name.removesuffix(".json") for name in names))


def load_lengths(name_or_path: str | Path, base: Path = Path()) -> LengthDistribution:
    """Load a shipped length distribution by name, or a file by its path.

    Parameters
    ----------
    name_or_path
        A name of `lengths_names`, or a path that ends in .yaml, .yml or .json.
    base
        The folder that a relative path starts from.

    Raises
    ------
    InputError
        There is no such distribution, or the file has faults.
    """
    name = str(name_or_path)
    if name in lengths_names():
        return _shipped_lengths(name)
    if name.endswith(_SUFFIXES):
        return read_document(base / name, LengthDistribution)
    near = difflib.get_close_matches(name, lengths_names(), n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise InputError(
        f"There is no length distribution {name!r}.",
        f"{hint}Shipped distributions: {', '.join(lengths_names())}. To use your own, name its file (.json).",
    )


@cache
def _shipped_lengths(name: str) -> LengthDistribution:
    resource = files("muplan.traces") / "length_distributions" / f"{name}.json"
    file = f"length_distributions/{name}.json"
    return parse_document(resource.read_text(encoding="utf-8"), LengthDistribution, file=file)


def _check_quantiles(name: str, probabilities: tuple[float, ...], tokens: tuple[int, ...]) -> None:
    if len(probabilities) != len(tokens):
        raise ValueError(f"{name}: {len(tokens)} quantiles for {len(probabilities)} probabilities")
    if probabilities[0] != 0.0 or probabilities[-1] != 1.0:
        raise ValueError(f"{name}: the probabilities must run from 0 to 1")
    if any(low >= high for low, high in pairwise(probabilities)):
        raise ValueError(f"{name}: the probabilities must ascend")
    if tokens[0] < 1 or any(low > high for low, high in pairwise(tokens)):
        raise ValueError(f"{name}: the quantiles must be at least 1 token and must not fall")


def _quantiles(tokens: NDArray[np.int_], probabilities: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(value) for value in _rounded(np.quantile(tokens, probabilities)))


def _rounded(lengths: Floats) -> Tokens:
    return np.floor(lengths + 0.5).astype(np.int32)


def _mean(probabilities: tuple[float, ...], tokens: tuple[int, ...]) -> float:
    """Mean of a length drawn from its quantiles and rounded.

    A trapezoid for each pair of quantiles; rounding leaves it as it is, for between two whole
    numbers as much is rounded up as down.
    """
    widths = np.diff(probabilities)
    return float((widths * (np.array(tokens[:-1]) + np.array(tokens[1:]))).sum() / 2.0)


def _reaches(
    probabilities: Sequence[float] | Floats, tokens: Sequence[int] | Floats, lengths: NDArray[np.int_]
) -> Floats:
    """Probability that a rounded length is at least each of ``lengths``."""
    return np.asarray(1.0 - np.interp(lengths - 0.5, np.asarray(tokens, dtype=float), probabilities))
