"""Progress: where a search stands, told to whoever watches it. It changes no result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from muplan.planning.solvers.solver import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a search does now.

    Parameters
    ----------
    phase
        In a word or two.
    scope
        What it does that for, from the widest to the narrowest: method, point of a frontier, clock.
    number, total
        Which of how many, counted from 1; 0 where it is not counted.
    solver
        How far the solver of the stated model is, while one runs.
    """

    phase: str
    scope: tuple[str, ...] = ()
    number: int = 0
    total: int = 0
    solver: Progress | None = None


Report = Callable[[Step], None]


def silent(step: Step) -> None:
    """Tell nobody."""
    del step
