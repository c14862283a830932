"""Least energy of jobs on one processor of continuous speed, by Yao, Demers and Shenker.

*A scheduling model for reduced CPU energy*, FOCS 1995: while jobs are left, the interval whose own jobs
need the highest mean speed runs at just that speed; it is cut out, and the rest is as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work that may be done between its release and its due time, seconds; in pieces."""

    release_s: float
    due_s: float
    work: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A time at one speed, work per second."""

    duration_s: float
    speed: float


def least_energy_speeds(jobs: Sequence[Job]) -> tuple[Constant, ...]:
    """The speeds of the optimal schedule, fastest first; the processor rests in what time is left.

    The schedule is optimal for every power that is convex in the speed and nothing at rest.
    """
    left = [job for job in jobs if job.work > 0.0]
    speeds = []
    while left:
        speed, begin_s, end_s = max(
            (
                sum(job.work for job in left if begin_s <= job.release_s and job.due_s <= end_s)
                / (end_s - begin_s),
                begin_s,
                end_s,
            )
            for begin_s in {job.release_s for job in left}
            for end_s in {job.due_s for job in left}
            if end_s > begin_s
        )
        speeds.append(Constant(duration_s=end_s - begin_s, speed=speed))
        left = [
            Job(
                release_s=_without(job.release_s, begin_s, end_s),
                due_s=_without(job.due_s, begin_s, end_s),
                work=job.work,
            )
            for job in left
            if not (begin_s <= job.release_s and job.due_s <= end_s)
        ]
    return tuple(speeds)


def _without(time_s: float, begin_s: float, end_s: float) -> float:
    """A time once an interval is cut out."""
    return min(time_s, begin_s) + max(time_s - end_s, 0.0)
