"""Models captured from torch: the graph's counts are the module's, and stages together are the whole.

If these fail, plans are made for other work than the model's, or a model that is cut answers otherwise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from muplan.capture.sizes import NotPolynomialError, Sizes, fixed_grid, forward_grid, generate_grid
from muplan.cli.main import app
from muplan.errors import InputError
from muplan.hardware.catalog import load_device
from muplan.model.architectures.build import BUILT_TYPES
from muplan.model.graph import ModelGraph, Phase
from muplan.problem.source import find_model
from muplan.profiling.analytical import make_profile
from muplan.profiling.clustering import segments_of
from muplan.profiling.store import ProfileStore
from muplan.serde import parse_document, read_document, to_json
from tests.tiny_architectures import FORWARD, GENERATE
from validation.capture import check_capture

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from muplan.capture.source import capture, find_graph  # noqa: E402

NETWORKS = '''
import torch
from torch import nn


class Mixer(nn.Module):
    """A residual network over tokens, in which an input is changed in place."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 16), nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, x):
        scaled = x * 2
        scaled[:, 0] = 1.0
        scaled += self.down(torch.relu(self.up(scaled)))
        scaled = self.norm(scaled)
        return self.up(scaled).mean(1)


class Choosing(Mixer):
    def forward(self, x):
        return self.up(x) if x.sum() > 0 else self.up(-x)


class Alternating(Mixer):
    def forward(self, x):
        return self.up(x) if x.shape[0] % 2 else self.up(-x)


class Failing(Mixer):
    def forward(self, x):
        return self.down(x)


def example(batch, tokens):
    return {"x": torch.zeros(batch, tokens, 8)}


def mixer():
    return Mixer(), example


def choosing():
    return Choosing(), example


def alternating():
    return Alternating(), example


def failing():
    return Failing(), example


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


def layer():
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda b, t: {"src": torch.zeros(b, t, 8)}


def recurrent():
    return Recurrent(), example


def nothing():
    return 1


def wordless():
    return Mixer(), lambda batch, tokens: 3
