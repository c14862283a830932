"""What a plan says of its limits: prices of the relaxation, and what was found by changing the workload."""

from __future__ import annotations

import pytest

from muplan.plan import MarginalValue, WhatIf
from muplan.planning.explain.reasons import prices
from muplan.planning.explain.what_ifs import in_words

GPU_PRICE = MarginalValue(constraint="gpus_available", subject="v100", value=-166.9, unit="W per GPU")


def one_more_gpu(saves_w: float) -> WhatIf:
    """What one more GPU would save."""
    return WhatIf(change="one-more-gpu", subject="v100", saves_w=saves_w, method="relaxation")


@pytest.mark.parametrize(
    ("saves_w", "expected"),
    [(12.34, "bind: one more would save 12.3 W"), (0.0, "do not bind: one more would save nothing")],
)
def test_what_a_gpu_more_saves_goes_before_its_price(saves_w: float, expected: str) -> None:
    """If it fails, a degenerate price, which only bounds what a whole GPU saves, is told as the saving."""
    (reason,) = prices([GPU_PRICE], [one_more_gpu(saves_w)])
    assert expected in reason.text
    assert "166.9" not in reason.text


def test_a_price_alone_is_told_as_a_bound() -> None:
    """If it fails, a bound passes for a saving."""
    (reason,) = prices([GPU_PRICE], [])
    assert "at most 166.9 W" in reason.text
    assert "modelled" in reason.text


def test_no_saving_is_told_as_less_than_nothing() -> None:
    """If it fails, rounding errors are printed as -0.0 W."""
    change = WhatIf(change="longer-limits", subject="all", saves_w=-1e-7, method="relaxation")
    (reason,) = in_words([change])
    assert "save 0.0 W for all services" in reason.text
