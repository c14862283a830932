"""Errors of the shipped length distributions and of generated arrivals.

``python -m validation.traces`` prints the tables of docs/validation.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.traces.arrivals import gamma_arrivals
from muplan.traces.formats.azure import import_azure
from muplan.traces.lengths import load_lengths

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RECORDS = {
    "azure-conversation": "azure_llm_2023_conv.csv",
    "azure-code": "azure_llm_2023_code.csv",
}
NUM_SAMPLES = 200_000
NUM_PERIODS = 2_000


def main() -> None:
    """Print both tables."""
    if (SHARED_DATA / "traces").is_dir():
        print_lengths()
    else:
        print(f"{SHARED_DATA.parent.name}/data is absent: lengths are not compared.\n")
    print_arrivals()


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
