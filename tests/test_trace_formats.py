"""Published forms of traces: what is read of each, and what is said of a broken file.

If these fail, recorded demand is read wrongly, or a user with a faulty file is left to guess where.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.errors import InputError
from muplan.traces import files
from muplan.traces.columns import read_columns
from muplan.traces.files import read_trace
from muplan.traces.formats import azure, burstgpt
from muplan.traces.formats.azure import import_azure
from muplan.traces.formats.burstgpt import import_burstgpt
from muplan.traces.formats.mooncake import import_mooncake
from muplan.traces.formats.servegen import read_servegen_rates
from muplan.traces.generate import draw_trace
from muplan.traces.trace import Trace

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURSTGPT_ROWS = (
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
    "45,GPT-4,417,276,693,API log\n"
    "120,GPT-4,100,0,100,API log\n"
    "185,ChatGPT,0,0,0,API log\n"
    "205,GPT-4,1360,647,2007,Conversation log\n"
)
RATES = (
    "category,model,t_start_s,requests_per_s,active_clients\n"
    "language,small,0,10.5,3\nlanguage,small,600,20,3\nlanguage,small,1200,0,3\n"
    "language,large,0,1,1\nlanguage,large,600,2,1\n"
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def faults_of(read: Callable[[], object]) -> list[tuple[int, str, str]]:
    with pytest.raises(InputError) as caught:
        read()
    return [(fault.line, fault.key, fault.message) for fault in caught.value.faults]


def columns_of(trace: Trace) -> tuple[object, ...]:
    return (
        trace.services,
        trace.duration_s,
        *(column.tobytes() for column in (trace.arrival_s, trace.service)),
        *(column.tobytes() for column in (trace.input_tokens, trace.output_tokens)),
    )


# --- BurstGPT ----------------------------------------------------------------------------------


def test_burstgpt_gives_each_model_a_service(tmp_path: Path) -> None:
    trace, num_failed = import_burstgpt(write(tmp_path / "b.csv", BURSTGPT + BURSTGPT_ROWS))
    assert (trace.services, num_failed) == (("chatgpt", "gpt-4"), 2)
    assert trace.arrival_s.tolist() == [0.0, 40.0, 40.0, 200.0]
    assert trace.service.tolist() == [0, 0, 1, 1]
    assert trace.input_tokens.tolist() == [472, 1087, 417, 1360]
    assert trace.output_tokens.tolist() == [18, 230, 276, 647]
    assert trace.duration_s == pytest.approx(200.0 * 4 / 3)


def test_burstgpt_keeps_a_model_or_a_log_type(tmp_path: Path) -> None:
    path = write(tmp_path / "b.csv", BURSTGPT + BURSTGPT_ROWS)
    trace, num_failed = import_burstgpt(path, service="llm", model="GPT-4")
    assert (trace.services, trace.input_tokens.tolist(), num_failed) == (("llm",), [417, 1360], 1)
    trace, num_failed = import_burstgpt(path, log_type="Conversation log")
    assert (trace.input_tokens.tolist(), num_failed) == ([472, 1087, 1360], 0)
    with pytest.raises(InputError, match=r"has no 'GPT-5' in the column Model.\n\nIt has 'ChatGPT', 'GPT-4'"):
        import_burstgpt(path, model="GPT-5")
    with pytest.raises(InputError, match="no such request with a reply"):
        import_burstgpt(write(path, BURSTGPT + BURSTGPT_ROWS.splitlines()[4] + "\n"))


def test_burstgpt_reads_further_columns_in_any_order(tmp_path: Path) -> None:
    """Newer releases announce a session and an elapsed time."""
    text = "Log Type,Session ID,Model,Response tokens,Request tokens,Timestamp\nAPI log,7,GPT-4,5,6,1.5\n"
    path = write(tmp_path / "b.csv", text + "API log,8,GPT-4,7,8,3.5\n")
    trace, _ = import_burstgpt(path)
    assert trace.arrival_s.tolist() == [0.0, 2.0]
    assert trace.input_tokens.tolist() == [6, 8]


def test_burstgpt_faults_are_listed_with_their_lines(tmp_path: Path) -> None:
    rows = "5,ChatGPT,472,18,490,API log\nsoon,ChatGPT,1,2,3,API log\n7,,-1,2.5,3,API log\n8,ChatGPT,1\n"
    path = write(tmp_path / "b.csv", BURSTGPT + rows)
    whole = "must be a whole number from 0 to 2147483647"
    assert faults_of(lambda: import_burstgpt(path)) == [
        (3, "Timestamp", "'soon' is no number"),
        (4, "Request tokens", f"{whole} (found '-1')"),
        (4, "Response tokens", f"{whole} (found '2.5')"),
        (4, "Model", "the name is empty"),
        (5, "", "expected 6 fields, found 3"),
    ]
    other = write(tmp_path / "o.csv", "a,b\n1,2\n")
    wanted = "Timestamp,Model,Request tokens,Response tokens,Log Type"
    assert faults_of(lambda: import_burstgpt(other)) == [
        (1, "", f"expected a header with {wanted}, found 'a,b'")
    ]


# --- Mooncake ----------------------------------------------------------------------------------


def test_mooncake_reads_milliseconds_and_lengths(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]},
        {"timestamp": 4052, "input_length": 7234, "output_length": 794, "hash_ids": [0, 28]},
        {"timestamp": 1000, "input_length": 7319, "output_length": 490},
    ]
    path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    trace = import_mooncake(path, "chat")
    assert trace.services == ("chat",)
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.0, 3.052])
    assert trace.input_tokens.tolist() == [6755, 7319, 7234]
    assert trace.output_tokens.tolist() == [500, 490, 794]
    assert trace.duration_s == pytest.approx(3.052 * 1.5)


def test_mooncake_faults_are_listed_with_their_lines(tmp_path: Path) -> None:
    text = (
        '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp": 0,\n[1]\n'
        '{"timestamp": -1, "input_length": 1.5, "output_length": 0}\n{}\n'
        '{"timestamp": NaN, "input_length": true, "output_length": "7"}\n'
    )
    path = write(tmp_path / "m.jsonl", text)
    whole, time = "must be a whole number from 1 to 2147483647", "must be finite and at least 0"
    found = faults_of(lambda: import_mooncake(path, "chat"))
    assert found[0][:2] == (2, "")
    assert found[0][2].startswith("is no JSON (")
    assert found[1:] == [
        (3, "", "is no JSON object"),
        (4, "timestamp", f"{time} (found -1)"),
        (4, "input_length", f"{whole} (found 1.5)"),
        (4, "output_length", f"{whole} (found 0)"),
        (5, "timestamp", "is missing"),
        (5, "input_length", "is missing"),
        (5, "output_length", "is missing"),
        (6, "timestamp", f"{time} (found nan)"),
        (6, "input_length", f"{whole} (found True)"),
        (6, "output_length", f"{whole} (found '7')"),
    ]
    assert faults_of(lambda: import_mooncake(write(path, "\n"), "chat")) == [(1, "", "holds no request")]


def test_a_record_of_one_moment_has_no_length(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", '{"timestamp": 3, "input_length": 1, "output_length": 1}\n')
    with pytest.raises(InputError, match=r"too few requests to tell.\n\nName a record of more requests"):
        import_mooncake(path, "chat")


# --- ServeGen ----------------------------------------------------------------------------------


def test_servegen_rates_become_a_piecewise_process(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", RATES)
    process = read_servegen_rates(path, "small", noise_cv=0.1, interval_cv=2.0)
    assert (process.rates_rps, process.interval_s) == ((10.5, 20.0, 0.0), 600.0)
    assert (process.noise_cv, process.interval_cv) == (0.1, 2.0)
    assert read_servegen_rates(path, "large").rates_rps == (1.0, 2.0)


def test_servegen_faults_are_listed_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", RATES.replace("1200,0,3", "1300,x,3").replace("600,20,", "600,-1,"))
    assert faults_of(lambda: read_servegen_rates(path, "small")) == [
        (3, "requests_per_s", "must be finite and at least 0 (found -1)"),
        (4, "requests_per_s", "'x' is no number"),
        (4, "t_start_s", "1300 is not 600 s after the interval above"),
    ]
    with pytest.raises(InputError, match=r"has no model 'huge'.\n\nIt has small, large."):
        read_servegen_rates(path, "huge")
    one = write(tmp_path / "one.csv", "model,t_start_s,requests_per_s\na,0,5\n")
    with pytest.raises(InputError, match="has 1 intervals of 'a'"):
        read_servegen_rates(one, "a")


# --- by columns and by rows --------------------------------------------------------------------


@given(
    rows=st.lists(
        st.tuples(st.floats(0.0, 1e9), st.sampled_from(["a", "b-1", "Ω"]), st.integers(1, 2**31 - 1)),
        min_size=2,
        max_size=20,
        unique_by=lambda row: row[0],
    ),
    ends=st.sampled_from(["\n", "\r\n"]),
    blank=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_reading_at_once_and_row_by_row_agree(
    rows: list[tuple[float, str, int]],
    ends: str,
    blank: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The fast reader gives up or gives what the exact one does, to the last bit."""
    folder = tmp_path_factory.mktemp("trace")
    lines = ["arrival_s,service,input_tokens,output_tokens"]
    lines += [f"{time!r},{name},{tokens},{tokens - 1}" for time, name, tokens in sorted(rows)]
    path = folder / "t.csv"
    path.write_bytes((ends.join(lines) + ends * (1 + blank)).encode())
    data = path.read_bytes()
    fast = files._read_at_once(data, path)
    assert fast is not None
    assert columns_of(fast) == columns_of(files._read_by_rows(data, path)) == columns_of(read_trace(path))


