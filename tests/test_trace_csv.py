"""Trace files: muplan's own CSV, and the importer of the public Azure traces.

If these fail, recorded demand is read wrongly, or a user with a faulty file is left to guess where.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.errors import InputError
from muplan.traces.files import read_trace, write_trace
from muplan.traces.formats.azure import import_azure
from muplan.traces.summary import describe_trace
from muplan.traces.trace import Trace

HEADER = "arrival_s,service,input_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    count = draw(st.integers(1, 20))
    times = st.floats(0.0, 1e6, allow_subnormal=False)
    arrivals = np.array(sorted(draw(st.lists(times, min_size=count, max_size=count))))
    tokens = st.lists(st.integers(1, 2**31 - 1), min_size=count, max_size=count)
    # Every service has a request: a file names only services that have one.
    members = np.array([0, *draw(st.lists(st.integers(0, 1), min_size=count - 1, max_size=count - 1))])
    names = ("chat", "search")[: members.max() + 1]
    return Trace(
        services=names,
        arrival_s=arrivals,
        service=members.astype(np.int32),
        input_tokens=np.array(draw(tokens), dtype=np.int32),
        output_tokens=np.array(draw(tokens), dtype=np.int32),
        duration_s=float(np.nextafter(arrivals[-1], np.inf)) + draw(st.floats(0.0, 100.0)),
    )


@given(trace=traces())
@settings(max_examples=60, deadline=None)
def test_round_trip_is_exact(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    write_trace(trace, path)
    again = read_trace(path)
    assert (again.services, again.duration_s) == (trace.services, trace.duration_s)
    for name in ("arrival_s", "service", "input_tokens", "output_tokens"):
        assert getattr(again, name).tobytes() == getattr(trace, name).tobytes()
        assert getattr(again, name).dtype == getattr(trace, name).dtype


def test_plain_csv_ends_one_mean_interval_after_the_last_request(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", HEADER + "1.0,b,5,0\n2.0,a,6,7\n5.0,b,8,0\n\n")
    trace = read_trace(path)
    assert trace.services == ("a", "b")
    assert list(trace.service) == [1, 0, 1]
    assert trace.duration_s == 5.0 + 2.0


def test_windows_line_ends_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + "0.5,a,5,0\n1.5,a,6,0\n").replace("\n", "\r\n").encode())
    assert list(read_trace(path).arrival_s) == [0.5, 1.5]


def test_every_fault_is_listed_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "# duration_s=4\n"
        + HEADER
        + "1,a,1,2\nx,a,0,1.5\n0.5,,3,4\n1,2\n-1,a,1,1\nnan,a,1,1\n3,a,99999999999,1\n4,a,-1,1\n",
    )
    with pytest.raises(InputError) as caught:
        read_trace(path)
    whole = "must be a whole number from"
    assert [(fault.line, fault.key, fault.message) for fault in caught.value.faults] == [
        (4, "arrival_s", "'x' is no number"),
        (4, "input_tokens", f"{whole} 1 to 2147483647 (found '0')"),
        (4, "output_tokens", f"{whole} 0 to 2147483647 (found '1.5')"),
        (5, "arrival_s", "0.5 is before the request above, at 1.0"),
        (5, "service", "the name is empty"),
        (6, "", "expected 4 fields, found 2"),
        (7, "arrival_s", "must be finite and at least 0 (found -1)"),
        (8, "arrival_s", "must be finite and at least 0 (found nan)"),
        (9, "input_tokens", f"{whole} 1 to 2147483647 (found '99999999999')"),
        (10, "arrival_s", "4 is not before the end of the trace, 4.0"),
        (10, "input_tokens", f"{whole} 1 to 2147483647 (found '-1')"),
    ]
    assert f"{path}:5: arrival_s: 0.5 is before" in str(caught.value)


def test_a_hopeless_file_lists_fifty_faults_and_counts_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", HEADER + "1,a,0,0\n" * 70)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert "has 70 faults" in caught.value.problem
    assert caught.value.problem.endswith("… and 20 more")
    assert len(caught.value.faults) == 70


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the header arrival_s,service,input_tokens,output_tokens, found ''"),
        ("a,b\n1,2\n", "expected the header arrival_s,service,input_tokens,output_tokens, found 'a,b'"),
        (HEADER, "no request follows the header"),
        (HEADER + "1,a,1,0\n", "too few requests to tell"),
        ("# duration_s=0\n" + HEADER + "1,a,1,0\n", ":1: duration_s: must be above 0"),
        ("# duration_s=ten\n" + HEADER + "1,a,1,0\n", ":1: duration_s: 'ten' is no number"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(write(tmp_path / "t.csv", text))
    assert message in caught.value.problem


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path)
    (tmp_path / "latin.csv").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_trace(tmp_path / "latin.csv")


def test_a_name_that_a_line_cannot_hold_is_refused(tmp_path: Path) -> None:
    trace = Trace(
        services=("a,b",),
        arrival_s=np.array([0.0]),
        service=np.zeros(1, dtype=np.int32),
        input_tokens=np.ones(1, dtype=np.int32),
        output_tokens=np.ones(1, dtype=np.int32),
        duration_s=1.0,
    )
    with pytest.raises(InputError, match="'a,b' cannot be written"):
        write_trace(trace, tmp_path / "t.csv")


def test_azure_import(tmp_path: Path) -> None:
    path = write(
        tmp_path / "azure.csv",
        AZURE
        + "2023-11-16 18:15:46.6805900,374,44\n"
        + "2023-11-16 18:15:50.9951690,396,109\n"
        + "2023-11-16 18:15:48.6805900,879,55\n",
    )
    trace = import_azure(path, "chat")
    assert trace.services == ("chat",)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 2.0, 4.314579], atol=1e-6)
    assert list(trace.input_tokens) == [374, 879, 396]
    assert list(trace.output_tokens) == [44, 55, 109]
    assert trace.duration_s == pytest.approx(1.5 * 4.314579)


def test_azure_import_reads_time_zones(tmp_path: Path) -> None:
    """The traces of 2024 write their zone."""
    rows = "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 02:00:01.009930+02:00,2399,6\n"
    assert list(import_azure(write(tmp_path / "azure.csv", AZURE + rows), "code").arrival_s) == [0.0, 1.0]


def test_azure_faults_are_listed_with_their_lines(tmp_path: Path) -> None:
    rows = "2023-11-16 18:15:46.6805900,374,44\nyesterday,374,44\n2023-11-16 18:15:47,0,x\n"
    with pytest.raises(InputError) as caught:
        import_azure(write(tmp_path / "azure.csv", AZURE + rows), "chat")
    assert [(fault.line, fault.key) for fault in caught.value.faults] == [
        (3, "TIMESTAMP"),
        (4, "ContextTokens"),
        (4, "GeneratedTokens"),
    ]
    with pytest.raises(InputError, match="expected the header TIMESTAMP,ContextTokens,GeneratedTokens"):
        import_azure(write(tmp_path / "other.csv", HEADER + "1,a,1,0\n"), "chat")


@pytest.mark.parametrize(
    ("file", "count", "rate_rps", "cv", "mean_input", "mean_output"),
    [
        ("azure_llm_2023_conv.csv", 19_366, 5.53, 1.09, 1_155, 211),
        ("azure_llm_2023_code.csv", 8_819, 2.57, 13.2, 2_048, 28),
    ],
)
def test_the_real_azure_traces(
    shared_data: Path,
    file: str,
    count: int,
    rate_rps: float,
    cv: float,
    mean_input: float,
    mean_output: float,
) -> None:
    """Counts, rates, burstiness and means as published with the data."""
    (summary,) = describe_trace(import_azure(shared_data / "traces" / file, "llm")).services
    assert summary.num_requests == count
    assert summary.rate_rps == pytest.approx(rate_rps, abs=0.005)
    assert summary.cv == pytest.approx(cv, abs=0.05)
    assert summary.input_tokens is not None
    assert summary.output_tokens is not None
    assert summary.input_tokens.mean == pytest.approx(mean_input, abs=0.5)
    assert summary.output_tokens.mean == pytest.approx(mean_output, abs=0.5)
