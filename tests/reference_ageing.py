"""Bounded waiting, written for reading: lists in place of counts, every figure computed anew.

It shares with muplan the semantics of docs/mathematics.md and nothing else.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

LEAST_WAIT_S, BIN_WIDTH = 0.001, 0.02
BEYOND, SPARED, LAST_MULTIPLE, PACE_MEMORY = 0.01, 0.009, 5.0, 0.99


def bin_of(wait_s: float) -> int:
    return 0 if wait_s <= LEAST_WAIT_S else int(math.log(wait_s / LEAST_WAIT_S) / BIN_WIDTH) + 1


@dataclass
class Arrived:
    number: int
    queued_s: float
    weight: float
    begins_at_work: float
    met_work: float


@dataclass
class Ageing:
    """Which of a group's waiting requests is due, and the limit it is due by."""

    wait_cap: float
    waiting: dict[int, Arrived] = field(default_factory=dict)
    virtual: list[Arrived] = field(default_factory=list)
    queued: dict[int, float] = field(default_factory=dict)
    spared: list[int] = field(default_factory=list)
    foretold: list[int] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    arrived_work: float = 0.0
    begun_work: float = 0.0
    paced_s: float = 0.0
    paced_work: float = 0.0

    def limit_s(self) -> float:
        if not self.foretold:
            return 0.0
        number = self.foretold[-1 - math.floor(BEYOND * len(self.foretold))]  # the foretold are sorted
        return self.wait_cap * LEAST_WAIT_S * math.exp(BIN_WIDTH * (number - 0.5)) if number else 0.0

    def come(self, number: int, queued_s: float, weight: float) -> None:
        """A request is queued for the first time."""
        if not self.queued:
            self.virtual.clear()
        met = sum(one.weight for one in self.waiting.values())
        foretold_s = met * self.paced_s / self.paced_work if self.paced_work else 0.0
        bisect.insort(self.foretold, bin_of(foretold_s))
        one = Arrived(number, queued_s, weight, self.begun_work + met, met)
        self.waiting[number] = one
        self.virtual.append(one)
        self.queued[number] = queued_s

    def come_again(self, number: int, queued_s: float) -> None:
        """A request is queued that has begun before."""
        self.queued[number] = queued_s

    def begin(self, number: int, now_s: float) -> None:
        """A request leaves the queue."""
        del self.queued[number]
        if number in self.spared:
            self.spared.remove(number)
        if number not in self.waiting:
            return
        while self.virtual and self.virtual[0].begins_at_work <= self.begun_work + 1e-6:
            first = self.virtual.pop(0)
            begun = first.met_work + self.begun_work - first.begins_at_work
            self.paced_s = PACE_MEMORY * self.paced_s + begun * (now_s - first.queued_s)
            self.paced_work = PACE_MEMORY * self.paced_work + begun**2
        one = self.waiting.pop(number)
        self.begun_work += one.weight
        self.waits.append(bin_of(now_s - one.queued_s))

    def first_due(self, now_s: float) -> int | None:
        """The request that goes first because it is due; lets wait on those that may."""
        limit_s = self.limit_s()
        if self.spared and now_s - self.queued[self.spared[0]] > LAST_MULTIPLE * limit_s:
            return self.spared[0]
        others = sorted((at_s, number) for number, at_s in self.queued.items() if number not in self.spared)
        for at_s, number in others:
            if now_s - at_s <= limit_s:
                return None
            beyond = sum(one > bin_of(limit_s) for one in self.waits) + len(self.spared)
            if beyond + 1 > SPARED * (len(self.waits) + len(self.queued)):
                return number
            self.spared.append(number)
        return None
