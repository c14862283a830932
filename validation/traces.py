"""Imported records against their published figures; errors of the shipped lengths and of drawn arrivals.

``python -m validation.traces`` prints the tables of docs/validation.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.traces.arrivals import draw_arrivals, gamma_arrivals
from muplan.traces.formats.azure import import_azure
from muplan.traces.formats.servegen import read_servegen_rates
from muplan.traces.lengths import load_lengths
from muplan.traces.processes import MarkovModulated, Piecewise
from muplan.traces.summary import describe_trace

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RECORDS = {
    "azure-conversation": "azure_llm_2023_conv.csv",
    "azure-code": "azure_llm_2023_code.csv",
}
PUBLISHED = {"azure-conversation": (5.53, 1.09), "azure-code": (2.57, 13.2)}
"""Rate and CV of the records as stated with the data."""
DISPERSED: dict[str, MarkovModulated | Piecewise] = {
    "two states, 5 and 50/s": MarkovModulated(rates_rps=(5.0, 50.0), sojourns_s=(6.0, 2.0)),
    "three states, one silent": MarkovModulated(rates_rps=(5.0, 50.0, 0.0), sojourns_s=(6.0, 1.0, 3.0)),
    "piecewise, noise 0.5": Piecewise(rates_rps=(1.0, 5.0, 20.0, 8.0), interval_s=30.0, noise_cv=0.5),
}
NUM_SAMPLES = 200_000
NUM_LAPS = 40
NUM_PERIODS = 2_000


def main() -> None:
    """Print all tables."""
    if (SHARED_DATA / "traces").is_dir():
        print_records()
        print_rates()
        print_lengths()
    else:
        print(f"{SHARED_DATA.parent.name}/data is absent: records are not compared.\n")
    print_arrivals()
    print_dispersion()


def print_records() -> None:
    """Describe the imported records beside what was published with them."""
    print("| record | requests | rate 1/s | published | CV | published | I(1 s) | I(10 s) | I(60 s) |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, file in RECORDS.items():
        (found,) = describe_trace(import_azure(SHARED_DATA / "traces" / file, name)).services
        rate_rps, cv = PUBLISHED[name]
        indices = " | ".join(f"{item.index:.1f}" for item in found.dispersion)
        print(
            f"| {name} | {found.num_requests:,} | {found.rate_rps:.2f} | {rate_rps} | {found.cv or 0.0:.2f}"
            f" | {cv} | {indices} |"
        )
    print()


def print_rates() -> None:
    """Draw laps of every service of the recorded rates at 5 requests/s; compare the intervals' counts."""
    print(
        "| service | intervals | mean 1/s | highest / mean | drawn / record | χ² of the counts / intervals |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for model in ("m-small", "m-mid", "m-large", "deepseek-r1", "mm-image"):
        process = read_servegen_rates(SHARED_DATA / "traces" / "servegen_rates_10min.csv", model)
        scaled = process.at_rate(5.0)
        num_intervals = len(scaled.rates_rps)
        edges_s = np.arange(num_intervals + 1) * scaled.interval_s
        counts = np.array(
            [
                np.histogram(
                    draw_arrivals(
                        scaled, duration_s=scaled.lap_s, rng=np.random.default_rng([seed, 8]), phase_s=0.0
                    ),
                    edges_s,
                )[0]
                for seed in range(NUM_LAPS)
            ]
        )
        expected = scaled.interval_s * np.array(scaled.rates_rps)
        has_requests = expected > 0.0
        scores = (counts - expected)[:, has_requests] ** 2 / expected[has_requests]
        drawn = counts.sum() / (NUM_LAPS * expected.sum())
        print(
            f"| {model} | {num_intervals:,} | {process.rate_rps:.4g}"
            f" | {max(process.rates_rps) / process.rate_rps:.2f} | {drawn:.4f}"
            f" | {scores.mean():.3f} ± {1.96 * np.sqrt(2 / scores.size):.3f} |"
        )
    print()


def print_dispersion() -> None:
    """Compare the dispersion of drawn counts with the closed forms."""
    print("\n| process | window s | closed form | drawn / closed form |")
    print("|---|---:|---:|---:|")
    for name, process in DISPERSED.items():
        for window_s in (0.5, 5.0, 50.0):
            mean = process.rate_rps * window_s
            found = []
            for seed in range(NUM_PERIODS // 10):
                rng = np.random.default_rng([seed, 9])
                arrivals = draw_arrivals(process, duration_s=200 * window_s, rng=rng)
                counts = np.histogram(arrivals, np.arange(201) * window_s)[0]
                found.append(((counts - mean) ** 2).mean() / mean)
            expected = process.dispersion(window_s)
            print(f"| {name} | {window_s:g} | {expected:.3f} | {_ratio(np.array(found) / expected)} |")


def print_lengths() -> None:
    """Compare lengths drawn from the shipped quantiles with the recorded ones."""
    print("| distribution | length | | mean | p50 | p90 | p99 | rank correlation |")
    print("|---|---|---|---|---|---|---|---|")
    for name, file in RECORDS.items():
        record = import_azure(SHARED_DATA / "traces" / file, name)
        drawn = load_lengths(name).sample(NUM_SAMPLES, np.random.default_rng(0))
        columns = {"input": (record.input_tokens, drawn[0]), "output": (record.output_tokens, drawn[1])}
        correlations = (
            rank_correlation(record.input_tokens, record.output_tokens),
            rank_correlation(*drawn),
        )
        for kind, pair in columns.items():
            for source, tokens, correlation in zip(("recorded", "drawn"), pair, correlations, strict=True):
                p50, p90, p99 = np.quantile(tokens, (0.5, 0.9, 0.99))
                print(
                    f"| {name} | {kind} | {source} | {tokens.mean():.1f} | {p50:.0f} | {p90:.0f} | {p99:.0f}"
                    f" | {correlation:+.3f} |"
                )
    print()


def print_arrivals() -> None:
    """Compare counts and intervals of generated arrivals with renewal theory."""
    print(
        "| CV stated | CV of the intervals | mean first arrival / theory"
        " | requests in the first 50 ms / rate × time |"
    )
    print("|---|---|---|---|")
    rate_rps, first_s = 10.0, 0.05
    for cv in (0.5, 1.0, 2.0, 4.0):
        long = gamma_arrivals(rate_rps, cv, duration_s=50_000.0, rng=np.random.default_rng(0))
        intervals = np.diff(long)
        starts = [
            gamma_arrivals(
                rate_rps, cv, duration_s=60.0 * cv**2, rng=np.random.default_rng([index, round(10 * cv)])
            )
            for index in range(NUM_PERIODS)
        ]
        first = np.array([arrivals[0] for arrivals in starts if len(arrivals)])
        early = np.array([(arrivals < first_s).sum() for arrivals in starts])
        theory_s = (1.0 + cv**2) / (2.0 * rate_rps)
        print(
            f"| {cv:g} | {intervals.std() / intervals.mean():.3f} | {_ratio(first / theory_s)}"
            f" | {_ratio(early / (rate_rps * first_s))} |"
        )


def rank_correlation(left: NDArray[np.int32], right: NDArray[np.int32]) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


def _ratio(values: NDArray[np.float64]) -> str:
    """Mean and 95 % confidence half-width."""
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    return f"{values.mean():.3f} ± {half_width:.3f}"


if __name__ == "__main__":
    main()
