"""`muplan trace`: whole outputs and whole files, as a user meets them.

If these fail, a trace is described, imported or converted otherwise than the documentation says.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from muplan.traces.files import read_trace
from tests.test_cli import muplan

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.50,374,44\n2023-11-16 18:15:47.00,396,109\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,417,276,693,API log\n"
    "65,ChatGPT,10,0,10,API log\n105,GPT-4,20,30,50,API log\n"
)
MOONCAKE = (
    '{"timestamp": 27500, "input_length": 6955, "output_length": 52, "hash_ids": [46, 2353]}\n'
    '{"timestamp": 30750, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47]}\n'
)
RATES = (
    "category,model,t_start_s,requests_per_s,active_clients\nlanguage,small,0,1,3\nlanguage,small,60,3,3\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a trace of two services: chat, and search which answers in one pass."""
    rows = [
        f"{place / 2},search,{100 + place},0"
        if place % 4 == 1
        else f"{place / 2},chat,{100 + place},{place + 1}"
        for place in range(40)
    ]
    text = "\n".join(["# duration_s=20", "arrival_s,service,input_tokens,output_tokens", *rows])
    (tmp_path / "t.csv").write_text(text + "\n", encoding="utf-8")
    for name, content in (("a", AZURE), ("b", BURSTGPT), ("m", MOONCAKE), ("r", RATES)):
        (tmp_path / f"{name}.txt").write_text(content, encoding="utf-8")
    return tmp_path


