"""Length distributions: quantiles in, samples and exact means out.

If these fail, generate services are planned for prompts and replies that they do not have.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.errors import InputError
from muplan.serde import digest, parse_document, to_json, write_document
from muplan.traces.lengths import LengthDistribution, fit_lengths, lengths_names, load_lengths

RECORDS = {
    "azure-conversation": "azure_llm_2023_conv.csv",
    "azure-code": "azure_llm_2023_code.csv",
}


def small(**changes: object) -> LengthDistribution:
    """Two strata of few quantiles, for which everything can be counted by hand."""
    content: dict[str, object] = {
        "kind": "lengths",
        "schema_version": 1,
        "name": "small",
        "source": "made up for tests",
        "num_requests": 100,
        "input_probabilities": (0.0, 0.5, 1.0),
        "input_tokens": (10, 20, 60),
        "output_probabilities": (0.0, 1.0),
        "output_tokens": ((1, 9), (31, 41)),
    }
    return LengthDistribution.model_validate(content | changes)


@st.composite
def distributions(draw: st.DrawFn) -> LengthDistribution:
    def quantiles(count: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.lists(st.integers(1, 400), min_size=count, max_size=count))))

    def probabilities() -> tuple[float, ...]:
        inner = draw(st.lists(st.integers(1, 99), max_size=4, unique=True))
        return (0.0, *(value / 100 for value in sorted(inner)), 1.0)

    inputs, outputs = probabilities(), probabilities()
    num_strata = draw(st.integers(1, 4))
    return small(
        input_probabilities=inputs,
        input_tokens=quantiles(len(inputs)),
        output_probabilities=outputs,
        output_tokens=tuple(quantiles(len(outputs)) for _ in range(num_strata)),
    )


def read_record(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with (folder / "traces" / RECORDS[name]).open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    inputs = np.array([int(row["ContextTokens"]) for row in rows])
    return inputs, np.array([int(row["GeneratedTokens"]) for row in rows])


def rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


def test_means_of_a_distribution_counted_by_hand() -> None:
    lengths = small()
    assert lengths.mean_input_tokens == pytest.approx((15 + 40) / 2)
    assert lengths.mean_output_tokens == pytest.approx((5 + 36) / 2)
    assert lengths.max_input_tokens == 60
    assert lengths.max_context == 60 + 41


def test_longest_request_respects_the_strata() -> None:
    """The longest prompt and the longest reply never meet where they lie in different strata."""
    lengths = small(output_tokens=((1, 500), (31, 41)))
    assert lengths.max_context == 20 + 500


@pytest.mark.parametrize("context_limit", [None, 12, 45, 70])
@given(lengths=distributions(), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_samples_have_the_exact_means(
    lengths: LengthDistribution, seed: int, context_limit: int | None
) -> None:
    """Within five standard errors, which one sample of 20,000 in 1.7 million leaves."""
    if context_limit is not None:
        lengths = lengths.limited_to(context_limit)
    inputs, outputs = lengths.sample(20_000, np.random.default_rng(seed))
    for sample, mean in ((inputs, lengths.mean_input_tokens), (outputs, lengths.mean_output_tokens)):
        error = 5.0 * sample.std() / np.sqrt(len(sample)) + 1e-9
        # A reply of the rarest kind may be absent from a sample, and its spread with it.
        assert sample.mean() == pytest.approx(mean, abs=error + 0.02)


@given(lengths=distributions(), limit=st.integers(2, 900), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_samples_stay_within_the_context(lengths: LengthDistribution, limit: int, seed: int) -> None:
    limited = lengths.limited_to(limit)
    inputs, outputs = limited.sample(500, np.random.default_rng(seed))
    assert inputs.dtype == outputs.dtype == np.int32
    assert min(inputs.min(), outputs.min()) >= 1
    assert (inputs + outputs).max() <= limited.max_context <= min(limit, lengths.max_context)
    assert inputs.max() <= limited.max_input_tokens


def test_a_limit_shortens_prompts_only_where_they_leave_no_room() -> None:
    """Common random numbers: with the same seed a limit changes nothing but the prompts it must."""
    lengths = load_lengths("azure-conversation")
    inputs, outputs = lengths.sample(5_000, np.random.default_rng(7))
    shorter, same = lengths.limited_to(2048).sample(5_000, np.random.default_rng(7))
    assert (outputs == same).all()
    assert (shorter == np.minimum(inputs, 2048 - outputs)).all()
    assert (shorter < inputs).any()


def test_a_limit_above_everything_changes_nothing() -> None:
    lengths = load_lengths("azure-code")
    assert lengths.limited_to(lengths.max_context) is lengths
    assert digest(lengths.limited_to(4096)) != digest(lengths)
    with pytest.raises(InputError, match="holds no prompt and reply"):
        lengths.limited_to(1)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_shipped_quantiles_are_those_of_the_record(shared_data: Path, name: str) -> None:
    """If this fails, the shipped file is not what the named source says."""
    inputs, outputs = read_record(shared_data, name)
    shipped = load_lengths(name)
    derived = fit_lengths(inputs, outputs, name=name, source=shipped.source)
    kept = {"description": shipped.description, "rate_rps": shipped.rate_rps, "cv": shipped.cv}
    assert derived.model_copy(update=kept) == shipped


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_resampled_lengths_are_like_the_record(shared_data: Path, name: str) -> None:
    """Means within 2 %, p50 within 3 %, p99 within 5 %, rank correlation within 0.03."""
    inputs, outputs = read_record(shared_data, name)
    drawn_inputs, drawn_outputs = load_lengths(name).sample(200_000, np.random.default_rng(1))
    for record, drawn in ((inputs, drawn_inputs), (outputs, drawn_outputs)):
        assert drawn.mean() == pytest.approx(record.mean(), rel=0.02)
        assert np.quantile(drawn, 0.5) == pytest.approx(np.quantile(record, 0.5), rel=0.03)
        assert np.quantile(drawn, 0.99) == pytest.approx(np.quantile(record, 0.99), rel=0.05)
    record_correlation = rank_correlation(inputs, outputs)
    assert rank_correlation(drawn_inputs, drawn_outputs) == pytest.approx(record_correlation, abs=0.03)


@pytest.mark.parametrize("name", lengths_names())
def test_shipped_distributions_name_source_and_licence(name: str) -> None:
    lengths = load_lengths(name)
    assert lengths.name == name
    assert "CC-BY 4.0" in lengths.source
    assert lengths.rate_rps is not None
    assert lengths.cv is not None


def test_strata_carry_the_dependence_of_reply_on_prompt() -> None:
    """Replies ten times the prompt must still be after fitting and sampling."""
    rng = np.random.default_rng(3)
    inputs = rng.integers(1, 1_000, 5_000)
    lengths = fit_lengths(inputs, 10 * inputs, name="tenfold", source="made up for tests")
    drawn_inputs, drawn_outputs = lengths.sample(20_000, rng)
    assert rank_correlation(drawn_inputs, drawn_outputs) > 0.98
    assert drawn_outputs.mean() == pytest.approx(10 * drawn_inputs.mean(), rel=0.02)


def test_too_small_a_record_is_refused() -> None:
    with pytest.raises(InputError, match="too few for 10 strata"):
        fit_lengths([5] * 99, [5] * 99, name="few", source="made up for tests")
    with pytest.raises(InputError, match="below 1 token"):
        fit_lengths([5] * 100, [0] * 100, name="none", source="made up for tests")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_tokens": (10, 20)}, "input: 2 quantiles for 3 probabilities"),
        ({"input_probabilities": (0.1, 0.5, 1.0)}, "must run from 0 to 1"),
        ({"input_probabilities": (0.0, 0.0, 1.0)}, "must ascend"),
        ({"input_tokens": (10, 9, 60)}, "must not fall"),
        ({"output_tokens": ((1, 9), (0, 41))}, r"output_tokens\[1\]: .*at least 1 token"),
        ({"output_tokens": ()}, "at least 1 item"),
    ],
)
def test_what_is_no_distribution_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_round_trip_and_loading_by_path(tmp_path: Path) -> None:
    lengths = small()
    assert parse_document(to_json(lengths), LengthDistribution, file="small.json") == lengths
    write_document(lengths, tmp_path / "small.json")
    assert load_lengths("small.json", tmp_path) == lengths


def test_an_unknown_name_gets_the_nearest_names() -> None:
    with pytest.raises(InputError) as caught:
        load_lengths("azure-conversatons")
    assert caught.value.problem == "There is no length distribution 'azure-conversatons'."
    assert "Did you mean azure-conversation" in caught.value.remedy
