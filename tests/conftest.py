"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of measured data that lies beside the checkout; skips where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent: the measured data are not part of the project")
    return folder


@pytest.fixture(scope="session")
def workloads() -> Path:
    """Return the folder of the shipped workloads."""
    return ROOT / "workloads"
