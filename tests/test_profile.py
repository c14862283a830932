"""Profiles: look-ups inside their range, refusals outside it, and the ones that ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muplan.errors import InputError
from muplan.hardware.catalog import load_device
from muplan.model.catalog import load_model
from muplan.profile import Method, Phase, Profile
from muplan.profiling.analytical import make_profile
from muplan.report.profile_summary import WHOLE_MODEL, default_point, summarise_profile
from muplan.serde import digest, read_document, to_json

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def profile() -> Profile:
    return make_profile(load_model("bert-1.3b"), load_device("v100-sxm2-32gb"))


def test_lookup_meets_the_points_and_lies_between_them(profile: Profile) -> None:
    at = {"tensor_parallel": 1, "tokens": 512}
    low = profile.latency_s(Phase.FORWARD, batch=4, **at)
    high = profile.latency_s(Phase.FORWARD, batch=8, **at)
    between = profile.latency_s(Phase.FORWARD, batch=6, **at)
    width = profile.grid(Phase.FORWARD).batches.index(4), profile.grid(Phase.FORWARD).tokens.index(512)
    assert low[0, 0] == profile.cluster_types[0].tables[0].latency_s[0][0][width[0]][width[1]]
    assert ((low < between) & (between < high)).all()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"tensor_parallel": 1, "batch": 65, "tokens": 512}, "covers 1–64 batch"),
        ({"tensor_parallel": 1, "batch": 1, "tokens": 4096}, "tokens in forward"),
        ({"tensor_parallel": 3, "batch": 1, "tokens": 512}, "no tensor parallelism 3"),
    ],
)
def test_lookup_outside_is_refused(profile: Profile, where: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile.latency_s(Phase.FORWARD, **where)


def test_summary_of_the_whole_is_the_time_weighted_mean(profile: Profile) -> None:
    """Serial composition: shares add up to 1, and the whole's sensitivity is the weighted mean."""
    *rows, whole = summarise_profile(profile, Phase.FORWARD, default_point(profile, Phase.FORWARD))
    assert whole.cluster == WHOLE_MODEL
    assert sum(row.time_share for row in rows) == pytest.approx(1.0)
    mean = sum(row.time_share * row.sensitivity for row in rows)
    assert whole.sensitivity == pytest.approx(mean)
    assert np.isclose(whole.weight_bytes, sum(row.weight_bytes for row in rows))


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").rglob("*.json")), ids=lambda path: path.stem)
def test_shipped_profiles_are_current(path: Path) -> None:
    """A stale profile would make every plan that uses it wrong; make it again with ``muplan profile``."""
    shipped = read_document(path, Profile)
    if shipped.provenance.method is Method.MEASURED:
        assert to_json(shipped) == path.read_text(encoding="utf-8")
        assert shipped.provenance.model_digest == digest(load_model(path.stem))
        return
    fresh = make_profile(load_model(path.stem), load_device(path.parent.name))
    assert to_json(fresh) == path.read_text(encoding="utf-8")
    assert shipped == fresh