def test_azure_and_burstgpt_agree_with_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = ["2023-11-16 18:17:03.9799600", "2024-05-10 02:00:01.009930+02:00", "2023-11-16 18:17:04"]
    rows = "".join(f"{stamp},{place + 3},{place + 5}\n" for place, stamp in enumerate(stamps))
    azure_path = write(tmp_path / "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    burst_path = write(tmp_path / "b.csv", BURSTGPT + BURSTGPT_ROWS)
    fast = columns_of(import_azure(azure_path, "x")), columns_of(import_burstgpt(burst_path)[0])
    monkeypatch.setattr(azure, "read_columns", lambda *_: None)
    monkeypatch.setattr(burstgpt, "read_columns", lambda *_: None)
    slow = columns_of(import_azure(azure_path, "x")), columns_of(import_burstgpt(burst_path)[0])
    assert fast == slow


@pytest.mark.parametrize(
    "row",
    ["1,a,2", "1,a,2,3,4", "nan,a,2,3", "inf,a,2,3", "-1,a,2,3", "1,a,2.0,3", "1,a,9999999999,3", "1, a,2,3"],
)
def test_unusual_rows_are_left_to_the_exact_reader(row: str) -> None:
    header = "arrival_s,service,input_tokens,output_tokens\n"
    kinds = {"arrival_s": "seconds", "service": "text", "input_tokens": "tokens", "output_tokens": "tokens"}
    for text in (f"{header}{row}\n", f"{header}0,a,1,1\n{row}\n2,a,1,1\n", f"{header}{row}\n" * 2):
        assert read_columns(text.encode(), 0, kinds) is None  # type: ignore[arg-type]


# --- real records ------------------------------------------------------------------------------


def test_the_real_servegen_rates(shared_data: Path) -> None:
    """Five services; fourteen days of the language models, one of the others, at ten minutes."""
    path = shared_data / "traces" / "servegen_rates_10min.csv"
    for model, days in (("m-small", 14), ("m-mid", 14), ("m-large", 14), ("mm-image", 1), ("deepseek-r1", 1)):
        process = read_servegen_rates(path, model)
        assert (process.interval_s, len(process.rates_rps)) == (600.0, 144 * days)
    process = process.at_rate(5.0)
    trace = draw_trace(
        process, service="r", lengths=1, duration_s=86_400.0, phase_s=0.0, rng=np.random.default_rng(0)
    )
    counts = np.histogram(trace.arrival_s, np.arange(145) * 600.0)[0]
    expected = 600.0 * np.array(process.rates_rps)
    # Poisson counts about the record's rates: the sum of squared standard scores is χ² with 144 degrees.
    score = float(((counts - expected) ** 2 / expected).sum())
    assert score == pytest.approx(144, abs=4 * np.sqrt(2 * 144))


# --- fault injection ---------------------------------------------------------------------------

READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "own": (
        read_trace,
        "# duration_s=9\narrival_s,service,input_tokens,output_tokens\n0.5,a,3,4\n1.5,b,5,0\n",
    ),
    "azure": (
        lambda path: import_azure(path, "a"),
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,3,4\n2023-11-16 18:17:04,5,6\n",
    ),
    "burstgpt": (import_burstgpt, BURSTGPT + BURSTGPT_ROWS),
    "mooncake": (
        lambda path: import_mooncake(path, "a"),
        '{"timestamp": 0, "input_length": 3, "output_length": 4}\n'
        '{"timestamp": 5, "input_length": 3, "output_length": 4, "hash_ids": [1]}\n',
    ),
    "servegen": (lambda path: read_servegen_rates(path, "small"), RATES),
}


