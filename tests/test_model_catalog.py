"""The shipped models: the right number of parameters, made from their configurations, found by name.

If these fail, a shipped graph is not the model that it is named after.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muplan.errors import InputError
from muplan.model.architectures.build import build_graph
from muplan.model.architectures.config import BuildOptions
from muplan.model.catalog import build_shipped_model, load_model, model_names, write_shipped_graphs
from muplan.serde import to_json, write_document

ROOT = Path(__file__).parent.parent

# Parameters of the published checkpoints (tied weights once). BERT: with a two-class classifier.
PUBLISHED_PARAMETERS = {
    "bert-base": 109_483_778,
    "bert-large": 335_143_938,
    "gpt2-xl": 1_557_611_200,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-30b": 32_528_943_616,
    "llama-3.1-8b": 8_030_261_248,
    "t5-large": 737_668_096,
    "whisper-small": 241_734_912,
    "vit-large": 304_326_632,
    "resnet-50": 25_557_032,
}
# AlpaServe measured the weights: 2,838,835,200, 5,562,316,800 and 13,731,483,648 bytes.
ALPASERVE_WEIGHT_BYTES = {"bert-1.3b": 2838835200, "bert-2.6b": 5562316800, "bert-6.7b": 13731483648}


@pytest.mark.parametrize("model", sorted(PUBLISHED_PARAMETERS))
def test_parameters_are_the_published_ones(model: str) -> None:
    assert load_model(model).num_parameters == PUBLISHED_PARAMETERS[model]


@pytest.mark.parametrize("model", sorted(ALPASERVE_WEIGHT_BYTES))
def test_weights_of_the_alpaserve_models(model: str) -> None:
    """Within 1 %: the published models have 512 positions and biases in places of their own."""
    assert load_model(model).weight_bytes == pytest.approx(ALPASERVE_WEIGHT_BYTES[model], rel=0.01)


def test_every_model_is_checked() -> None:
    assert set(model_names()) == set(PUBLISHED_PARAMETERS) | set(ALPASERVE_WEIGHT_BYTES)


def test_shipped_graphs_are_made_from_the_configurations(tmp_path: Path) -> None:
    shipped = ROOT / "muplan" / "model" / "graphs"
    paths = write_shipped_graphs(tmp_path)
    assert {path.name for path in paths} == {path.name for path in shipped.glob("*.json")}
    for path in paths:
        again = (shipped / path.name).read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8") == again, "run: python -m muplan.model.catalog"


def test_graph_files_and_configuration_files_load(tmp_path: Path) -> None:
    graph = load_model("opt-1.3b")
    write_document(graph, tmp_path / "graph.json")
    assert load_model(tmp_path / "graph.json") == graph
    folder = tmp_path / "my-opt"
    folder.mkdir()
    content = json.loads((ROOT / "muplan/model/configs/opt-1.3b.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(content["config"]), encoding="utf-8")
    assert load_model(folder).name == "my-opt"
    assert load_model(folder).blocks == graph.blocks
    assert load_model(folder / "config.json") == load_model(folder)


def test_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(InputError, match=r"There is no model 'bert-1\.3'") as caught:
        load_model("bert-1.3")
    assert "Did you mean bert-1.3b" in caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "models of type 'mamba' are not supported"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"hidden_size": "big"}, "has hidden_size = 'big'"),
        ({"num_attention_heads": 7}, "divides 2048 elements over 7 heads"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    content = json.loads((ROOT / "muplan/model/configs/opt-1.3b.json").read_text(encoding="utf-8"))
    with pytest.raises(InputError, match=message):
        build_graph({**content["config"], **changes}, BuildOptions(name="m", source="this test"))


def test_unknown_element_type_is_refused() -> None:
    with pytest.raises(InputError, match="the element type 'int3' is not known"):
        _ = BuildOptions(name="m", source="this test", dtype="int3").element_bytes


# --- against transformers --------------------------------------------------------------------------

CLASSES = {
    "bert-base": "BertForSequenceClassification",
    "bert-large": "BertForSequenceClassification",
    "gpt2-xl": "GPT2LMHeadModel",
    "opt-1.3b": "OPTForCausalLM",
    "opt-13b": "OPTForCausalLM",
    "llama-2-7b": "LlamaForCausalLM",
    "llama-2-70b": "LlamaForCausalLM",
    "llama-3.1-8b": "LlamaForCausalLM",
    "t5-large": "T5ForConditionalGeneration",
    "whisper-small": "WhisperForConditionalGeneration",
    "vit-large": "ViTForImageClassification",
    "resnet-50": "ResNetForImageClassification",
}


def _configuration(model: str) -> Any:
    transformers = pytest.importorskip("transformers", reason="the extra 'torch' is not installed")
    content = json.loads((ROOT / f"muplan/model/configs/{model}.json").read_text(encoding="utf-8"))
    keys = {key: value for key, value in content["config"].items() if key != "model_type"}
    return getattr(transformers, CLASSES[model]).config_class(**keys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", sorted(CLASSES))
def test_configuration_classes_give_the_shipped_graph(model: str) -> None:
    """What a user builds from `transformers` is what the plain JSON gives."""
    shipped = build_shipped_model(model)
    options = BuildOptions(
        name=model,
        source=shipped.source,
        dtype="bfloat16" if model == "llama-3.1-8b" else "float16",
    )
    assert to_json(build_graph(_configuration(model), options)) == to_json(shipped)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", sorted(CLASSES))
def test_parameters_are_those_of_the_real_module(model: str) -> None:
    """Built on the meta device: no weights, no memory."""
    torch = pytest.importorskip("torch", reason="the extra 'torch' is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra 'torch' is not installed")
    with torch.device("meta"):
        module = getattr(transformers, CLASSES[model])(_configuration(model))
    assert sum(parameter.numel() for parameter in module.parameters()) == load_model(model).num_parameters
