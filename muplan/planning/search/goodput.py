"""Local search for goodput under simulation: placements changed move by move, raced on training traces.

A changed placement is simulated on one trace, then on twice as many as long as it keeps ahead of the
incumbent on the same traces (common random numbers); it takes the incumbent's place where it is ahead on
all by more than chance would have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.planning.search.placement import Placement
from muplan.planning.search.reshaping import MOVES, Draw
from muplan.planning.search.scoring import Score, Scorer
from muplan.planning.search.placement import Site

_CONFIDENCE = 1.0
"""Standard errors by which a change must be ahead."""
_LEAST_GAIN = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A placement with its score on all traces."""

    placement: Placement
    score: Score


def climb(site: Site, scorer: Scorer, start: Placement, *, budget: int, rng: np.random.Generator) -> Scored:
    """Improve a placement by random moves until ``budget`` requests have been simulated."""
    best = Scored(placement=start, score=scorer.score(start))
    last = scorer.num_simulated + budget
    tried = {start}
    credits = np.ones(len(MOVES))
    while scorer.num_simulated < last:
        draw = Draw(site=site, rng=rng, need=best.score.missed.astype(float))
        chance = credits / credits.sum()
        number = int(np.searchsorted(np.cumsum(chance), rng.random()))
        number = min(number, len(MOVES) - 1)
        trial = MOVES[number](best.placement, draw)
        scorer.num_simulated += 2000
        if trial is None or trial in tried:
            continue
        tried.add(trial)
        found = race(scorer, trial, best)
        if found is not None:
            best = found
            credits[number] += 1
    return best


def race(scorer: Scorer, placement: Placement, rival: Scored) -> Scored | None:
    """Score a placement on ever more traces while it keeps ahead of a rival; None where it falls behind."""
    begin, scores = 0, []
    while begin < scorer.num_traces:
        end = min(max(1, 2 * begin), scorer.num_traces)
        scores.append(scorer.score(placement, range(begin, end)))
        ahead = np.concatenate([one.share_by_trace for one in scores]) - rival.score.share_by_trace[:end]
        noise = float(ahead.std(ddof=1)) / np.sqrt(end) if end > 1 else 0.0
        if ahead.mean() <= (max(_CONFIDENCE * noise, _LEAST_GAIN) if end == scorer.num_traces else 0.0):
            return None
        begin = end
    return Scored(placement=placement, score=sum_scores(scores))


def sum_scores(scores: Sequence[Score]) -> Score:
    """The score over the traces of several."""
    return Score(
        offered=np.sum([one.offered for one in scores], axis=0),
        in_time=np.sum([one.in_time for one in scores], axis=0),
        served=np.sum([one.served for one in scores], axis=0),
        share_by_trace=np.concatenate([one.share_by_trace for one in scores]),
    )