@pytest.mark.parametrize("name", READERS)
@given(
    place=st.floats(0.0, 1.0),
    length=st.integers(0, 12),
    put=st.binary(max_size=6)
    | st.sampled_from([b"nan", b"-1", b"1e400", b'"', b",,", b"\n\n", b"\r", b"\x00", b"9" * 40]),
)
@settings(max_examples=120, deadline=None)
def test_a_damaged_file_is_read_or_refused_and_never_breaks_the_reader(
    name: str, place: float, length: int, put: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any bytes in the place of any others: a trace, or an error that names the file and what to do."""
    read, text = READERS[name]
    whole = text.encode()
    start = round(place * len(whole))
    path = tmp_path_factory.mktemp("damaged") / "damaged.csv"
    path.write_bytes(whole[:start] + put + whole[start + length :])
    try:
        read(path)
    except InputError as error:
        refusal = error
    else:
        return
    assert str(path) in refusal.problem
    assert refusal.remedy


@given(
    place=st.floats(0.0, 1.0),
    length=st.integers(0, 4),
    put=st.text("0123456789.,+-eEna_ \r\n\t\"'#x", max_size=4),
)
@settings(max_examples=400, deadline=None)
def test_the_fast_reader_takes_nothing_that_the_exact_one_refuses(
    place: float, length: int, put: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whether a line is accepted must not depend on what else stands in the file."""
    whole = READERS["own"][1]
    start = round(place * len(whole))
    path = tmp_path_factory.mktemp("damaged") / "damaged.csv"
    data = (whole[:start] + put + whole[start + length :]).encode()
    try:
        fast = files._read_at_once(data, path)
    except InputError:
        return  # too few requests to tell how long the trace is: the exact reader says the same
    if fast is not None:
        assert columns_of(fast) == columns_of(files._read_by_rows(data, path))
