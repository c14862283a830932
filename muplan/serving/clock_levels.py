"""Levels of a group's clocks: grid steps from the plan's, all stages together; compiled.

What forward and generate groups share of the policies that choose a level: what is observed between two
decisions, and how a level is commanded.
"""

from __future__ import annotations

from muplan.serving.clock_policies import learned_price, smoothed_rate
from muplan.serving.compiled import compiled
from muplan.serving.control import command
from muplan.serving.layout import Floats, Integers, Row, Rows


@compiled
def lowest_level(group: Row, stages: Rows) -> int:
    """The level at which the last stage comes to the lowest clock."""
    level = 0
    for place in range(group.first_stage, group.last_stage):
        level = min(level, -stages[place].floor)
    return int(level)


@compiled
def highest_level(group: Row, stages: Rows) -> int:
    """The level at which the last stage comes to the highest clock."""
    level = 0
    for place in range(group.first_stage, group.last_stage):
        level = max(level, group.num_clocks - 1 - stages[place].floor)
    return int(level)


@compiled
def clock_at(group: Row, stage: Row, level: int) -> int:
    """Index of a stage's clock at a level."""
    return int(min(max(stage.floor + level, 0), group.num_clocks - 1))


@compiled
def observe(settings: Row, group: Row, replicas: Rows, counts: Integers) -> None:
    """Learn from the period that ends with the group's next decision: rates of arrivals, prices of misses."""
    for place in range(group.first_replica, group.last_replica):
        replica = replicas[place]
        replica.rate_rps = smoothed_rate(replica.rate_rps, replica.num_arrived, settings.window_s)
        replica.num_arrived = 0
        row = (place * settings.num_windows + group.next_window) * 2
        replica.num_seen += counts[row]
        replica.price = learned_price(
            replica.price, counts[row], counts[row + 1], replica.target, replica.num_seen
        )


@compiled
def command_level(settings: Row, group: Row, stages: Rows, level: int, now_s: float, log: Floats) -> None:
    """Command the clocks of a level."""
    if level == group.level:
        return
    group.level = level
    for place in range(group.first_stage, group.last_stage):
        stages[place].next_clock = clock_at(group, stages[place], level)
    command(settings, group, stages, now_s, log)
