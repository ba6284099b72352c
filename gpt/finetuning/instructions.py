"""Instruction data: the model reads the question and the answer, and learns the answer alone.

    {"prompt": "Say hi.", "response": "Hi!"}
    {"messages": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}]}

Every line of a .jsonl file is one conversation, in either form. It becomes one text (`gpt.generation.chat_template`), and of that text only
what the assistant says has targets: users' words are there to be understood, not to be imitated. The assistant also learns to end its
turn, by writing the mark of the user, at which generation stops.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.tokenizer import Tokenizer
from gpt.finetuning.records import Record, RecordError, encode_all, read_records, text_of
from gpt.generation.chat_template import ROLES, Message, Template
from gpt.model import LanguageModel
from gpt.training.rows import IGNORE, Row
from tensorlite import Tensor
from tensorlite.nn import functional as F


def read_instructions(source: str | os.PathLike[str], tokenizer: Tokenizer, block_size: int, template: Template | None = None) -> list[Row]:
    """The conversations in a .jsonl file as rows to learn from.

    One of more than block_size tokens loses its beginning: what is learnt is at the end.

    Raises:
        RecordError: naming the line that is not a conversation, or what the tokenizer does not know.
    """
    template = template or Template()
    pieces: list[tuple[int, str]] = []  # line and text, of all conversations
    learnt: list[list[bool]] = []  # of each conversation, which of its pieces
    for record in read_records(source):
        # neighbours of one kind are encoded together, as they are when the model is talked to
        rendered = [*template.render(_messages(record, source)), (template.user, True)]
        grouped = itertools.groupby(rendered, key=lambda piece: piece[1])
        kinds = [(kind, "".join(text for text, _ in several)) for kind, several in grouped]
        pieces += [(record.line, text) for _, text in kinds]
        learnt.append([kind for kind, _ in kinds])
    ids = iter(encode_all(pieces, tokenizer, source))
    return [_row([(next(ids), kind) for kind in kinds], block_size) for kinds in learnt]


class ResponseLoss(LanguageModel):
    """A model whose training loss counts every response token the same, wherever it falls.

    The mean over a batch would not: a token weighs more in a batch (or in one worker's share of it) with few others. So while training

        loss = sum over the response tokens of -log p / (rows · tokens_per_row)

    with tokens_per_row the average over all data. Over an epoch that is the mean; for one batch it says less than in pretraining,
    for it also depends on how much there was to say. In eval mode it is the plain mean.
    """

    def __init__(self, model: LanguageModel, tokens_per_row: float) -> None:
        super().__init__(model.config)
        self.model = model
        self.tokens_per_row = tokens_per_row

    def logits(self, idx: Tensor) -> Tensor:
        return self.model.logits(idx)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """As `LanguageModel.forward`; a target of IGNORE does not count."""
        if targets is None or not self.training:
            return self.model(idx, targets)
        logits, _ = self.model(idx)
        total = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORE, reduction="sum")
        return logits, total / (idx.shape[0] * self.tokens_per_row)


def tokens_per_row(rows: Sequence[Row]) -> float:
    """How many targets a row has on average."""
    return sum(row.asked for row in rows) / len(rows)


def _row(pieces: list[tuple[np.ndarray, bool]], block_size: int) -> Row:
    ids = np.concatenate([ids for ids, _ in pieces])
    learn = np.concatenate([np.full(len(ids), kind) for ids, kind in pieces])
    x, y = ids[:-1], np.where(learn[1:], ids[1:], IGNORE)  # position t is asked for token t + 1
    return Row(x[-block_size:], y[-block_size:])


def _messages(record: Record, path: str | os.PathLike[str]) -> list[Message]:
    """The conversation in a line, whichever form it has."""
    if "messages" not in record.fields:
        names = ("prompt", "user"), ("response", "assistant")
        return [{"role": role, "content": text_of(record, name, path)} for name, role in names]
    where, messages = f"line {record.line} of {path}", record.fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise RecordError(f"{where}: 'messages' must be a list that is not empty, got {messages!r}.")
    checked = [_checked(message, where) for message in messages]
    if checked[-1]["role"] != "assistant":
        raise RecordError(f"{where}: the last message is the {checked[-1]['role']}'s, but what is to be learnt is the assistant's answer.")
    return checked


def _checked(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
        raise RecordError(f"{where}: a message must have a 'role' and a 'content', both texts, got {message!r}.")
    if message["role"] not in ROLES:
        raise RecordError(f"{where}: a message's role is one of {', '.join(ROLES)}, got {message['role']!r}.")
    return message
