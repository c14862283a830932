"""One claim or constraint that does not hold."""

from __future__ import annotations

from muplan.serde import Part

ARITHMETIC_TOLERANCE = 1e-6
"""Relative; for sums and ratios of figures that the plan itself records."""


class Violation(Part):
    """One claim of a plan, or one constraint, that does not hold."""

    constraint: str
    subject: str
    message: str
