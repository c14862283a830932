"""Energy accounting of the simulator: exact integrals of piecewise constant power."""

from __future__ import annotations

import numpy as np

from muplan.serving.compiled import compiled, inlined
from muplan.serving.layout import Floats, Row, Rows

BUSY, LOADED = 0, 1
"""A stage computes, or is loaded and idle."""


def open_account(
    settings: Rows, stages: Rows, *, detailed: bool, num_intervals: int = 0, num_requests: int = 0
) -> Floats:
    """Return the account that the kernels add to, all zero; settings and stages learn their places in it.

    It holds power samples and, where it is ``detailed``, joules while clock changes may be under way, then
    ``num_intervals`` counts of intervals between tokens, then the times of the requests' last tokens.
    """
    num_windows = int(settings["num_windows"][0]) if detailed else 0
    first_change = 2 * int(settings["num_samples"][0])
    stages["first_change"] = first_change + np.arange(len(stages)) * num_windows
    settings["is_detailed"] = detailed
    settings["first_interval"] = first_change + len(stages) * num_windows
    settings["first_token"] = settings["first_interval"] + num_intervals
    return np.zeros(int(settings["first_token"][0]) + (num_requests if detailed else 0))


@compiled
def deposit(
    settings: Row,
    stage: Row,
    samples_j: Floats,
    kind: int,
    begin_s: float,
    end_s: float,
    watts: float,
    share: float,
) -> None:
    """Add the energy of a mean power of ``watts`` from ``begin_s`` to ``end_s``.

    Parameters
    ----------
    stage
        Its seconds and joules count within the measured period.
    samples_j
        Energy of all stages over equal parts of the whole period; 2 · samples, ``BUSY`` first. Where asked
        for there follows the energy of each stage while a change may be under way, `deposit_in_changes`.
    kind
        ``BUSY`` or ``LOADED``.
    share
        The part of that time that the stage spends in this state.
    """
    end_s = min(end_s, settings.duration_s)
    if end_s <= begin_s:
        return
    measured_s = min(end_s, settings.measured_until_s) - max(begin_s, settings.warm_up_s)
    if measured_s > 0.0:
        if kind == BUSY:
            stage.busy_j += watts * measured_s
            stage.busy_s += share * measured_s
        else:
            stage.loaded_j += watts * measured_s
            stage.loaded_s += share * measured_s
    width_s = settings.duration_s / settings.num_samples
    first = min(int(begin_s / width_s), settings.num_samples - 1)
    last = min(int(end_s / width_s), settings.num_samples - 1)
    row = kind * settings.num_samples
    if first == last:
        samples_j[row + first] += watts * (end_s - begin_s)
        return
    samples_j[row + first] += watts * ((first + 1) * width_s - begin_s)
    for sample in range(first + 1, last):
        samples_j[row + sample] += watts * width_s
    samples_j[row + last] += watts * (end_s - last * width_s)


@compiled
def deposit_in_changes(
    settings: Row, stage: Row, samples_j: Floats, begin_s: float, end_s: float, watts: float
) -> None:
    """Add what falls within the clock change that each decision may command; [stage][decision].

    Which of them did is known at the end, by the log of changes. A pass is accounted for when it begins,
    which may be long before a command that falls within it.
    """
    begin_s, end_s = max(begin_s, settings.warm_up_s), min(end_s, settings.measured_until_s)
    first = max(int((begin_s - stage.clock_change_s) / settings.window_s) - 1, 0)
    last = min(int(end_s / settings.window_s), settings.num_windows)
    for decision in range(first, last):
        command_s = (decision + 1) * settings.window_s
        inside_s = min(end_s, command_s + stage.clock_change_s) - max(begin_s, command_s)
        if inside_s > 0.0:
            samples_j[stage.first_change + decision] += watts * inside_s


@compiled
def settle_idle(
    settings: Row, group: Row, stage: Row, values: Floats, samples_j: Floats, until_s: float
) -> None:
    """Account for a stage's idle time up to ``until_s``, across a clock change if one falls in it."""
    begin_s = stage.settled_s
    if until_s <= begin_s:
        return
    change_s = min(max(group.change_at_s, begin_s), until_s)
    before_w, after_w = (
        values[stage.first_loaded + stage.clock],
        values[stage.first_loaded + stage.next_clock],
    )
    deposit(settings, stage, samples_j, LOADED, begin_s, change_s, before_w, 1.0)
    deposit(settings, stage, samples_j, LOADED, change_s, until_s, after_w, 1.0)
    if settings.is_detailed:
        deposit_in_changes(settings, stage, samples_j, begin_s, change_s, before_w)
        deposit_in_changes(settings, stage, samples_j, change_s, until_s, after_w)
    stage.settled_s = until_s


@inlined
def account_busy(
    settings: Row,
    group: Row,
    stage: Row,
    values: Floats,
    samples_j: Floats,
    begin_s: float,
    end_s: float,
    watts: float,
) -> None:
    """Account for a pass of a stage, and for the idle time before it."""
    settle_idle(settings, group, stage, values, samples_j, begin_s)
    deposit(settings, stage, samples_j, BUSY, begin_s, end_s, watts, 1.0)
    if settings.is_detailed:
        deposit_in_changes(settings, stage, samples_j, begin_s, end_s, watts)
    stage.settled_s = end_s


@compiled
def switch_clocks(
    settings: Row, group: Row, stages: Rows, values: Floats, samples_j: Floats, until_s: float
) -> bool:
    """Let a commanded clock change take effect if its time has come by ``until_s``; says whether it did."""
    if group.change_at_s > until_s or group.change_at_s == np.inf:
        return False
    for place in range(group.first_stage, group.last_stage):
        settle_idle(settings, group, stages[place], values, samples_j, group.change_at_s)
        stages[place].clock = stages[place].next_clock
    group.change_at_s = np.inf
    return True