def succeed(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    run = muplan("trace", *arguments, folder=folder)
    assert run.returncode == 0, run.stderr
    return run


DESCRIBED = """\
t.csv: 20 s
┏━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━┳━━━━━━┳━━━━━━━━┓
┃ service ┃ requests ┃ rate 1/s ┃   CV ┃ I(1 s) ┃
┡━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━╇━━━━━━╇━━━━━━━━┩
│ chat    │       30 │      1.5 │ 0.35 │  0.175 │
│ search  │       10 │      0.5 │ 0.00 │  0.526 │
└─────────┴──────────┴──────────┴──────┴────────┘
CV: of the intervals. I(t): variance / mean of the requests in windows of t. Poisson: 1 and 1.
Lengths in tokens
┏━━━━━━━━━┳━━━━━━━━┳━━━━━━┳━━━━━┳━━━━━┳━━━━━┳━━━━━┳━━━━━┓
┃ service ┃ of     ┃ mean ┃ p10 ┃ p50 ┃ p90 ┃ p99 ┃ max ┃
┡━━━━━━━━━╇━━━━━━━━╇━━━━━━╇━━━━━╇━━━━━╇━━━━━╇━━━━━╇━━━━━┩
│ chat    │ input  │  120 │ 104 │ 120 │ 135 │ 139 │ 139 │
│ chat    │ output │   21 │   5 │  20 │  36 │  40 │  40 │
│ search  │ input  │  119 │ 105 │ 119 │ 133 │ 137 │ 137 │
└─────────┴────────┴──────┴─────┴─────┴─────┴─────┴─────┘
"""


def test_describe_prints_arrivals_and_lengths(folder: Path) -> None:
    run = succeed("describe", "t.csv", folder=folder)
    assert (run.stdout, run.stderr) == (DESCRIBED, "")


def test_describe_prints_json(folder: Path) -> None:
    content = json.loads(succeed("describe", "t.csv", "--json", folder=folder).stdout)
    chat, search = content["services"]
    assert (content["duration_s"], content["num_requests"]) == (20.0, 40)
    assert search == {
        "service": "search",
        "num_requests": 10,
        "rate_rps": 0.5,
        "cv": 0.0,
        "dispersion": [{"window_s": 1.0, "index": pytest.approx(10 / 19)}],
        "input_tokens": {
            "mean": 119.0,
            "p10": pytest.approx(104.6),
            "p50": 119.0,
            "p90": pytest.approx(133.4),
            "p99": pytest.approx(136.64),
            "maximum": 137,
        },
        "output_tokens": {"mean": 0.0, "p10": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0, "maximum": 0},
    }
    assert chat["output_tokens"]["maximum"] == 40


def test_describe_draws_the_same_picture_twice(folder: Path) -> None:
    run = succeed("describe", "t.csv", "--plot", "one.png", folder=folder)
    assert (run.stdout, run.stderr) == (DESCRIBED, "Written: one.png\n")
    succeed("describe", "t.csv", "--json", "--plot", "two.png", folder=folder)
    one, two = ((folder / name).read_bytes() for name in ("one.png", "two.png"))
    assert one.startswith(b"\x89PNG")
    assert one == two


def test_describe_draws_a_trace_of_hardly_anything(folder: Path) -> None:
    """One request has no intervals, and no dispersion."""
    text = "# duration_s=5\narrival_s,service,input_tokens,output_tokens\n1,a,3,0\n"
    (folder / "one.csv").write_text(text, encoding="utf-8")
    succeed("describe", "one.csv", "--plot", "one.svg", folder=folder)
    assert (folder / "one.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "written", "content", "note"),
    [
        (
            ("azure", "a.txt", "--service", "chat"),
            "chat.trace.csv",
            "# duration_s=1.0\n@0.0,chat,374,44\n0.5,chat,396,109\n",
            "Written: chat.trace.csv (2 requests)\n",
        ),
        (
            ("burstgpt", "b.txt"),
            "burstgpt.trace.csv",
            "# duration_s=150.0\n@0.0,chatgpt,472,18\n40.0,gpt-4,417,276\n100.0,gpt-4,20,30\n",
            "Written: burstgpt.trace.csv (3 requests)\n1 requests without prompt or reply are left out.\n",
        ),
        (
            ("burstgpt", "b.txt", "--model", "GPT-4", "--log-type", "API log", "--service", "big"),
            "big.trace.csv",
            "# duration_s=120.0\n@0.0,big,417,276\n60.0,big,20,30\n",
            "Written: big.trace.csv (2 requests)\n",
        ),
        (
            ("mooncake", "m.txt", "--service", "chat", "-o", "mine.csv"),
            "mine.csv",
            "# duration_s=6.5\n@0.0,chat,6955,52\n3.25,chat,6472,26\n",
            "Written: mine.csv (2 requests)\n",
        ),
    ],
    ids=["azure", "burstgpt", "burstgpt of one model", "mooncake"],
)
def test_import_writes_a_trace_file(
    arguments: tuple[str, ...], written: str, content: str, note: str, folder: Path
) -> None:
    run = succeed("import", *arguments, folder=folder)
    assert (run.stdout, run.stderr) == ("", note)
    expected = content.replace("@", "arrival_s,service,input_tokens,output_tokens\n")
    assert (folder / written).read_text(encoding="utf-8") == expected


def test_servegen_rates_are_drawn_reproducibly(folder: Path) -> None:
    command = ("import", "servegen", "r.txt", "--model", "small", "--service", "s")
    succeed(*command, "--tokens", "9", "--rate", "40", folder=folder)
    trace = read_trace(folder / "s.trace.csv")
    assert (trace.services, trace.duration_s, set(trace.input_tokens)) == (("s",), 120.0, {9})
    early = int((trace.arrival_s < 60.0).sum())
    # 20/s for a minute, then 60/s: four standard errors of Poisson counts.
    assert abs(early - 1200) < 4 * 1200**0.5
    assert abs(len(trace) - early - 3600) < 4 * 3600**0.5
    first = (folder / "s.trace.csv").read_bytes()
    succeed(*command, "--tokens", "9", "--rate", "40", folder=folder)
    assert (folder / "s.trace.csv").read_bytes() == first
    succeed(*command, "--lengths", "azure-code", "--start", "60", "--duration", "30", folder=folder)
    part = read_trace(folder / "s.trace.csv")
    assert part.duration_s == 30.0
    assert part.output_tokens.min() >= 1
    assert abs(len(part) - 90) < 4 * 90**0.5


def test_convert_cuts_and_speeds_up(folder: Path) -> None:
    arguments = ("--service", "search", "--start", "5", "--stop", "10", "--faster", "2", "-o", "c.csv")
    run = succeed("convert", "t.csv", *arguments, folder=folder)
    assert (run.stdout, run.stderr) == ("", "Written: c.csv (2 requests)\n")
    assert (folder / "c.csv").read_text(encoding="utf-8") == (
        "# duration_s=2.5\narrival_s,service,input_tokens,output_tokens\n"
        "0.75,search,113,0\n1.75,search,117,0\n"
    )


def test_convert_lays_over_thins_and_multiplies(folder: Path) -> None:
    succeed("convert", "t.csv", "t.csv", "-o", "twice.csv", folder=folder)
    assert len(read_trace(folder / "twice.csv")) == 80
    succeed("convert", "t.csv", "--multiply", "3", "-o", "three.csv", folder=folder)
    assert len(read_trace(folder / "three.csv")) == 120
    succeed("convert", "t.csv", "--keep", "0.5", "--seed", "4", "-o", "half.csv", folder=folder)
    assert 5 < len(read_trace(folder / "half.csv")) < 35


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("convert", "t.csv", "--stop", "30", "-o", "c.csv"),
            "error: There is no part from 0 s to 30 s in a trace of 20 s.\n\n"
            "Give a beginning before an end, both within the trace.\n",
        ),
        (
            ("convert", "t.csv", "--keep", "0", "-o", "c.csv"),
            "error: A share of 0 cannot be kept of a trace.\n\nGive a share above 0 and at most 1.\n",
        ),
        (
            ("convert", "t.csv", "--multiply", "-1", "-o", "c.csv"),
            "error: A rate cannot be multiplied by -1.\n\nGive a finite factor above 0.\n",
        ),
        (
            ("convert", "t.csv", "--faster", "0", "-o", "c.csv"),
            "error: --faster 0 is no factor of speed.\n\nGive a finite factor above 0.\n",
        ),
        (
            ("convert", "t.csv", "--service", "photos", "-o", "c.csv"),
            "error: The trace has no service 'photos'; it has chat, search.\n\nName one of these.\n",
        ),
        (
            ("import", "mooncake", "a.txt", "--service", "chat"),
            "error: a.txt has 3 faults:\n"
            "  a.txt:1: is no JSON (Expecting value: line 1 column 1 (char 0))\n"
            "  a.txt:2: is no JSON (Extra data: line 1 column 5 (char 4))\n"
            "  a.txt:3: is no JSON (Extra data: line 1 column 5 (char 4))\n\n"
            "Correct or remove these lines; each is an object with timestamp, input_length, output_length.\n",
        ),
        (
            ("import", "azure", "b.txt", "--service", "chat"),
            "error: b.txt has 1 fault:\n"
            "  b.txt:1: expected the header TIMESTAMP,ContextTokens,GeneratedTokens, found"
            " 'Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type'\n\n"
            "Name a file of that form.\n",
        ),
        (
            ("import", "servegen", "r.txt", "--model", "small", "--service", "s"),
            "error: The rates do not say how long requests are.\n\n"
            "Give either --lengths (generate requests) or --tokens (forward requests).\n",
        ),
        (
            (
                "import",
                "servegen",
                "r.txt",
                "--model",
                "small",
                "--service",
                "s",
                "--tokens",
                "1",
                "--rate",
                "0",
            ),
            "error: --rate 0 cannot be drawn.\n\nGive a finite number above 0.\n",
        ),
        (
            ("describe", "t.csv", "--plot", "t.gif"),
            "error: t.gif ends in none of .png, .svg, .pdf.\n\nName a file that ends in one of these.\n",
        ),
    ],
)
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    arguments: tuple[str, ...], message: str, folder: Path
) -> None:
    before = sorted(folder.iterdir())
    run = muplan("trace", *arguments, folder=folder)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", message)
    assert sorted(folder.iterdir()) == before
