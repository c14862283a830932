"""Sets of demands that conflict, from each of which none can be left out.

A set is found by a deletion filter (Chinneck and Dravnieks, 1991) that leaves out as many demands at
once as it can, as QuickXplain does (Junker, 2004): what can go while the rest stays infeasible, goes.
What is left is minimal if leaving out a demand never makes anything infeasible. Sets that share no
service are separate conflicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muplan.planning.explain.demands import Demand, demands_of, without
from muplan.planning.explain.feasibility import Answer
from muplan.problem.problem import Problem

_MOST_SETS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimalSet:
    """A conflicting set; minimal where every smaller one was found feasible, rather than unknown."""

    demands: tuple[Demand, ...]
    is_minimal: bool


def find_sets(
    problem: Problem, order: Sequence[str], answer: Callable[[Problem], Answer], *, is_monotone: bool
) -> list[MinimalSet]:
    """Conflicting sets of a problem's demands that share no service; none where it is not infeasible.

    Parameters
    ----------
    order
        Services in the order in which they are left out if possible; limits come before them.
    is_monotone
        Whether leaving out a demand surely never makes ``answer`` worse. If not, a set is called minimal
        only where it was asked about without every single demand.
    """
    everything = demands_of(problem)
    left = sorted(everything, key=lambda item: order.index(item.subject) if item.is_service else -1)
    found: list[MinimalSet] = []

    def judge(kept: Sequence[Demand]) -> Answer:
        return answer(without(problem, (item for item in everything if item not in kept)))

    while left and len(found) < _MOST_SETS and judge(left) is Answer.INFEASIBLE:
        smallest = _minimal(left, judge)
        found.append(smallest if is_monotone else _checked(smallest.demands, judge))
        taken = [item for item in found[-1].demands if item.is_service] or list(found[-1].demands)
        left = [item for item in left if item not in taken]
    return found


def _minimal(demands: Sequence[Demand], judge: Callable[[Sequence[Demand]], Answer]) -> MinimalSet:
    """Shrink an infeasible list of demands from its front until none can be left out.

    As many go at once as may, found by doubling and halving; the next one is needed.
    """
    needed: list[Demand] = []
    left = list(demands)
    is_minimal = True
    while left:
        gone, answer = _most_dropped(needed, left, judge)
        if gone == len(left):
            break
        is_minimal &= answer is Answer.FEASIBLE
        needed.append(left[gone])
        left = left[gone + 1 :]
    return MinimalSet(demands=tuple(needed), is_minimal=is_minimal)


def _checked(demands: Sequence[Demand], judge: Callable[[Sequence[Demand]], Answer]) -> MinimalSet:
    """The set, called minimal only where it is feasible without each demand."""
    is_minimal = all(
        judge([item for item in demands if item is not one]) is Answer.FEASIBLE for one in demands
    )
    return MinimalSet(demands=tuple(demands), is_minimal=is_minimal)


def _most_dropped(
    needed: Sequence[Demand], left: Sequence[Demand], judge: Callable[[Sequence[Demand]], Answer]
) -> tuple[int, Answer]:
    """How many of ``left`` can go from its front, the rest infeasible still, and the answer to one more."""
    low, high, answer = 0, len(left) + 1, Answer.UNKNOWN
    while high - low > 1:
        is_bounded = high <= len(left)
        tried = (low + high) // 2 if is_bounded else min(max(1, 2 * low), len(left))
        found = judge([*needed, *left[tried:]])
        if found is Answer.INFEASIBLE:
            low = tried
        else:
            high, answer = tried, found
    return low, answer
