"""Synthetic prompts: as many tokens as the trace says, and no two alike.

Servers keep the keys and values of prompts that they have seen (prefix caching), so a prompt that came before
would be answered sooner than a user's.
"""

from __future__ import annotations

import numpy as np

# fmt: off
_WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school",
    "state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week",
    "company", "system", "program", "question", "work", "night", "point", "home", "water", "room",
    "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job",
    "word", "business", "issue", "side", "kind", "head", "house", "service", "friend", "father", "power",
    "hour", "game", "line", "end", "member", "law", "car", "city", "name", "team", "minute", "idea",
)
# fmt: on
"""English words that common tokenizers have whole."""


def prompt_ids(count: int, below: int, seed: int, number: int) -> list[int]:
    """Draw a prompt of ``count`` token ids below ``below``: the same for a seed and a request's number."""
    ids: list[int] = np.random.default_rng((seed, number)).integers(below, size=count).tolist()
    return ids


def prompt_text(count: int, seed: int, number: int) -> str:
    """Draw a prompt of ``count`` words, each about a token: the same for a seed and a request's number."""
    drawn = np.random.default_rng((seed, number)).integers(len(_WORDS), size=count)
    return "".join(f" {_WORDS[word]}" for word in drawn)
