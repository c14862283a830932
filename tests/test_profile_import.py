"""Profiles made of measurements from elsewhere.

If these fail, a plan is made with other latencies than the user measured, or with some that nobody measured.
"""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from muplan.cli.main import app
from muplan.errors import InputError
from muplan.hardware.catalog import load_device
from muplan.plan import Deployment, Group, Replica, Stage
from muplan.problem.loading import read_problem
from muplan.problem.problem import Problem
from muplan.profile import Method, Phase, Profile
from muplan.profiling.imported import import_profiles
from muplan.profiling.latency_table import KEYS
from muplan.serde import read_document, to_json, write_document
from muplan.serving.passes import pass_table
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.verify.constraints import check_placement
from muplan.workload import Serving

DEVICE = "v100-sxm2-16gb"
HEADER = f"{','.join(KEYS)},stage_latency_s,stage_weight_bytes_per_gpu"
ROWS = (
    "tiny,1,1,1,0.10,1000",
    "tiny,1,3,1,0.04 0.03 0.05,400 300 500",
    "tiny,2,2,1,0.02 0.04,200 301",
)


def write_table(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


def imported(folder: Path, *rows: str, header: str = HEADER, **options: float) -> Profile:
    (profile,) = import_profiles(write_table(folder, *rows, header=header), load_device(DEVICE), **options)  # type: ignore[arg-type]
    return profile


def stage_s(profile: Profile, tensor_parallel: int, num_stages: int, batch: int = 1) -> np.ndarray:
    """Latency of every stage of a measured pipeline at every clock; shape (stages, clocks)."""
    cuts = profile.measured_cuts(tensor_parallel, num_stages)
    assert cuts is not None
    tokens = profile.phases[0].tokens[0]
    latency = profile.latency_s(
        Phase.FORWARD, tensor_parallel=tensor_parallel, num_stages=num_stages, batch=batch, tokens=tokens
    )
    return np.array([latency[start:stop].sum(axis=0) for start, stop in pairwise((0, *cuts))])


def weights(profile: Profile, tensor_parallel: int, num_stages: int) -> list[int]:
    """Weights on a GPU of every stage."""
    index = profile.tensor_parallel_index(tensor_parallel, num_stages)
    held = [kind.weight_bytes_per_gpu[index] for kind in profile.cluster_types]
    cuts = profile.measured_cuts(tensor_parallel, num_stages)
    assert cuts is not None
    return [sum(held[start:stop]) for start, stop in pairwise((0, *cuts))]


def pipeline(profile: Profile, service: str, tensor_parallel: int, num_stages: int) -> Group:
    """A group on node 0 (and 1) that is cut as measured, at the highest clock."""
    gpus = [f"v100/{number // 8}/{number % 8}" for number in range(tensor_parallel * num_stages)]
    cuts = profile.measured_cuts(tensor_parallel, num_stages)
    assert cuts is not None
    return Group(
        name="g",
        pool="v100",
        stages=tuple(
            Stage(
                gpus=tuple(gpus[stage * tensor_parallel : (stage + 1) * tensor_parallel]),
                clock_mhz=profile.max_clock_mhz,
            )
            for stage in range(num_stages)
        ),
        replicas=(
            Replica(
                service=service,
                share=1.0,
                max_batch=1,
                stage_clusters=tuple(((start, stop),) for start, stop in pairwise((0, *cuts))),
            ),
        ),
    )


def read_workload(folder: Path, *models: str, profiles: Path | None, more: str = "") -> Problem:
    services = "".join(
        f"  - {{name: s{index}, model: {model}, slo: {{scale: 5}}, demand: {{rate_rps: 2}}{more}}}\n"
        for index, model in enumerate(models)
    )
    path = folder / "workload.yaml"
    path.write_text(
        "kind: workload\nschema_version: 1\nname: w\nfleet:\n  pools:\n"
        f"    - {{name: v100, device: {DEVICE}, num_gpus: 16, gpus_per_node: 8}}\n"
        f"services:\n{services}simulation: {{duration_s: 60, warm_up_s: 5, replications: 2}}\n",
        encoding="utf-8",
    )
    return read_problem(path, profiles=profiles)


def lone_request_s(problem: Problem, service: str, group: Group) -> float:
    """Latency of a request that finds the group empty."""
    names = tuple(one.name for one in problem.services)
    tokens = int(problem.service(service).input_tokens)
    trace = Trace(
        services=names,
        arrival_s=np.array([0.0]),
        service=np.array([names.index(service)], dtype=np.int32),
        input_tokens=np.array([tokens], dtype=np.int32),
        output_tokens=np.array([0], dtype=np.int32),
        duration_s=10.0,
    )
    records = simulate(
        problem,
        Deployment(groups=(group,), serving=Serving()),
        trace,
        rng=np.random.default_rng(0),
        warm_up_s=0.0,
    )
    return float(records.completion_s[0])


# --- published measurements ----------------------------------------------------------------------


def test_published_table_is_kept_to_the_last_digit(shared_data: Path, tmp_path: Path) -> None:
    """Every row of AlpaServe's table comes back: stages, weights, pass times, a simulated request."""
    path = shared_data / "published" / "alpaserve_v100_latency.csv"
    device = load_device(DEVICE)
    profiles = {profile.model: profile for profile in import_profiles(path, device, tokens=2048)}
    for model, profile in profiles.items():
        write_document(profile, tmp_path / "own" / DEVICE / f"{model}.json")
    problem = read_workload(tmp_path, *profiles, profiles=tmp_path / "own")
    names = {service.spec.model: service.name for service in problem.services}
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 69
    for row in rows:
        profile = profiles[row["model"]]
        width, stages = int(row["tensor_parallel"]), int(row["pipeline_parallel"])
        stated = [float(text) for text in row["stage_latency_s"].split()]
        assert stage_s(profile, width, stages)[:, -1] == pytest.approx(stated, rel=1e-12)
        assert weights(profile, width, stages) == list(map(int, row["stage_weight_bytes_per_gpu"].split()))
        group = pipeline(profile, names[profile.model], width, stages)
        table = pass_table(
            device, group, group.replicas[0], profile, phase=Phase.FORWARD, tokens=2048, batches=[1]
        )
        assert table.latency_s[:, -1, 0] == pytest.approx(stated, rel=1e-12)
        assert not table.transfer_s.any()
        latency = lone_request_s(problem, names[profile.model], group)
        assert latency == pytest.approx(sum(stated), rel=1e-12)


# --- what a table states, and what stands in -----------------------------------------------------


def test_stages_and_weights_come_back(tmp_path: Path) -> None:
    """Three stages on two, two stages on three clusters: whatever the numbers, sums are kept."""
    profile = imported(tmp_path, *ROWS)
    assert profile.configurations == ((1, 1), (1, 3), (2, 2))
    assert stage_s(profile, 1, 3)[:, -1] == pytest.approx([0.04, 0.03, 0.05], rel=1e-12)
    assert stage_s(profile, 2, 2)[:, -1] == pytest.approx([0.02, 0.04], rel=1e-12)
    assert weights(profile, 1, 3) == [400, 300, 500]
    assert weights(profile, 2, 2) == [200, 301]
    assert profile.provenance.method is Method.IMPORTED
    path = tmp_path / "p.json"
    write_document(profile, path)
    assert read_document(path, Profile) == profile
    assert to_json(read_document(path, Profile)) == to_json(imported(tmp_path, *ROWS))


def test_measured_clocks_and_power_are_kept(tmp_path: Path) -> None:
    """With several clocks nothing of latency and power is modelled, and no other clock is offered."""
    header = HEADER + ",clock_mhz,power_w"
    rows = (
        "m,1,1,1,0.10,1000,1530,250",
        "m,1,1,1,0.13,1000,1110,160",
        "m,1,1,2,0.18,1000,1530,260",
        "m,1,1,2,0.24,1000,1110,170",
        "m,1,2,1,0.05 0.06,500 500,1530,240 220",
        "m,1,2,1,0.07 0.08,500 500,1110,150 140",
        "m,1,2,2,0.09 0.11,500 500,1530,245",
        "m,1,2,2,0.12 0.14,500 500,1110,165",
    )
    profile = imported(tmp_path, *rows, header=header)
    assert profile.clocks_mhz == (1110, 1530)
    assert profile.phases[0].batches == (1, 2)
    assert stage_s(profile, 1, 2) == pytest.approx(np.array([[0.07, 0.05], [0.08, 0.06]]), rel=1e-12)
    assert stage_s(profile, 1, 2, batch=2) == pytest.approx(np.array([[0.12, 0.09], [0.14, 0.11]]), rel=1e-12)
    at = {"tensor_parallel": 1, "num_stages": 2, "tokens": 1}
    assert profile.power_w(Phase.FORWARD, batch=1, **at).tolist() == [[150.0, 240.0], [140.0, 220.0]]
    assert profile.power_w(Phase.FORWARD, batch=2, **at).tolist() == [[165.0, 245.0]] * 2
    assert "modelled" not in profile.provenance.description
    with pytest.raises(InputError, match="batch in forward, not 3"):
        profile.latency_s(Phase.FORWARD, batch=3, **at)


@pytest.mark.parametrize("sensitivity", [0.0, 0.4, 1.0])
def test_other_clocks_follow_the_stated_split(tmp_path: Path, sensitivity: float) -> None:
    """Above the memory's knee and below the cap: the compute share in proportion, the rest unmoved."""
    row = "m,1,1,1,0.10,1000,1290"
    profile = imported(tmp_path, row, header=HEADER + ",clock_mhz", sensitivity=sensitivity)
    latency = stage_s(profile, 1, 1)[0]
    assert latency[profile.clocks_mhz.index(1290)] == pytest.approx(0.10, rel=1e-12)
    for clock in (1050, 1132, 1207, 1372):
        expected = 0.10 * (sensitivity * 1290 / clock + 1 - sensitivity)
        assert latency[profile.clocks_mhz.index(clock)] == pytest.approx(expected, rel=1e-9)
    assert (np.diff(latency) <= 1e-15).all(), "a higher clock is never slower"
    assert f"{sensitivity:g} of the time following the clock (assumed)" in profile.provenance.description


def test_measured_power_anchors_the_modelled_one(tmp_path: Path) -> None:
    """Power passes through the measured point, rises with the clock, and stays between loaded and cap."""
    profile = imported(tmp_path, "m,1,1,1,0.1,1000,1207,140", header=HEADER + ",clock_mhz,power_w")
    device = load_device(DEVICE)
    at = {"tensor_parallel": 1, "num_stages": 1, "batch": 1, "tokens": 1}
    power = profile.power_w(Phase.FORWARD, **at)[0]
    assert power[profile.clocks_mhz.index(1207)] == 140
    assert (np.diff(power) > 0).all()
    loaded = [float(device.loaded_power_w(device.effective_clock_mhz(clock))) for clock in profile.clocks_mhz]
    assert (power > loaded).all()
    assert power.max() <= device.power_cap_w


def test_stages_of_sum_and_maximum(tmp_path: Path) -> None:
    """Where only latency and longest stage are known, both are kept, and the profile says so."""
    header = f"{','.join(KEYS)},latency_s,max_stage_latency_s,stage_weight_bytes_per_gpu"
    profile = imported(tmp_path, "m,1,4,1,0.10,0.04,5 5 5 5", header=header)
    stages = stage_s(profile, 1, 4)[:, -1]
    assert stages.sum() == pytest.approx(0.10, rel=1e-12)
    assert stages.max() == pytest.approx(0.04, rel=1e-12)
    assert "those of 1 rows derived" in profile.provenance.description


def test_weights_of_the_whole_model_are_divided_evenly(tmp_path: Path) -> None:
    rows = ("m,1,1,1,0.1,", "m,2,2,1,0.03 0.03,")
    (profile,) = import_profiles(
        write_table(tmp_path, *rows), load_device(DEVICE), weight_bytes={"m": 4_000_000}
    )
    assert weights(profile, 1, 1) == [4_000_000]
    assert weights(profile, 2, 2) == [1_000_000, 1_000_000]
    assert "divided evenly (derived)" in profile.provenance.description


def test_working_memory_is_the_largest_of_any_batch(tmp_path: Path) -> None:
    header = HEADER + ",activation_bytes_per_gpu"
    profile = imported(tmp_path, "m,1,1,1,0.1,9,640", "m,1,1,2,0.2,9,1000", header=header, tokens=8)
    assert profile.cluster_types[0].activation_bytes_per_token_per_gpu == (80,)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "line", "column", "message"),
    [
        (("tiny,1,1,1,-0.1,9",), 2, "stage_latency_s", "above 0 (found '-0.1')"),
        (("tiny,1,1,1,nan,9",), 2, "stage_latency_s", "above 0 (found 'nan')"),
        (("tiny,1,2,1,0.1,9 9",), 2, "stage_latency_s", "expected 2 numbers, one for each stage; found 1"),
        (("tiny,1,2,1,0.1 0.1,9",), 2, "stage_weight_bytes_per_gpu", "expected 2 numbers"),
        (("tiny,1,1,1,,9",), 2, "stage_latency_s", "is empty; state it, or latency_s"),
        (("tiny,0,1,1,0.1,9",), 2, "tensor_parallel", "from 1 to 1,000,000 (found '0')"),
        (("tiny,1,1.5,1,0.1,9",), 2, "pipeline_parallel", "(found '1.5')"),
        (("../x,1,1,1,0.1,9",), 2, "model", "(found '../x')"),
        (("tiny,1,1,1,0.1",), 2, "", "expected 6 fields, found 5"),
        ((ROWS[0], ROWS[0]), 3, "", "stands already in row 2"),
        (("tiny,1,1,2,0.1,9",), 2, "batch_size", "not measured at batch 1"),
        ((ROWS[0], "tiny,1,1,2,0.1,9", ROWS[1]), 4, "", "lacks batch 2 at 1530 MHz"),
        (("tiny,1,1,1,0.1,",), 2, "stage_weight_bytes_per_gpu", "--weights tiny=BYTES"),
        ((), 1, "", "no row follows"),
    ],
)
def test_wrong_rows_are_named(
    tmp_path: Path, rows: tuple[str, ...], line: int, column: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        imported(tmp_path, *rows)
    (fault,) = caught.value.faults
    assert (fault.line, fault.key) == (line, column)
    assert message in fault.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("header", "row", "column", "message"),
    [
        (HEADER + ",colour", "tiny,1,1,1,0.1,9,red", "colour", "no such column"),
        (HEADER + ",model", "tiny,1,1,1,0.1,9,tiny", "model", "stands twice"),
        (",".join(KEYS), "tiny,1,1,1", "stage_latency_s", "is required, or latency_s and"),
        (HEADER + ",latency_s", "tiny,1,2,1,0.1 0.1,9 9,0.3", "latency_s", "does not fit 2 stages"),
        (HEADER + ",clock_mhz", "tiny,1,1,1,0.1,9,405", "clock_mhz", "none of the usable clocks"),
        (HEADER + ",power_w", "tiny,1,1,1,0.1,9,350", "power_w", "at most 300 W (found 350 to 350)"),
        (HEADER + ",power_w", "tiny,1,1,1,0.1,9,30", "power_w", "draws above"),
        (
            ",".join((*KEYS, "latency_s", "max_stage_latency_s", "stage_weight_bytes_per_gpu")),
            "tiny,1,4,1,0.1,0.02,9 9 9 9",
            "max_stage_latency_s",
            "does not fit 4 stages",
        ),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, header: str, row: str, column: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        imported(tmp_path, row, header=header)
    (fault,) = caught.value.faults
    assert fault.key == column
    assert message in fault.message


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        imported(tmp_path, "tiny,1,1,1,x,9", "tiny,1,y,1,0.1,9", "tiny,1,1,1,0.1")
    assert [fault.line for fault in caught.value.faults] == [2, 3, 4]


def test_unmeasured_configurations_are_refused(tmp_path: Path) -> None:
    profile = imported(tmp_path, *ROWS)
    assert profile.covers(1, 3)
    assert not profile.covers(1, 2)
    at = {"batch": 1, "tokens": 1}
    with pytest.raises(
        InputError, match="none of tensor parallelism 1 × 2 stages; it has 1 × 1, 1 × 3, 2 × 2"
    ):
        profile.latency_s(Phase.FORWARD, tensor_parallel=1, num_stages=2, **at)
    with pytest.raises(InputError, match="1 × any number of stages"):
        profile.latency_s(Phase.FORWARD, tensor_parallel=1, **at)
    with pytest.raises(InputError, match="holds measured pipelines"):
        profile.measured_cuts(4, 1)


def test_other_cuts_are_refused_by_simulator_and_verify(tmp_path: Path) -> None:
    """The slices inside a stage were not measured; a plan that parts them claims what nobody knows."""
    profile = imported(tmp_path, *ROWS)
    write_document(profile, tmp_path / DEVICE / "tiny.json")
    problem = read_workload(tmp_path, "tiny", profiles=tmp_path)
    good = pipeline(profile, "s0", 2, 2)
    assert list(check_placement(problem, Deployment(groups=(good,), serving=Serving()))) == []
    moved = good.replicas[0].model_copy(update={"stage_clusters": (((0, 2),), ((2, 3),))})
    wrong = good.model_copy(update={"replicas": (moved,)})
    with pytest.raises(InputError, match="cut elsewhere than the measured pipelines"):
        lone_request_s(problem, "s0", wrong)
    names = {
        one.constraint for one in check_placement(problem, Deployment(groups=(wrong,), serving=Serving()))
    }
    assert names == {"cut_as_measured"}
    one = good.model_copy(
        update={
            "stages": good.stages[:1],
            "replicas": (moved.model_copy(update={"stage_clusters": (((0, 3),),)}),),
        }
    )
    names = {
        item.constraint for item in check_placement(problem, Deployment(groups=(one,), serving=Serving()))
    }
    assert names == {"tensor_parallel_profiled"}


# --- workloads -----------------------------------------------------------------------------------


def test_workload_names_a_model_of_which_only_a_profile_exists(tmp_path: Path) -> None:
    """Tokens come from the profile, and a scale counts in the smallest configuration's latency."""
    write_document(imported(tmp_path, *ROWS, tokens=77), tmp_path / DEVICE / "tiny.json")
    service = read_workload(tmp_path, "tiny", profiles=tmp_path).services[0]
    assert service.request_kind == "forward"
    assert service.input_tokens == 77
    assert service.limits.latency_s == pytest.approx(0.5)
    by_path = read_workload(tmp_path, f"{DEVICE}/tiny.json", profiles=None).services[0]
    assert by_path.profiles == service.profiles


def test_own_profile_stands_above_a_shipped_graph(tmp_path: Path) -> None:
    rows = [row.replace("tiny", "bert-1.3b") for row in ROWS]
    write_document(imported(tmp_path, *rows), tmp_path / DEVICE / "bert-1.3b.json")
    service = read_workload(tmp_path, "bert-1.3b", profiles=tmp_path).services[0]
    assert service.profiles["v100"].provenance.method is Method.IMPORTED
    assert service.limits.latency_s == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("small", "", "There is no model 'small'"),
        ("small", "", "muplan profile import"),
        ("tiny", ", tokens: 5", "always has 1 (found 5)"),
        ("tiny", ", lengths: azure-conversation", "answers in one pass"),
        (
            "other/tiny.json",
            "",
            f"is the profile of tiny on v100-pcie-16gb. Name a profile of tiny on {DEVICE}",
        ),
        ("modelled.json", "", "Name the model instead (tiny)"),
    ],
)
def test_what_does_not_fit_a_profile_is_a_fault(tmp_path: Path, model: str, more: str, message: str) -> None:
    profile = imported(tmp_path, *ROWS)
    write_document(profile, tmp_path / DEVICE / "tiny.json")
    write_document(profile.model_copy(update={"device": "v100-pcie-16gb"}), tmp_path / "other" / "tiny.json")
    modelled = profile.provenance.model_copy(update={"method": Method.MODELLED})
    write_document(profile.model_copy(update={"provenance": modelled}), tmp_path / "modelled.json")
    with pytest.raises(InputError) as caught:
        read_workload(tmp_path, model, profiles=tmp_path, more=more)
    assert len(caught.value.faults) == 1
    assert message in caught.value.faults[0].message


