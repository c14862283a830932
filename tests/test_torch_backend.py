"""Worker processes that run the stages of a plan for real, on processor cores.

If these fail, `muplan execute --backend torch` answers other than the model does, loses requests when a
worker dies, or does not say what it cannot do.
"""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from muplan.errors import DeviceError, InputError
from muplan.model.catalog import load_model
from muplan.model.graph import ModelGraph
from muplan.plan import Deployment, Group, Replica, Stage
from muplan.problem.loading import load_problem
from muplan.problem.problem import Problem
from muplan.serde import write_text
from muplan.serving.case import make_case
from muplan.serving.realtime.backend import Event, Pass, PassDone
from muplan.serving.realtime.executor import serve_in_real_time
from muplan.serving.workers.backend import TorchBackend
from muplan.serving.workers.parts import WorkerParts, worker_parts
from muplan.traces.trace import Trace
from muplan.workload import Workload
from tests import serving_cases as cases
from tests.test_cli import muplan

pytest.importorskip("torch", reason="the torch backend needs torch")

PLANS = Path(__file__).parent.parent / "plans"
BERT = """{"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 64, "type_vocab_size": 2,
"dtype": "float32"}"""
VIT = """{"model_type": "vit", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
"intermediate_size": 96, "image_size": 32, "patch_size": 16, "num_channels": 3, "dtype": "float32"}"""


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A text and an image model on two processor cores."""
    folder = tmp_path_factory.mktemp("tiny")
    write_text(BERT, folder / "text.json")
    write_text(VIT, folder / "image.json")
    demand = {"demand": {"rate_rps": 40.0}, "slo": {"latency_s": 1.0}}
    workload = Workload.model_validate(
        {
            "kind": "workload",
            "schema_version": 1,
            "name": "tiny",
            "fleet": {"pools": ({"name": "cores", "device": "cpu", "num_gpus": 2, "gpus_per_node": 2},)},
            "services": (
                {"name": "text", "model": "text.json", "tokens": 16, **demand},
                {"name": "image", "model": "image.json", **demand},
            ),
        }
    )
    return load_problem(workload, directory=folder, profiles=None)


def graphs(problem: Problem, folder: Path) -> dict[str, ModelGraph]:
    write_text(BERT, folder / "text.json")
    write_text(VIT, folder / "image.json")
    return {service.name: load_model(folder / f"{service.name}.json") for service in problem.services}


def pipeline(problem: Problem, cuts: tuple[int, ...]) -> Deployment:
    """Both services on one pipeline, cut after some clusters."""
    replicas = []
    for service in problem.services:
        ends = (0, *cuts, len(service.profiles["cores"].clusters))
        ranges = tuple(((start, stop),) for start, stop in itertools.pairwise(ends))
        replicas.append(Replica(service=service.name, share=1.0, max_batch=3, stage_clusters=ranges))
    stages = tuple(Stage(gpus=(f"cores/0/{number}",), clock_mhz=3000) for number in range(len(cuts) + 1))
    return cases.deployment([Group(name="g", pool="cores", stages=stages, replicas=tuple(replicas))])


def random_trace(problem: Problem, count: int, duration_s: float) -> Trace:
    rng = np.random.default_rng(0)
    arrivals = np.sort(rng.uniform(0.0, duration_s, count))
    return cases.trace(problem.services, arrivals, rng.integers(0, 2, count), duration_s=duration_s)


class Watched(TorchBackend):
    """Notes what was launched and answered; kills a worker when told to."""

    def __init__(self, workers: tuple[WorkerParts, ...], kill_at: tuple[float, ...] = ()) -> None:
        super().__init__(workers)
        self.launched: dict[int, Pass] = {}
        self.answered: list[int] = []
        self.kills = list(kill_at)

    def launch(self, work: Pass) -> None:
        self.launched[work.number] = work
        super().launch(work)
        if self.kills and self.now_s() > self.kills[0]:
            self.kills.pop(0)
            os.kill(list(self.process_ids.values())[len(self.kills) % 2], signal.SIGKILL)

    def next_event(self, until_s: float) -> Event | None:
        event = super().next_event(until_s)
        if isinstance(event, PassDone):
            self.answered += self.launched[event.number].requests
        return event


def test_a_model_cut_over_two_workers_answers_as_the_whole_one(problem: Problem, tmp_path: Path) -> None:
    """Every request is answered once; the answers are those of the model run in one piece here, to 1e-5."""
    import torch

    from muplan.serving.workers.stage import Stage as Whole

    models = graphs(problem, tmp_path)
    trace = random_trace(problem, 60, 1.5)
    deployment = pipeline(problem, (2,))
    case = make_case(
        problem, deployment, trace, warm_up_s=0.0, cool_down_s=0.0, controller=None, num_samples=10
    )
    backend = Watched(worker_parts(problem, deployment, models))
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert sorted(backend.answered) == list(range(60))
    assert not run.is_partial
    assert (run.records.completion_s > run.records.start_s).all()
    (whole_parts,) = worker_parts(problem, pipeline(problem, ()), models)
    with torch.inference_mode():
        wholes = {part.service: Whole(part, torch.device("cpu")) for part in whole_parts.parts}
        for number, answer in backend.answers.items():
            work = backend.launched[number]
            whole = wholes[work.service]
            expected = whole(whole.entering(len(work.requests))).flatten(1).mean(dim=1).numpy()
            np.testing.assert_allclose(answer, expected, atol=1e-5, rtol=1e-5)
            assert np.abs(expected).max() > 1e-3


def test_workers_that_are_killed_lose_no_request(problem: Problem, tmp_path: Path) -> None:
    """kill -9 of either worker: it is started again, and every request is answered once, in a later pass."""
    trace = random_trace(problem, 200, 2.0)
    deployment = pipeline(problem, (2,))
    case = make_case(
        problem, deployment, trace, warm_up_s=0.0, cool_down_s=0.0, controller=None, num_samples=10
    )
    backend = Watched(worker_parts(problem, deployment, graphs(problem, tmp_path)), kill_at=(0.3, 1.0))
    run = serve_in_real_time(case, backend, rng=np.random.default_rng(0))
    assert not backend.kills
    assert run.num_lost > 0
    assert sorted(backend.answered) == list(range(200))
    assert np.isfinite(run.records.completion_s).all()


def test_a_stage_that_does_not_fit_is_refused_before_it_is_made(problem: Problem, tmp_path: Path) -> None:
    """The message names the stage, what it needs and what there is."""
    import torch

    from muplan.serving.workers.stage import check_memory, needed_bytes

    (held,) = worker_parts(problem, pipeline(problem, ()), graphs(problem, tmp_path))
    device = torch.device("cpu")
    need = sum(needed_bytes(part, device) for part in held.parts)
    weights = sum(part.graph.weight_bytes for part in held.parts)
    assert weights < need < 3 * weights
    check_memory(held.name, held.parts, device, 2 * need)
    with pytest.raises(DeviceError) as caught:
        check_memory(held.name, held.parts, device, need)
    assert caught.value.exit_code == 3
    assert "stage 0 of g (text, image) needs 0.00 GiB of memory; cpu has 0.00 GiB free" in str(caught.value)


def test_a_plan_for_gpus_that_are_not_here_is_refused(tmp_path: Path) -> None:
    """Exit 3 with what is missing; nothing is written."""
    import torch

    if torch.cuda.device_count() > 0:
        pytest.skip("there is a GPU here")
    run = muplan("execute", str(PLANS / "quickstart.json"), "--backend", "torch", folder=tmp_path)
    assert run.returncode == 3
    assert "GPUs; torch sees 0 on this machine." in run.stderr


def test_what_workers_cannot_run_is_named(problem: Problem, tmp_path: Path) -> None:
    """A pass that comes back to a stage."""
    deployment = pipeline(problem, (2,))
    (group,) = deployment.groups
    last = len(problem.services[0].profiles["cores"].clusters)
    turning = (((0, 1), (2, last)), ((1, 2),))
    replica = group.replicas[0].model_copy(update={"stage_clusters": turning})
    turned = group.model_copy(update={"replicas": (replica,)})
    with pytest.raises(InputError, match="A pass of 'text' comes back to stage 0 of 'g'"):
        worker_parts(problem, cases.deployment([turned]), graphs(problem, tmp_path))
