"""A saved plan that was tampered with is caught, each kind of tampering by its own name.

If one of these fails, a wrong plan can pass CI.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muplan.verify.check import PlanVerdict, check_plan, find_plans

ROOT = Path(__file__).parent.parent
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of workloads and plans that a test may damage."""
    for name in ("workloads", "plans"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def check_edited(folder: Path, edit: Edit, plan: str = "quickstart") -> PlanVerdict:
    path = folder / "plans" / f"{plan}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return check_plan(path)


def groups(content: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = content["deployment"]["groups"]
    return found


def clock_off_the_list(content: dict[str, Any]) -> None:
    groups(content)[0]["stages"][0]["clock_mhz"] += 1


def clock_below_the_band(content: dict[str, Any]) -> None:
    groups(content)[0]["stages"][0]["clock_mhz"] = 405


def stage_over_memory(content: dict[str, Any]) -> None:
    # A batch whose working set alone exceeds the GPU's memory.
    for group in groups(content):
        for replica in group["replicas"]:
            replica["max_batch"] = 4096


def tensor_parallel_unknown(content: dict[str, Any]) -> None:
    stage = groups(content)[0]["stages"][0]
    stage["gpus"] = [stage["gpus"][0], *content["parked"][:2]]
    content["parked"] = content["parked"][2:]


def service_unplaced(content: dict[str, Any]) -> None:
    name = groups(content)[0]["replicas"][0]["service"]
    for group in groups(content):
        others = [replica for replica in group["replicas"] if replica["service"] != name]
        group["replicas"] = others
    kept = [group for group in groups(content) if group["replicas"]]
    freed = [
        gpu
        for group in groups(content)
        if not group["replicas"]
        for s in group["stages"]
        for gpu in s["gpus"]
    ]
    content["deployment"]["groups"] = kept
    content["parked"] += freed


def share_lost(content: dict[str, Any]) -> None:
    groups(content)[0]["replicas"][0]["share"] *= 0.5


def gpu_used_twice(content: dict[str, Any]) -> None:
    content["parked"].append(groups(content)[0]["stages"][0]["gpus"][0])


def cluster_lost(content: dict[str, Any]) -> None:
    ranges = groups(content)[0]["replicas"][0]["stage_clusters"][-1]
    ranges[-1][1] -= 1


def unknown_gpu(content: dict[str, Any]) -> None:
    groups(content)[0]["stages"][0]["gpus"][0] = "v100/9/9"


def unknown_service(content: dict[str, Any]) -> None:
    groups(content)[0]["replicas"][0]["service"] = "nobody"


def prediction_edited(content: dict[str, Any]) -> None:
    content["prediction"]["power_w"]["mean"] *= 0.99


def attainment_edited(content: dict[str, Any]) -> None:
    content["prediction"]["services"][0]["latency_p99_s"] *= 0.5


def saving_edited(content: dict[str, Any]) -> None:
    content["baselines"][0]["saving"] *= 2


def gap_edited(content: dict[str, Any]) -> None:
    content["solution"]["gap"] += 0.1


def device_changed(content: dict[str, Any]) -> None:
    content["provenance"]["devices"]["v100-sxm2-32gb"] = "sha256:0"


def profile_changed(content: dict[str, Any]) -> None:
    profiles = content["provenance"]["profiles"]
    profiles[next(iter(profiles))] = "sha256:0"


@pytest.mark.parametrize(
    ("edit", "constraint", "message"),
    [
        (clock_off_the_list, "clock_supported", "is not on the clock list"),
        (clock_below_the_band, "clock_supported", "outside the usable band"),
        (stage_over_memory, "memory_fits", "GB usable"),
        (stage_over_memory, "batch_profiled", "profiled are up to"),
        (tensor_parallel_unknown, "tensor_parallel_profiled", "is not profiled"),
        (service_unplaced, "demand_served", "is hosted nowhere"),
        (share_lost, "demand_served", "shares sum to"),
        (gpu_used_twice, "gpu_used_once", "more than one place"),
        (cluster_lost, "every_cluster_once", "not computed exactly once"),
        (unknown_gpu, "names_known", "has no GPU"),
        (unknown_service, "names_known", "has no service"),
        (prediction_edited, "prediction_reproduced", "the simulation with its seed gives"),
        (attainment_edited, "prediction_reproduced", "the simulation with its seed gives"),
        (saving_edited, "saving_follows", "claims a saving"),
        (gap_edited, "gap_follows", "claims a gap"),
        (device_changed, "inputs_unchanged", "device"),
        (profile_changed, "inputs_unchanged", "profile"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_tampering_is_named(edit: Edit, constraint: str, message: str, folder: Path) -> None:
    verdict = check_edited(folder, edit)
    assert not verdict.holds
    found = {violation.constraint: violation.message for violation in verdict.violations}
    assert constraint in found, found
    assert any(message in v.message for v in verdict.violations if v.constraint == constraint), found


def test_edited_workload_is_named(folder: Path) -> None:
    path = folder / "workloads" / "quickstart.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("scale: 5", "scale: 6", 1), encoding="utf-8")
    verdict = check_plan(folder / "plans" / "quickstart.json")
    assert any("workload was edited" in violation.message for violation in verdict.violations)


def test_a_comment_in_the_workload_changes_nothing(folder: Path) -> None:
    path = folder / "workloads" / "quickstart.yaml"
    path.write_text("# a note\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert check_plan(folder / "plans" / "quickstart.json").holds


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "plans").glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_plan_holds(path: Path) -> None:
    verdict = check_plan(path, profiles=ROOT / "profiles")
    assert verdict.holds, verdict.violations


def test_every_feasible_workload_ships_a_plan() -> None:
    plans = {path.stem for path in find_plans([ROOT / "plans"])}
    workloads = {path.stem for path in (ROOT / "workloads").glob("*.yaml")}
    assert plans == workloads - {"overload"}