# --- command -------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["profile", "import", *arguments])
    if isinstance(result.exception, InputError):
        return result.exception.exit_code, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_command_writes_a_profile_for_each_model(tmp_path: Path) -> None:
    table = write_table(tmp_path, *ROWS, "b,1,1,1,0.2,7")
    folder = tmp_path / "own"
    code, out, error = run(str(table), "-d", DEVICE, "-o", str(folder))
    assert code == 0, error
    assert f"tiny on {DEVICE} at batch 1 and 1530 MHz (imported; batches 1)" in out
    assert "120 ms" in out, "the latency of the pipeline of three stages"
    assert sorted(path.name for path in folder.rglob("*.json")) == ["b.json", "tiny.json"]
    code, out, _ = run(str(table), "-d", DEVICE, "-o", str(folder), "--json")
    assert [content["model"] for content in json.loads(out)] == ["b", "tiny"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--weights c=BYTES"),
        (("--weights", "c"), "MODEL=BYTES"),
        (("--weights", "c=0"), "impossible"),
        (("--weights", "c=5", "--weights", "d=5"), "has no model d"),
        (("--weights", "c=5", "-o", "one.json"), "one file, but the table has 2 models"),
    ],
)
def test_command_writes_nothing_on_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    table = write_table(tmp_path, *ROWS, "c,1,1,1,0.2,")
    code, out, error = run(str(table), "-d", DEVICE, *arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert list(tmp_path.iterdir()) == [table]
