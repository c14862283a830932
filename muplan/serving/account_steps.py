"""The simulator's energy account a step at a time, for an executor that is told when stages computed."""

from __future__ import annotations

from muplan.serving.compiled import compiled
from muplan.serving.energy import BUSY, LOADED, deposit
from muplan.serving.generate_iterations import settle_busy
from muplan.serving.layout import Floats, Rows


@compiled
def add_idle(
    settings: Rows, stages: Rows, samples_j: Floats, place: int, until_s: float, loaded_w: float
) -> None:
    """Account for a stage that was idle, at one clock, since its last account."""
    stage = stages[place]
    if until_s > stage.settled_s:
        deposit(settings[0], stage, samples_j, LOADED, stage.settled_s, until_s, loaded_w, 1.0)
        stage.settled_s = until_s


@compiled
def add_busy(
    settings: Rows, stages: Rows, samples_j: Floats, place: int, begin_s: float, end_s: float, watts: float
) -> None:
    """Account for a pass of a stage."""
    deposit(settings[0], stages[place], samples_j, BUSY, begin_s, end_s, watts, 1.0)
    stages[place].settled_s = end_s


@compiled
def add_iteration(
    settings: Rows,
    stages: Rows,
    samples_j: Floats,
    place: int,
    busy_s: float,
    busy_j: float,
    loaded_w: float,
    end_s: float,
) -> None:
    """Account for a stage's part of an iteration that began at its last account."""
    settle_busy(settings[0], stages[place], samples_j, busy_s, busy_j, loaded_w, end_s)
