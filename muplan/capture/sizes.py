"""Exact polynomials in the sizes of a pass, found from their values at a few sizes.

Every number of a traced pass (a dimension, an argument, a count of operations or bytes) is taken to be a
polynomial of the family that a `Grid` states. Its coefficients solve a square linear system over the
fractions, so they are exact; a further size, held out, tells whether the family was the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from muplan.model.graph import Monomial, Polynomial

Exponents = tuple[int, int, int]
"""Of batch, tokens and context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A pass: ``batch`` sequences of ``tokens`` new tokens that attend to ``context`` tokens."""

    batch: int
    tokens: int
    context: int

    @property
    def past(self) -> int:
        """Tokens of each sequence that are in the cache before the pass."""
        return self.context - self.tokens

    def power(self, exponents: Exponents) -> int:
        """Return the value of a monomial."""
        batch, tokens, context = exponents
        return int(self.batch**batch * self.tokens**tokens * self.context**context)


@dataclass(frozen=True, slots=True)
class Extent:
    """A polynomial with exact coefficients, negative ones among them."""

    terms: tuple[tuple[Exponents, Fraction], ...]

    def __call__(self, sizes: Sizes) -> int:
        """Evaluate; the value is a whole number wherever it is a dimension or an argument."""
        return int(sum(coefficient * sizes.power(exponents) for exponents, coefficient in self.terms))

    def to_polynomial(self) -> Polynomial:
        """Return the polynomial of a graph; terms below zero are left out, which rounds up."""
        return Polynomial(
            terms=tuple(
                Monomial(coefficient=float(coefficient), batch=b, tokens=t, context=c)
                for (b, t, c), coefficient in self.terms
                if coefficient > 0
            )
        )


class NotPolynomialError(Exception):
    """Values that no polynomial of the grid's family takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A family of polynomials, the sizes that determine one, and a size to check it at.

    Parameters
    ----------
    monomials, points
        As many of the one as of the other; the monomials are independent at the points.
    held_out
        A size that is not among the points.
    """

    monomials: tuple[Exponents, ...]
    points: tuple[Sizes, ...]
    held_out: Sizes
    _known: dict[tuple[int, ...], Extent] = field(default_factory=dict)
    _inverse: list[list[Fraction]] = field(default_factory=list)

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """Every size at which a pass is traced, the held-out one last."""
        return (*self.points, self.held_out)

    def fit(self, values: Sequence[int]) -> Extent:
        """Return the polynomial that takes the values at `sizes`.

        Raises
        ------
        NotPolynomialError
            It misses the held-out one.
        """
        key = tuple(int(value) for value in values)
        if key not in self._known:
            self._known[key] = self._solve(key)
        return self._known[key]

    def _solve(self, values: tuple[int, ...]) -> Extent:
        if not self._inverse:
            rows = [[sizes.power(monomial) for monomial in self.monomials] for sizes in self.points]
            self._inverse.extend(_invert(rows))
        *inner, held_out = values
        coefficients = [
            sum((a * v for a, v in zip(row, inner, strict=True)), Fraction(0)) for row in self._inverse
        ]
        extent = Extent(
            tuple(
                (monomial, coefficient)
                for monomial, coefficient in zip(self.monomials, coefficients, strict=True)
                if coefficient
            )
        )
        if extent(self.held_out) != held_out:
            raise NotPolynomialError
        return extent


def _invert(rows: list[list[int]]) -> list[list[Fraction]]:
    """Invert a square matrix of whole numbers by Gauss–Jordan elimination."""
    size = len(rows)
    work = [
        [Fraction(value) for value in row] + [Fraction(int(i == j)) for j in range(size)]
        for i, row in enumerate(rows)
    ]
    for column in range(size):
        pivot = next(row for row in range(column, size) if work[row][column])
        work[column], work[pivot] = work[pivot], work[column]
        scale = work[column][column]
        work[column] = [value / scale for value in work[column]]
        for row in range(size):
            if row != column and (factor := work[row][column]):
                work[row] = [a - factor * b for a, b in zip(work[row], work[column], strict=True)]
    return [row[size:] for row in work]


def fixed_grid() -> Grid:
    """Passes whose inputs have one size: images, windows of sound."""
    points = tuple(Sizes(batch=batch, tokens=1, context=1) for batch in (2, 3, 5))
    return Grid(monomials=((0, 0, 0), (1, 0, 0)), points=points[:2], held_out=points[2])


def forward_grid(longest: int) -> Grid:
    """Passes over whole sequences of at most ``longest`` tokens."""
    points = tuple(Sizes(batch=b, tokens=t, context=t) for b in (2, 3) for t in (5, 8, 12))
    last = max(6, min(longest, 40))
    monomials = tuple((b, t, 0) for b in (0, 1) for t in (0, 1, 2))
    return Grid(monomials=monomials, points=points, held_out=Sizes(batch=4, tokens=last, context=last))


def generate_grid(longest: int) -> Grid:
    """Passes of new tokens after cached ones, of at most ``longest`` tokens in all."""
    pairs = ((3, 7), (3, 12), (5, 9), (5, 16))
    points = tuple(Sizes(batch=b, tokens=t, context=c) for b in (2, 3) for t, c in pairs)
    monomials = tuple((b, t, c) for b in (0, 1) for t in (0, 1) for c in (0, 1))
    last = max(18, min(longest, 40))
    return Grid(monomials=monomials, points=points, held_out=Sizes(batch=4, tokens=6, context=last))
