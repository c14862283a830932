"""Clock control of groups: windows of attainment, commanded changes and their delay; compiled.

Shared by the forward and the generate kernel. A command that is given at time t takes effect at
t + the device's clock-change time; until then the old clock holds and no other command is given.
"""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled
from muplan.serving.layout import Floats, Integers, Row, Rows
from muplan.serving.policies import clock_move, moved_clock
from muplan.workload import CONTROL_POLICIES

FIXED, MIAD, SLACK, FORECAST = range(len(CONTROL_POLICIES))
"""Codes of the policies, in the order in which `ControlPolicy` names them."""

LOG_COLUMNS = 4
"""Columns of the log of changes: time, stage, clock index before, clock index after."""


def windows(num_replicas: int, settings: Rows) -> Integers:
    """Counts [replica][window][completed, within limits], flat, all zero."""
    return np.zeros(num_replicas * int(settings["num_windows"][0]) * 2, dtype=np.int64)


def change_log(num_stages: int, settings: Rows) -> Floats:
    """Room for every change that can be commanded, flat."""
    return np.zeros(num_stages * int(settings["num_windows"][0]) * LOG_COLUMNS)


@compiled
def next_decision_s(settings: Row, group: Row) -> float:
    """Time of a group's next decision, seconds; infinite when there is none."""
    if group.next_window >= settings.num_windows:
        return np.inf
    return float((group.next_window + 1) * settings.window_s)


@compiled
def count_completion(
    settings: Row, counts: Integers, replica: int, completion_s: float, within: bool
) -> None:
    """Count a completed request in the window that it falls in."""
    if settings.num_windows == 0:
        return
    # A completion on the border of two windows belongs to the earlier one, whose decision follows it.
    window = int(np.ceil(completion_s / settings.window_s)) - 1
    if 0 <= window < settings.num_windows:
        place = (replica * settings.num_windows + window) * 2
        counts[place] += 1
        if within:
            counts[place + 1] += 1


@compiled
def count_rejection(settings: Row, counts: Integers, replica: int, now_s: float) -> None:
    """Count a request that is turned away because it would be late, as a miss.

    Without it a group that rejects all that it cannot serve in time would look comfortable.
    """
    if settings.num_windows == 0:
        return
    # A decision comes before arrivals and dispatches of the same time: these belong to the next window.
    window = int(np.floor(now_s / settings.window_s))
    if window < settings.num_windows:
        counts[(replica * settings.num_windows + window) * 2] += 1


@compiled
def decide(
    settings: Row, group: Row, stages: Rows, replicas: Rows, clocks_mhz: Floats, counts: Integers, log: Floats
) -> None:
    """Take a group's next decision: command other clocks for its stages, or leave them.

    Up as soon as one hosted service missed its target in the window; down when all that completed
    requests ask for it. ``clocks_mhz`` are the group's, ascending.
    """
    window = group.next_window
    now_s = next_decision_s(settings, group)
    group.next_window = window + 1
    if group.change_at_s < np.inf:
        return
    move = _wanted_move(settings, group, replicas, counts, window)
    if move == 0:
        return
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        stage.next_clock = moved_clock(
            clocks_mhz, stage.clock, stage.floor, move, settings.increase, settings.decrease_mhz
        )
    command(settings, group, stages, now_s, log)


@compiled
def command(settings: Row, group: Row, stages: Rows, now_s: float, log: Floats) -> None:
    """Give the command that the stages' next clocks are; nothing where they are the present ones."""
    for place in range(group.first_stage, group.last_stage):
        stage = stages[place]
        if stage.next_clock != stage.clock:
            row = settings.num_changes * LOG_COLUMNS
            log[row], log[row + 1] = now_s, place
            log[row + 2], log[row + 3] = stage.clock, stage.next_clock
            settings.num_changes += 1
            group.change_at_s = now_s + group.clock_change_s
            group.changed_s = now_s


@compiled
def _wanted_move(settings: Row, group: Row, replicas: Rows, counts: Integers, window: int) -> int:
    """The highest of the moves that the hosted services ask for; 0 when nothing completed."""
    move, seen = -1, False
    for replica in range(group.first_replica, group.last_replica):
        place = (replica * settings.num_windows + window) * 2
        if counts[place] > 0:
            seen = True
            target = replicas[replica].target
            move = max(move, clock_move(counts[place], counts[place + 1], target, settings.hysteresis))
    return move if seen else 0
