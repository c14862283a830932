"""`muplan compare`: methods side by side on the same held-apart traces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from muplan.comparison import Comparison
from muplan.planning.compare import compare
from muplan.planning.methods.name import MethodName
from muplan.planning.solve import Planned, solve
from muplan.serde import read_document
from tests.test_cli import muplan, written
from tests.test_planning_solve import two_services

WORKLOAD = """
kind: workload
schema_version: 1
name: small
fleet: {pools: [{name: v100, device: v100-sxm2-32gb, num_gpus: 4}]}
services:
  - {name: photos, model: vit-large, slo: {scale: 5}, demand: {rate_rps: 40}}
  - {name: search, model: bert-base, slo: {scale: 5}, demand: {rate_rps: 20}}
simulation: {duration_s: 60, warm_up_s: 5, replications: 3}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with one small workload."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.yaml").write_text(WORKLOAD, encoding="utf-8")
    return folder


def test_the_first_is_what_the_others_are_held_against() -> None:
    """If it fails, a saving is not the ratio of two powers on the same requests."""
    greedy, replicate = compare(two_services(), solvers=[MethodName.GREEDY, MethodName.REPLICATE])
    assert greedy.plan.power_over_first is not None
    assert replicate.plan.power_over_first is not None
    assert replicate.plan.prediction is not None
    assert greedy.plan.prediction is not None
    one = greedy.plan.power_over_first
    assert (one.low, one.mean, one.high) == (1.0, 1.0, 1.0)
    ratio = replicate.plan.prediction.power_w.mean / greedy.plan.prediction.power_w.mean
    over = replicate.plan.power_over_first
    assert over.low < over.mean < over.high
    assert over.mean == pytest.approx(ratio, rel=1e-2)
    # Both served the same requests, so the ratio is known better than either power.
    power = replicate.plan.prediction.power_w
    assert (over.high - over.low) / over.mean < (power.high - power.low) / power.mean


def test_a_method_plans_as_it_does_alone() -> None:
    """If it fails, a method's plan depends on what it is compared with."""
    names = [MethodName.REPLICATE, MethodName.EXACT]
    compared = compare(two_services(), solvers=names)
    alone = solve(two_services(), solver=MethodName.EXACT)
    assert isinstance(alone, Planned)
    assert compared[1].plan.deployment == alone.deployment
    assert compared[1].plan.prediction == alone.prediction
    assert compared[1].plan.solution == alone.solution


def test_a_method_that_falls_short_is_shown_with_its_figures() -> None:
    """If it fails, one cannot see how far a baseline is from its targets."""
    names = [MethodName.EXACT, MethodName.REPLICATE]
    exact, replicate = compare(two_services(num_gpus=2, scale=1.9), solvers=names)
    assert exact.plan.prediction is None
    assert not replicate.plan.meets_targets
    assert replicate.plan.prediction is not None
    assert replicate.plan.margin(replicate.plan.prediction.services[0]) < -0.5
    assert replicate.plan.power_over_first is None
    assert replicate.plan.faults


def test_command_prints_and_writes_the_same(folder: Path) -> None:
    """If it fails, table, file, plot and exit code do not tell the same story."""
    arguments = ("compare", "small.yaml", "--solvers", "alpaserve,replicate", "--plot", "c.png")
    run = muplan(*arguments, "-o", "c.json", folder=folder)
    assert run.returncode == 0, run.stderr
    document = read_document(folder / "c.json", Comparison)
    replicate = document.plans[1]
    assert [plan.solver for plan in document.plans] == ["alpaserve", "replicate"]
    assert (len(replicate.placed), replicate.parked) == (4, ())
    assert document.provenance.workload == "small.yaml"
    for plan in document.plans:
        assert plan.prediction is not None
        assert f"{plan.prediction.power_w.mean:.0f} W" in run.stdout
    assert "over alpaserve" in run.stdout
    assert "Search: alpaserve " in run.stderr
    assert (folder / "c.png").stat().st_size > 1000
    assert "Search" not in run.stdout
    again = muplan(*arguments, "-o", "d.json", "--json", folder=folder)
    assert (folder / "d.json").read_bytes() == (folder / "c.json").read_bytes()
    assert json.loads(again.stdout) == json.loads((folder / "c.json").read_text(encoding="utf-8"))


def test_exit_code_is_no_where_the_first_makes_no_plan(folder: Path) -> None:
    """If it fails, a script cannot tell a plan from none."""
    (folder / "busy.yaml").write_text(WORKLOAD.replace("rate_rps: 40", "rate_rps: 4000"), encoding="utf-8")
    run = muplan("compare", "busy.yaml", "--solvers", "replicate", folder=folder)
    assert run.returncode == 1, run.stderr
    assert "missed" in run.stdout
    assert "photos attains" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--solvers", "exact,alpa"), "'alpa' is no planning method.\n\nName some of exact, greedy,"),
        (("--solvers", "exact,exact"), "names exact more than once"),
        (("--solvers", "replicate", "--plot", "c.gif"), "c.gif ends in none of .png, .svg, .pdf"),
        (("--objective", "speed"), "--objective"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options_are_named(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, folder: Path
) -> None:
    """If it fails, a misspelt option costs a search before it is refused, or is taken for another."""
    shutil.copy(folder / "small.yaml", tmp_path)
    run = muplan("compare", "small.yaml", *arguments, folder=tmp_path)
    assert run.returncode == 2
    assert expected in run.stderr
    assert written(tmp_path) == {"small.yaml"}
