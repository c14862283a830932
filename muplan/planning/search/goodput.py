"""Local search for goodput under simulation: placements changed move by move, raced on training traces.

A changed placement is simulated on one trace, then on twice as many as long as it keeps ahead of the
incumbent on the same traces (common random numbers). It takes the incumbent's place where it is ahead on
all by more than chance would have it: a search that believes every gain learns its traces by heart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from muplan.planning.search.placement import Placement, Site
from muplan.planning.search.reshaping import MOVES, Draw
from muplan.planning.search.scoring import Score, Scorer, sum_scores

_CONFIDENCE = 1.0
"""Standard errors by which a change must be ahead."""
_LEAST_GAIN = 1e-5
_DRAW_COST = 2000
"""What a move costs that is not simulated, in requests: about as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A placement with its score on all traces."""

    placement: Placement
    score: Score


def best_of(scorer: Scorer, placements: Iterable[Placement], most: int) -> list[Scored]:
    """Of placements with the same forms of groups the best on one trace; of these the best, best first."""
    found: dict[tuple[int, ...], tuple[float, Placement]] = {}
    for placement in dict.fromkeys(placements):
        forms = tuple(sorted(host.shape for host in placement))
        share = scorer.score(placement, (0,)).share
        if forms not in found or share > found[forms][0]:
            found[forms] = share, placement
    best = sorted(found.values(), key=lambda item: -item[0])[: 2 * most]
    scored = [Scored(placement=placement, score=scorer.score(placement)) for _, placement in best]
    return sorted(scored, key=lambda item: -item.score.share)[:most]


def climb_by_halves(
    site: Site, scorer: Scorer, starts: Sequence[Scored], *, budget: int, rng: np.random.Generator
) -> Scored:
    """Improve all starts, then the better half of them, and so on to the best; the budget is divided evenly.

    What begins worse may end better: forms that serve less as AlpaServe fills them may allow more moves.
    """
    alive, rounds = list(starts), len(starts).bit_length()
    for _ in range(rounds):
        each = budget // (rounds * len(alive))
        alive = [climb(site, scorer, start, budget=each, rng=rng) for start in alive]
        alive = sorted(alive, key=lambda item: -item.score.share)[: max(1, len(alive) // 2)]
    return alive[0]


def climb(site: Site, scorer: Scorer, start: Scored, *, budget: int, rng: np.random.Generator) -> Scored:
    """Improve a placement by random moves until ``budget`` requests have been simulated.

    Moves that helped are drawn more often.
    """
    best, spent_before, idle = start, scorer.num_simulated, 0
    tried, worth = {start.placement}, np.ones(len(MOVES))
    while scorer.num_simulated - spent_before + idle < budget:
        idle += _DRAW_COST
        number = int(rng.choice(len(MOVES), p=worth / worth.sum()))
        draw = Draw(site=site, rng=rng, need=best.score.missed.astype(float))
        trial = MOVES[number](best.placement, draw)
        if trial is None or trial in tried:
            continue
        tried.add(trial)
        found = race(scorer, trial, best)
        if found is not None and site.keeps_rules(trial):
            best = found
            worth[number] += 1
    return best


def race(scorer: Scorer, placement: Placement, rival: Scored) -> Scored | None:
    """Score a placement on ever more traces while it keeps ahead of a rival; None where it falls behind."""
    scores: list[Score] = []
    while (begin := len(scores) and sum(len(one.share_by_trace) for one in scores)) < scorer.num_traces:
        end = min(max(1, 2 * begin), scorer.num_traces)
        scores.append(scorer.score(placement, range(begin, end)))
        ahead = np.concatenate([one.share_by_trace for one in scores]) - rival.score.share_by_trace[:end]
        noise = float(ahead.std(ddof=1)) / np.sqrt(end) if end > 1 else 0.0
        if ahead.mean() <= (max(_CONFIDENCE * noise, _LEAST_GAIN) if end == scorer.num_traces else 0.0):
            return None
    return Scored(placement=placement, score=sum_scores(scores))
