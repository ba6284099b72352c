"""A reading on a terminal: with colours if there are any, in any width, in any encoding."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np

from gpt.cli.screen import Screen
from gpt.generation.sampling import Sampling
from gpt.microscope.reading import Reading, visible

SHADES = (22, 28, 58, 94, 130, 160)  # backgrounds of a terminal's 256 colours, from green (expected) to red (a surprise)
LIMITS = (0.5, 1.0, 2.0, 3.0, 4.5)  # nats, where one shade ends and the next begins
PLAIN = str.maketrans({"·": "_", "⏎": "\\", "⇥": ">", "█": "#", "→": "->", "…": "..."})
NAME = 8  # columns for a token


class Terminal(Screen):
    """A screen, and the signs of this page in the encoding that it has."""

    def plain(self, text: str) -> str:
        """``text`` in signs that the encoding has."""
        return text if self.can_show(text) else text.translate(PLAIN).encode(self.encoding, "replace").decode(self.encoding)


def lines_of(reading: Reading, sampling: Sampling, effects: np.ndarray, texts: dict[int, str], terminal: Terminal) -> Iterator[str]:
    """Everything, section by section.

    Args:
        effects: what `gpt.microscope.reading.influence` says of each token, for the likeliest next token.
        texts: of the tokens that are named.
    """
    for title, lines in (
        ("Surprise, in nats a token", surprise_lines(reading, terminal)),
        ("What comes next", next_lines(reading, sampling, texts, terminal)),
        ("The guess after each block", guess_lines(reading, texts)),
        ("Where each head looks", head_lines(reading, terminal)),
        ("Which token mattered for the guess", effect_lines(reading, effects, texts, terminal)),
    ):
        yield f"\033[1m{title}\033[0m" if terminal.colours else title
        yield from (terminal.plain(line) for line in lines)
        yield ""


def surprise_lines(reading: Reading, terminal: Terminal) -> Iterator[str]:
    """The text, coloured; without colours with a digit below each token: whole nats, 9 for more."""
    surprise, line, below, used = reading.surprise, "", "", 0
    for token, nats in zip(reading.tokens, surprise, strict=True):
        text = terminal.plain(visible(token))
        if used and used + len(text) > terminal.width - 2:
            yield from _surprise_row(line, below, terminal)
            line, below, used = "", "", 0
        line += f"\033[48;5;{SHADES[np.searchsorted(LIMITS, nats)]}m\033[97m{text}\033[0m" if terminal.colours and nats == nats else text
        below += ("-" if nats != nats else str(min(9, int(nats)))).ljust(len(text))
        used += len(text)
        if "\n" in token:
            yield from _surprise_row(line, below, terminal)
            line, below, used = "", "", 0
    if line:
        yield from _surprise_row(line, below, terminal)
    if len(surprise) > 1:
        mean, worst = float(np.nanmean(surprise)), int(np.nanargmax(surprise))
        yield f"mean {mean:.2f}; the greatest, {surprise[worst]:.2f}, at {visible(reading.tokens[worst])!r}"


def _surprise_row(line: str, below: str, terminal: Terminal) -> Iterator[str]:
    yield f"  {line}"
    if not terminal.colours:
        yield f"  {below}".rstrip()


def next_lines(reading: Reading, sampling: Sampling, texts: dict[int, str], terminal: Terminal) -> Iterator[str]:
    """Bars of the likeliest next tokens, as the model has them and as they are sampled."""
    room = max(8, min(40, terminal.width - NAME - 26))
    yield f"  {'':<{NAME}}{'p':>7}{'sampled':>9}"
    for token, p, sampled in reading.next_tokens(sampling):
        yield f"  {cut(texts[token]):<{NAME}}{p:>7.1%}{sampled:>9.1%}  {'█' * round(p * room)}".rstrip()


def guess_lines(reading: Reading, texts: dict[int, str]) -> Iterator[str]:
    """What the head would say already after each block."""
    for layer, (token, p) in enumerate(reading.guesses()):
        yield f"  block {layer:<3}{cut(texts[token]):<{NAME}}{p:>7.1%}"


def head_lines(reading: Reading, terminal: Terminal) -> Iterator[str]:
    """A line for each head."""
    for layer, head in np.ndindex(reading.attention.shape[:2]):
        roles = ", ".join(f"{role} {share:.0%}" for role, share in reading.main_roles(layer, head))
        last = reading.attention[layer, head, -1]
        most = int(last.argmax())
        text = f"block {layer} head {head}  {roles}; now {cut(visible(reading.tokens[most]))!r} at {most}, {last[most]:.0%}"
        yield from textwrap.wrap(text, terminal.width, initial_indent="  ", subsequent_indent="    ")


def effect_lines(reading: Reading, effects: np.ndarray, texts: dict[int, str], terminal: Terminal) -> Iterator[str]:
    """The tokens that spoke most for the likeliest next token, and against it."""
    target = int(reading.logits[-1].argmax())
    text = f"for {texts[target]!r}: by how much log p would fall, to first order, if a token's embedding were faded out"
    yield from textwrap.wrap(text, terminal.width, initial_indent="  ", subsequent_indent="  ")
    room, largest = max(8, min(30, terminal.width - NAME - 24)), float(np.abs(effects).max()) or 1.0
    for place in np.argsort(-np.abs(effects), kind="stable")[:8]:
        bar = "█" * round(abs(effects[place]) / largest * room)
        yield f"  {cut(visible(reading.tokens[place])):<{NAME}}at {place:<4}{effects[place]:>+9.3f}  {bar}".rstrip()


def cut(text: str) -> str:
    """At most as long as there is room for a token."""
    return text if len(text) < NAME else text[: NAME - 2] + "…"


def named(reading: Reading, sampling: Sampling) -> Sequence[int]:
    """The tokens whose texts are shown."""
    return [*(i for i, _, _ in reading.next_tokens(sampling)), *(i for i, _ in reading.guesses()), int(reading.logits[-1].argmax())]
