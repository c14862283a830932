"""The kernel of foretold completions against the general one: the same times, to the last bit.

If these fail, plans of unbatched services are judged by another simulator than all others.
"""

from __future__ import annotations

import numpy as np
import pytest

from muplan.serving import foretold
from muplan.serving.case import Case
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.workload import Controller, QueueOrder, Rejection, Routing, Serving
from tests.test_serving_rejection import RNG, alpaserve_case

RULES = [
    Serving(routing=routing, rejection=rejection, overhead_s=0.011, stage_overhead=0.009)
    for routing in (Routing.LEAST_LAST_STAGE, Routing.SHORTEST_EXPECTED_COMPLETION)
    for rejection in Rejection
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: f"{rules.routing}-{rules.rejection}")
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_general_kernel(monkeypatch: pytest.MonkeyPatch, rules: Serving, seed: int) -> None:
    """Groups, times and batches equal; energy of every stage and sample to 1e-9."""
    problem, deployment, _, trace = alpaserve_case(RNG(seed))
    deployment = deployment.model_copy(update={"serving": rules})
    seen = []
    known = foretold.is_foretold

    def run(*, special: bool) -> Records:
        def choose(case: Case) -> bool:
            seen.append(known(case))
            return special

        monkeypatch.setattr(foretold, "is_foretold", choose)
        return simulate(
            problem, deployment, trace, rng=RNG(0), warm_up_s=2.0, cool_down_s=3.0, num_samples=37
        )

    one, other = run(special=True), run(special=False)
    assert seen == [True, True]
    for name in ("group", "start_s", "first_token_s", "completion_s", "batch"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for mine, theirs in zip(one.stages, other.stages, strict=True):
        assert mine.busy_s == pytest.approx(theirs.busy_s, rel=1e-9)
        assert mine.busy_j == pytest.approx(theirs.busy_j, rel=1e-9)
        assert mine.loaded_s == pytest.approx(theirs.loaded_s, rel=1e-9)
        assert mine.loaded_j == pytest.approx(theirs.loaded_j, rel=1e-9)
    for name in ("busy_w", "loaded_w"):
        mine_w, theirs_w = getattr(one.samples, name), getattr(other.samples, name)
        np.testing.assert_allclose(mine_w, theirs_w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"queue_order": QueueOrder.SJF},
        {"queue_order": QueueOrder.EDF, "rejection": Rejection.AT_DISPATCH},
        {"routing": Routing.ROUND_ROBIN},
        {"batch_timeout_s": 0.01},
        {"controller": Controller(policy="miad")},
    ],
    ids=str,
)
def test_what_is_not_foretold_is_left_to_the_general_kernel(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    """Other orders, round robin, timeouts and clock control: what comes later may matter."""
    problem, deployment, _, trace = alpaserve_case(RNG(0))
    serving = RULES[0].model_copy(update={"rejection": Rejection.NONE, **changes})
    monkeypatch.setattr(foretold, "serve", lambda *_: pytest.fail("served as foretold"))
    simulate(problem, deployment.model_copy(update={"serving": serving}), trace, rng=RNG(0))
