"""A saved plan that was tampered with is caught, each kind of tampering by its own name.

If one of these fails, a wrong plan can pass CI.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from muplan.cli.verify import format_violations
from muplan.errors import InputError
from muplan.plan import Group, Interval, Plan, Replica, Stage
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.loading import read_problem
from muplan.serde import digest, read_document
from muplan.verify.check import PlanVerdict, check_plan, find_plans
from muplan.verify.claims import check_attainment
from muplan.verify.constraints import group_within_limit
from muplan.verify.violation import Violation
from muplan.workload import Goal, Workload

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
    content["solution"]["achieved"][0]["gap"] += 0.1


def device_changed(content: dict[str, Any]) -> None:
    content["provenance"]["devices"]["v100-sxm2-32gb"] = "sha256:0"


def profile_changed(content: dict[str, Any]) -> None:
    profiles = content["provenance"]["profiles"]
    profiles[next(iter(profiles))] = "sha256:0"


def baselines(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in content["baselines"]}


def headline_edited(content: dict[str, Any]) -> None:
    # Power and saving edited together, so that they still follow from each other.
    row = baselines(content)["max-clock"]
    row["power_w"] *= 2
    row["saving"] *= 2


def attainment_of_baseline_edited(content: dict[str, Any]) -> None:
    baselines(content)["uniform-clock"].update(attainment=0.5, meets_targets=False)


def own_row_edited(content: dict[str, Any]) -> None:
    baselines(content)["plan"]["energy_per_request_j"] *= 0.9


def baseline_without_deployment(content: dict[str, Any]) -> None:
    del baselines(content)["max-clock"]["deployment"]


def baseline_left_out(content: dict[str, Any]) -> None:
    del content["baselines"][2]


def baseline_impossible(content: dict[str, Any]) -> None:
    group = baselines(content)["max-clock"]["deployment"]["groups"][0]
    group["replicas"][0]["stage_clusters"] = [[[0, 10**15]] for _ in group["stages"]]


def baseline_share_lost(content: dict[str, Any]) -> None:
    baselines(content)["max-clock"]["deployment"]["groups"][0]["replicas"][0]["share"] /= 2


def parked_nowhere(content: dict[str, Any]) -> None:
    content["parked"].append("v100/7/7")


def hosted_twice(content: dict[str, Any]) -> None:
    replica = groups(content)[0]["replicas"][0]
    replica["share"] /= 2
    groups(content)[0]["replicas"].append(dict(replica))


def renamed(content: dict[str, Any]) -> None:
    content["name"] = "other"


def objective_changed(content: dict[str, Any]) -> None:
    content["solution"]["achieved"][0].update(goal="goodput", unit="requests/s")


def little_admitted(content: dict[str, Any]) -> None:
    # A goodput plan may reject requests; a workload that asks for power serves them all.
    objective_changed(content)
    for group in groups(content):
        for replica in group["replicas"]:
            replica["share"] *= 0.02
            content["deployment"]["admitted"][replica["service"]] = 0.02


def admitted_twice_over(content: dict[str, Any]) -> None:
    content["deployment"]["admitted"][groups(content)[0]["replicas"][0]["service"]] = 2.0


def clusters_out_of_range(content: dict[str, Any]) -> None:
    groups(content)[0]["replicas"][0]["stage_clusters"] = [[[0, 10**15]]]


def clusters_negative(content: dict[str, Any]) -> None:
    groups(content)[0]["replicas"][0]["stage_clusters"] = [[[-5, -1]]]


def seed_negative(content: dict[str, Any]) -> None:
    content["prediction"]["seed"] = -1


def prediction_of_nobody(content: dict[str, Any]) -> None:
    content["prediction"]["services"][0]["service"] = "nobody"


def demand_multiplied(content: dict[str, Any]) -> None:
    content["demand_factor"] = 0.5


def goal_left_out(content: dict[str, Any]) -> None:
    content["solution"]["achieved"][0].update(goal="energy-per-request", unit="J/request")


def power_zero(content: dict[str, Any]) -> None:
    content["prediction"]["power_w"]["mean"] = 0.0


@pytest.mark.parametrize(
    ("edit", "constraint", "message"),
    [
        (headline_edited, "baseline_reproduced", "power_w: the plan records"),
        (attainment_of_baseline_edited, "baseline_reproduced", "attainment: the plan records"),
        (own_row_edited, "baseline_reproduced", "energy_per_request_j: the plan records"),
        (baseline_without_deployment, "baseline_reproduced", "without a deployment"),
        (baseline_left_out, "baselines_complete", "holds the rows"),
        (baseline_impossible, "every_cluster_once", "no clusters"),
        (baseline_share_lost, "demand_served", "shares sum to"),
        (parked_nowhere, "names_known", "is parked"),
        (hosted_twice, "service_hosted_once_per_group", "2 times"),
        (renamed, "names_known", "is named 'other'"),
        (demand_multiplied, "demand_served", "is made for 0.5 times the demand"),
        (goal_left_out, "objective_matches", "made for 'energy-per-request', the workload asks for 'power'"),
        (objective_changed, "objective_matches", "write the objective into the workload"),
        (little_admitted, "demand_served", "is admitted"),
        (admitted_twice_over, "demand_served", "no share"),
        (clusters_out_of_range, "every_cluster_once", "no clusters"),
        (clusters_negative, "every_cluster_once", "no clusters"),
        (seed_negative, "prediction_reproduced", "negative"),
        (prediction_of_nobody, "names_known", "predicts nobody"),
        (power_zero, "saving_follows", "no fleet draws"),
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


def test_a_workload_cannot_be_talked_into_goodput(folder: Path) -> None:
    """A plan that admits 2 % and calls that goodput fails against the workload, which asks for power."""
    verdict = check_edited(folder, little_admitted, plan="light")
    assert {"objective_matches", "demand_served"} <= {found.constraint for found in verdict.violations}


@pytest.mark.parametrize(("admitted", "is_due"), [(1.0, True), (0.5, False)])
def test_goodput_owes_the_target_of_what_it_admits(admitted: float, is_due: bool, folder: Path) -> None:
    """An attainment of 0.6 is too little of everything, and enough of half."""
    plan = read_document(folder / "plans" / "quickstart.json", Plan)
    problem = read_problem(folder / "workloads" / "quickstart.yaml")
    workload = problem.workload.model_copy(update={"objective": (Goal.GOODPUT,)})
    problem = replace(problem, workload=workload)
    shares = {service.name: admitted for service in problem.services}
    deployment = plan.deployment.model_copy(update={"admitted": shares})
    reached = Interval(mean=0.6, low=0.6, high=0.6)
    rows = tuple(row.model_copy(update={"attainment": reached}) for row in plan.prediction.services)
    prediction = plan.prediction.model_copy(update={"services": rows})
    plan = plan.model_copy(update={"deployment": deployment, "prediction": prediction})
    for which in ("recorded", "fresh"):
        found = [violation.constraint for violation in check_attainment(problem, plan, prediction, which)]
        assert found == (["slo_met"] * len(rows) if is_due else [])


def test_a_group_wider_than_the_workload_allows_is_named() -> None:
    """If it fails, a plan may spread models where the serving system cannot."""
    problem = read_problem(ROOT / "workloads" / "quickstart.yaml", profiles=ROOT / "profiles")
    serving = problem.workload.serving.model_copy(update={"max_group_gpus": 2})
    limited = replace(problem, workload=problem.workload.model_copy(update={"serving": serving}))
    stage = Stage(gpus=("v100/0/0", "v100/0/1", "v100/0/2", "v100/0/3"), clock_mhz=1530)
    replica = Replica(service="search", share=1.0, max_batch=1, stage_clusters=(((0, 51),),))
    group = Group(name="wide", pool="v100", stages=(stage,), replicas=(replica,))
    assert not list(group_within_limit(problem, group))
    (violation,) = group_within_limit(limited, group)
    assert "has 4 GPUs; serving.max_group_gpus allows 2" in violation.message
    shapes = {item.shape.num_gpus for item in CandidateBuilder(limited).forward_estimates}
    assert shapes == {1, 2}, "the planner offers what verify refuses, or less than is allowed"


@pytest.mark.parametrize("max_batch", [0, -1, "many"])
def test_what_no_plan_can_hold_is_bad_input(max_batch: object, folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        groups(content)[0]["replicas"][0]["max_batch"] = max_batch

    with pytest.raises(InputError, match="max_batch"):
        check_edited(folder, edit)


def test_a_broken_file_does_not_hide_the_others(folder: Path) -> None:
    """In a folder, a file that cannot be parsed is a verdict of its own; exit code 2."""
    for path in (folder / "plans").glob("*.json"):
        if path.stem != "quickstart":
            path.unlink()
    (folder / "plans" / "broken.json").write_text('{"kind": "plan", ', encoding="utf-8")
    command = [sys.executable, "-c", "from muplan.cli.main import main; main()", "verify", "plans", "--json"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    verdicts = {verdict["file"]: verdict for verdict in json.loads(run.stdout)}
    assert verdicts["quickstart.json"]["holds"] is True
    assert verdicts["broken.json"]["holds"] is False
    assert [found["constraint"] for found in verdicts["broken.json"]["violations"]] == ["readable"]


NUM_GPUS = "      num_gpus: 8\n"
MODERATION = "    demand: {rate_rps: 4}\n"
SEARCH = "    demand: {rate_rps: 7}\n"


@pytest.mark.parametrize(
    ("place", "limit", "constraint", "subject", "message"),
    [
        (
            NUM_GPUS,
            "      reserved_gpus: [v100/0/3]\n",
            "reserved_gpus",
            "group-",
            "v100/0/3, a reserved GPU",
        ),
        (NUM_GPUS, "      max_clock_mhz: 1000\n", "clocks_allowed", "group-", "allows 0 to 1000 MHz"),
        (NUM_GPUS, "      min_clock_mhz: 900\n", "clocks_allowed", "group-", "allows 900 to inf MHz"),
        (NUM_GPUS, "      node_power_cap_w: 900\n", "node_power_cap", "v100/0", "over its cap of 900.0 W"),
        (SEARCH, "    pinned_to: [v100/1]\n", "pinned", "group-", "on v100/0; it is pinned to v100/1"),
        (
            MODERATION,
            "    anti_affinity: true\n",
            "anti_affinity",
            "moderation",
            "replicas on v100/0; they must",
        ),
        (SEARCH, "    min_replicas: 6\n", "min_replicas", "search", "it must have 6 or more"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value and " " not in value else "",
)
def test_a_broken_limit_is_named(
    place: str, limit: str, constraint: str, subject: str, message: str, folder: Path
) -> None:
    """A plan that was made without a limit breaks it; it cannot be passed off as made with it."""
    path = folder / "workloads" / "quickstart.yaml"
    text = path.read_text(encoding="utf-8")
    assert place in text
    text = text.replace(place, place + limit)
    if constraint == "pinned":
        text = text.replace("num_gpus: 8", "num_gpus: 9")  # a second node
    path.write_text(text, encoding="utf-8")

    def as_if_made_with_it(content: dict[str, Any]) -> None:
        content["provenance"]["workload_digest"] = digest(read_document(path, Workload))
        if constraint == "pinned":
            content["parked"].append("v100/1/0")

    verdict = check_edited(folder, as_if_made_with_it)
    found = [item for item in verdict.violations if item.constraint == constraint]
    assert any(item.subject.startswith(subject) and message in item.message for item in found), found
    assert {item.constraint for item in verdict.violations} <= {constraint, "baseline_reproduced"}


def test_edited_workload_is_named(folder: Path) -> None:
    path = folder / "workloads" / "quickstart.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("scale: 5", "scale: 6", 1), encoding="utf-8")
    verdict = check_plan(folder / "plans" / "quickstart.json")
    assert any("workload was edited" in violation.message for violation in verdict.violations)


def test_a_comment_in_the_workload_changes_nothing(folder: Path) -> None:
    path = folder / "workloads" / "quickstart.yaml"
    path.write_text("# a note\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert check_plan(folder / "plans" / "quickstart.json").holds


def test_every_feasible_workload_ships_a_plan() -> None:
    plans = {path.stem for path in find_plans([ROOT / "plans"])}
    workloads = {path.stem for path in (ROOT / "workloads").glob("*.yaml")}
    assert plans == workloads - {"overload"}


def test_many_violations_of_one_constraint_are_counted_not_listed() -> None:
    """A plan of an older version differs in every figure: other constraints must not drown in them."""
    drifted = [
        Violation(constraint="prediction_reproduced", subject=f"figure {number}", message="differs")
        for number in range(9)
    ]
    other = Violation(constraint="fits_memory", subject="g0", message="needs more")
    lines = format_violations([PlanVerdict(plan="p", file="p.json", violations=(*drifted, other))])
    assert len(lines) == 6
    assert "prediction_reproduced[/]: 5 more" in lines[-1]
    assert any("fits_memory" in line for line in lines)
