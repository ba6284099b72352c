"""The log-probabilities of given tokens, many rows at a time.

Rows of similar length share a batch, so that little is padding. The model's body computes every position, but its head only those that
are asked for: in multiple choice these are a few of a hundred, and with a large vocabulary the head is a third of the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

import tensorlite as tl
from gpt.model import GPT, LanguageModel
from gpt.training.rows import IGNORE, Row, pad_rows
from tensorlite import Tensor
from tensorlite.nn import functional as F
from tensorlite.parallel import World

BATCH_TOKENS = 4096
_MOST_LOGITS = 2**24  # numbers at once, 64 MiB in float32


class Score(NamedTuple):
    """For each target of a row, (n,): log p(target), in nats, and whether the model finds no other token more probable."""

    log_probs: np.ndarray
    is_likeliest: np.ndarray


def score_rows(model: LanguageModel, rows: Sequence[Row], batch_tokens: int = BATCH_TOKENS, world: World | None = None) -> list[Score]:
    """The score of each row's targets that are not IGNORE, in eval mode and off the tape.

    Args:
        batch_tokens: the largest number of tokens in a batch, with its padding; a longer row is a batch by itself.
        world: the ranks of MPI that share the batches.
    """
    device, mode, world = next(iter(model.parameters())).device, model.training, world or World()
    scores: dict[int, Score] = {}
    batches = list(_batches([len(row) for row in rows], batch_tokens))
    model.eval()
    with world.together(), tl.no_grad():
        for numbers in (batches[i] for i in world.share(range(len(batches)))):
            x, y = pad_rows([rows[i] for i in numbers])
            asked = np.nonzero(y != IGNORE)  # in the order of the rows
            scored = _score(model, tl.tensor(x, device=device), asked, y[asked])
            ends = np.cumsum([rows[i].num_targets for i in numbers])[:-1]
            for i, log_probs, is_likeliest in zip(
                numbers, np.split(scored.log_probs, ends), np.split(scored.is_likeliest, ends), strict=True
            ):
                scores[i] = Score(log_probs, is_likeliest)
    model.train(mode)
    found = {i: score for part in world.gather_objects(scores) for i, score in part.items()}
    return [found[i] for i in range(len(rows))]


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """The numbers of the rows of each batch. The longest come first: if memory does not suffice, it is known at once."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _score(model: LanguageModel, idx: Tensor, asked: tuple[np.ndarray, ...], targets: np.ndarray) -> Score:
    """The scores of the ``targets`` (N,) at the places that are ``asked`` for."""
    if not len(targets):
        return Score(np.zeros(0), np.zeros(0, bool))
    rows, places = (tl.tensor(numbers, device=idx.device) for numbers in asked)
    # A bigram table has no body: its rows are the logits.
    vectors = (model.features(idx) if isinstance(model, GPT) else model.logits(idx))[rows, places]  # (N, C)
    at_once = max(1, _MOST_LOGITS // model.config.vocab_size)
    log_probs, is_likeliest = [], []
    for start in range(0, len(targets), at_once):
        part = slice(start, start + at_once)
        logits = model.lm_head(vectors[part]) if isinstance(model, GPT) else vectors[part]  # (n, V)
        y = tl.tensor(targets[part], device=idx.device)
        log_probs.append(-F.cross_entropy(logits, y, reduction="none").numpy().astype(np.float64))
        is_likeliest.append(logits.argmax(-1).numpy() == targets[part])
    return Score(np.concatenate(log_probs), np.concatenate(is_likeliest))
