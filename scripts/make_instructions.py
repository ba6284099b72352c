"""Write instruction pairs for finetuning, made by rules from a few words:  python scripts/make_instructions.py 200 > pairs.jsonl

Four kinds, each with a short answer of one form, so that one can see whether a model has learnt them: sort three words, count the letters
of a word, write a word in capitals, and say whether a number is even.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np

WORDS = [
    "apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle", "ladder", "magnet",
    "needle", "orange", "pepper", "quartz", "ribbon", "saddle", "temple", "umbrella", "violin", "window", "yellow", "zebra", "anchor",
    "basket", "camera", "desert", "eagle", "feather", "guitar", "honey", "insect", "jungle", "kitchen", "lemon", "mirror", "notebook",
    "ocean", "pencil", "queen", "river", "silver", "tiger", "uniform", "village", "water",
]  # fmt: skip


def sort_words(rng: np.random.Generator) -> tuple[str, str]:
    """Three words to sort."""
    words = rng.choice(WORDS, 3, replace=False).tolist()
    return f"Sort these words: {', '.join(words)}.", f"Answer: {', '.join(sorted(words))}."


def count_letters(rng: np.random.Generator) -> tuple[str, str]:
    """A word whose letters are to be counted."""
    word = str(rng.choice(WORDS))
    return f"How many letters are in the word {word}?", f"Answer: {len(word)}."


def write_in_capitals(rng: np.random.Generator) -> tuple[str, str]:
    """A word to write in capitals."""
    word = str(rng.choice(WORDS))
    return f"Write the word {word} in capital letters.", f"Answer: {word.upper()}."


def is_even(rng: np.random.Generator) -> tuple[str, str]:
    """A number that is even or odd."""
    number = int(rng.integers(10, 1000))
    return f"Is {number} even or odd?", f"Answer: {'odd' if number % 2 else 'even'}."


KINDS: list[Callable[[np.random.Generator], tuple[str, str]]] = [sort_words, count_letters, write_in_capitals, is_even]


def main(count: int = 200, seed: int = 0) -> None:
    """Print ``count`` pairs, no prompt twice."""
    rng, seen = np.random.default_rng(seed), set[str]()
    while len(seen) < count:
        prompt, response = KINDS[rng.integers(len(KINDS))](rng)
        if prompt not in seen:
            seen.add(prompt)
            print(json.dumps({"prompt": prompt, "response": response}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