'''


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads gain nothing on tiny models, and wait for each other where the machine is shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, in the current folder."""
    name = f"networks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(NETWORKS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return name


def content(name: str) -> dict[str, Any]:
    return {"model_type": name, **(FORWARD | GENERATE)[name]}


@pytest.mark.parametrize("name", sorted({*FORWARD, *GENERATE} - BUILT_TYPES | {"bert"}))
def test_counts_are_those_of_the_module(name: str) -> None:
    """At sizes that were not traced, against torch's own counter; of shipped types see test_model_drift."""
    check = check_capture(content(name), name, dtype="float32")
    assert check.parameter_bytes == check.module_bytes
    assert check.unread == ()
    assert check.flops == pytest.approx(check.counted_flops, rel=1e-12)
    assert parse_document(to_json(check.graph), ModelGraph, file="graph.json") == check.graph
    assert len(segments_of(check.graph)) == check.num_cuts > 2


@pytest.mark.parametrize("name", ["bert", "deberta-v2", "t5", "swin", "resnet", "whisper"])
def test_stages_together_are_the_whole_model(name: str) -> None:
    torch.manual_seed(0)
    captured = capture(content(name), dtype="float32", is_real=True)
    torch.manual_seed(0)
    module = _module(name)
    count = len(captured.segments)
    with torch.inference_mode():
        entering, want = _pass(name, module, batch=1, tokens=9)
        for index in range(count):
            entering = captured.stage(index, index + 1)(entering)
        torch.testing.assert_close(entering, want, rtol=1e-5, atol=1e-5)
        entering, want = _pass(name, module, batch=4, tokens=23)
        for cut in range(1, count):
            leaving = captured.stage(cut, count)(captured.stage(0, cut)(entering))
            torch.testing.assert_close(leaving, want, rtol=1e-5, atol=1e-5)


def _module(name: str) -> Any:
    from transformers import AutoConfig, AutoModel
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    keys = {key: value for key, value in FORWARD[name].items() if key != "architectures"}
    config = AutoConfig.for_model(name, **keys)
    if name == "whisper":
        return WhisperEncoder(config).eval()
    if name == "t5":
        import transformers

        return transformers.T5EncoderModel(config).eval()
    mapping = {
        "bert": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        "resnet": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    }.get(name)
    return (AutoModel.from_config(config) if mapping is None else mapping[type(config)](config)).eval()


def _pass(name: str, module: Any, *, batch: int, tokens: int) -> tuple[Any, Any]:
    """Random requests, and what the whole model answers."""
    generator = torch.Generator().manual_seed(batch)
    if name in ("swin", "resnet"):
        entering = torch.randn((batch, 3, 32, 32), generator=generator)
    elif name == "whisper":
        entering = torch.randn((batch, 8, 32), generator=generator)
    else:
        entering = torch.randint(3, 61, (batch, tokens), generator=generator)
    made = module(entering)
    if name in ("t5", "whisper", "deberta-v2"):
        return entering, made["last_hidden_state"]
    return entering, made["logits"] if "logits" in made else made["pooler_output"]


def test_module_of_a_function(networks: str) -> None:
    torch.manual_seed(0)
    captured = capture(f"{networks}:mixer", is_real=True)
    graph = captured.graph
    assert (graph.name, graph.captured_from, graph.request_kind) == ("mixer", "Mixer", "forward")
    assert graph.num_parameters == 8 * 16 + 16 + 16 * 8 + 8 + 2 * 8
    # Up and down once each on every token, up again on every token.
    matmuls = sum(float(one.flops(3, 7, 7)) for one in graph.operators() if one.kind == "matmul")
    assert matmuls == 3 * 7 * 3 * 2 * 8 * 16
    torch.manual_seed(0)
    module = __import__(networks).Mixer().eval()
    entering = torch.randn(3, 7, 8)
    with torch.inference_mode():
        want = module(entering)
        whole = captured.stage(0, len(captured.segments))(entering)
    torch.testing.assert_close(whole, want, rtol=1e-5, atol=1e-5)


def test_layer_of_torch_is_taken_apart(networks: str) -> None:
    """In evaluation torch runs it as one call, of which nothing could be told."""
    graph = capture(f"{networks}:layer").graph
    matmuls = sum(float(one.flops(1, 7, 7)) for one in graph.operators() if one.kind == "matmul")
    assert matmuls == 7 * 2 * (4 * 8 * 8 + 2 * 8 * 16)
    assert len([one for one in graph.operators() if one.kind in ("attention", "attention_scores")]) == 1


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        ("choosing", "looks at the data of a pass"),
        ("alternating", "computes differently at other batches"),
        ("failing", "fails in down: RuntimeError"),
        ("recurrent", "What lstm of cell computes is not known"),
        ("nothing", "returns a int, which is no model"),
        ("wordless", "example inputs of .* are a int"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_what_cannot_be_captured(networks: str, function: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        capture(f"{networks}:{function}")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("no_such_module:model", "'no_such_module' of .* cannot be imported"),
        ("nowhere/config.json", "does not exist"),
        ({"model_type": "no-such-type"}, "model_type is 'no-such-type', which transformers"),
        ({"model_type": "bert", "architectures": ["BertForNothing"]}, "has no class 'BertForNothing'"),
        ({"model_type": "t5"}, "an encoder with a decoder"),
        ({"model_type": "wav2vec2"}, "reads 'input_values', of which muplan does not know the size"),
        (3, "A int is no model"),
    ],
)
def test_what_is_no_model(source: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        capture(source)


def test_stages_need_weights_and_segments() -> None:
    fake = capture(content("distilbert"))
    with pytest.raises(InputError, match="captured without weights"):
        fake.stage(0, 1)
    with pytest.raises(InputError, match="no stage from segment 2 to 2"):
        fake.stage(2, 2)


def test_shipped_graph_is_found_without_capture_and_others_with_it(tmp_path: Path) -> None:
    assert find_graph("bert-base").captured_from is None
    (tmp_path / "config.json").write_text(json.dumps(content("bloom")), encoding="utf-8")
    graph = find_graph(tmp_path)
    assert (graph.name, graph.captured_from) == (tmp_path.name, "BloomForCausalLM")
    profile = make_profile(graph, load_device("v100-sxm2-32gb"), batches=(1, 4), tokens=(16, 32))
    assert [grid.phase for grid in profile.phases] == [Phase.PREFILL, Phase.DECODE]


def test_commands_take_what_can_be_captured(networks: str, tmp_path: Path) -> None:
    runner = CliRunner()
    run = runner.invoke(
        app, ["model", "capture", f"{networks}:mixer", "--name", "mine", "--dtype", "float16"]
    )
    assert run.exit_code == 0
    assert "mine (Mixer): 296 parameters, forward" in run.output
    graph = read_document(tmp_path / "mine.json", ModelGraph)
    assert graph.element_bytes == 2
    run = runner.invoke(app, ["model", "capture", f"{networks}:mixer", "-o", "other.json", "--json"])
    assert json.loads(run.stdout)["captured_from"] == "Mixer"
    for model in (f"{networks}:mixer", "mine.json"):
        options = ["--device", "v100-sxm2-32gb", "--batches", "1,2", "--tokens", "8", "-o", "profile.json"]
        assert runner.invoke(app, ["profile", model, *options]).exit_code == 0
    # A workload's model may be the file.
    devices = {"pool": load_device("v100-sxm2-32gb")}
    store = ProfileStore(None)
    source = find_model("mine.json", directory=tmp_path, store=store, devices=devices)
    assert (source.name, source.request_kind) == ("mine", "forward")


@pytest.mark.parametrize(
    ("config", "said", "remedy"),
    [
        (
            {"model_type": "bertt"},
            "odd.json: model_type is 'bertt', which transformers",
            "Did you mean 'bert'",
        ),
        ({"model_type": "bert", "hidden_size": 33}, "cannot be made: The hidden size (33) is not", "Correct"),
        (None, "odd.json does not exist", "Check the path"),
    ],
)
def test_a_faulty_configuration_is_named(
    tmp_path: Path, config: dict[str, Any] | None, said: str, remedy: str
) -> None:
    """Two lines that a user can act on: exit code 2, no traceback, no list of all types."""
    if config is not None:
        (tmp_path / "odd.json").write_text(json.dumps(config), encoding="utf-8")
    run = CliRunner().invoke(app, ["model", "capture", str(tmp_path / "odd.json")])
    assert isinstance(run.exception, InputError)
    assert said in run.exception.problem
    assert remedy in run.exception.remedy
    assert len(run.exception.problem) < 400


def test_capture_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="needs torch and transformers") as caught:
        capture(content("bert"))
    assert "pip install 'muplan[torch]'" in caught.value.remedy


def test_weights_of_a_folder_are_loaded(tmp_path: Path) -> None:
    module = _module("bert")
    module.save_pretrained(tmp_path)
    captured = capture(tmp_path, is_real=True)
    for name, weight in module.named_parameters():
        torch.testing.assert_close(captured.weights[name], weight)


def test_graph_names_the_kernel_and_the_cache() -> None:
    graph = capture(content("llama"), attention="unfused").graph
    names = {operator.name.rpartition(".")[2] for operator in graph.operators()}
    assert {"scores", "softmax", "values"} <= names
    assert "fused" not in names
    # Two layers, keys and values of two heads of eight elements of two bytes.
    assert graph.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert (graph.num_heads, graph.num_kv_heads, graph.max_context) == (4, 2, 64)


def test_tied_weights_are_counted_once() -> None:
    graph = capture(content("gpt2")).graph
    tied = [operator for operator in graph.operators() if operator.tied]
    assert [operator.weight_bytes for operator in tied] == [61 * 32 * 2]
    assert graph.weight_bytes - graph.num_parameters * 2 == 61 * 32 * 2


@pytest.mark.parametrize("grid", [fixed_grid(), forward_grid(64), generate_grid(64)])
def test_polynomials_are_exact(grid: Any) -> None:
    terms = {monomial: Fraction(3 * index - 4) for index, monomial in enumerate(grid.monomials)}
    values = [int(sum(c * sizes.power(m) for m, c in terms.items())) for sizes in grid.sizes]
    found = grid.fit(values)
    assert dict(found.terms) == {monomial: c for monomial, c in terms.items() if c}
    other = Sizes(batch=11, tokens=1, context=1 if grid.monomials[-1] == (1, 0, 0) else 31)
    assert found(other) == sum(c * other.power(m) for m, c in terms.items())
    with pytest.raises(NotPolynomialError):
        grid.fit([*values[:-1], values[-1] + 1])


def test_polynomial_of_a_graph_rounds_up() -> None:
    grid = forward_grid(64)
    found = grid.fit([sizes.batch * (sizes.tokens**2 - sizes.tokens) for sizes in grid.sizes])
    assert float(found.to_polynomial()(2, 10, 10)) == 200.0
