"""Instruction data: the model reads prompt and response, and is trained on the response alone.

    {"prompt": "Say hi.", "response": "Hi!"}
    {"messages": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}]}

Every line of a .jsonl file is one conversation, in either form. It becomes one text (`gpt.generation.chat_template`). Only what the
assistant says has targets, so that the model does not learn to imitate users. The assistant also learns to end its turn: it writes the
mark of the user, at which generation stops.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.tokenizer import Tokenizer
from gpt.finetuning.records import Record, RecordError, encode_texts, read_records, text_field
from gpt.generation.chat_template import ROLES, ChatTemplate, Message
from gpt.generation.jinja_template import JinjaTemplate
from gpt.model import LanguageModel
from gpt.training.rows import IGNORE, Row
from tensorlite import Tensor
from tensorlite.nn import functional as F


def read_instructions(
    source: str | os.PathLike[str], tokenizer: Tokenizer, block_size: int, template: ChatTemplate | JinjaTemplate | None = None
) -> list[Row]:
    """The conversations in a .jsonl file as rows.

    A conversation of more than block_size tokens loses its beginning, because its last response is at the end.

    Raises:
        RecordError: naming the line that is not a conversation, or what the tokenizer does not know.
    """
    template = template or ChatTemplate()
    pieces: list[tuple[int, str]] = []  # line and text, of all conversations
    trained: list[list[bool]] = []  # for each conversation, which of its pieces have targets
    for record in read_records(source):
        # neighbours of one kind are encoded together, as in a chat
        rendered = template.training_pieces(_messages(record, source))
        grouped = itertools.groupby(rendered, key=lambda piece: piece[1])
        kinds = [(kind, "".join(text for text, _ in several)) for kind, several in grouped]
        pieces += [(record.line, text) for _, text in kinds]
        trained.append([kind for kind, _ in kinds])
    ids = iter(encode_texts(pieces, tokenizer, source))
    return [_row([(next(ids), kind) for kind in kinds], block_size) for kinds in trained]


class ResponseLoss(LanguageModel):
    """A model whose training loss gives every response token the same weight.

    In a mean over the batch a token weighs more if the batch (or a worker's share of it) has few response tokens. So in training

        loss = sum over the response tokens of -log p / (rows · tokens_per_row)

    where tokens_per_row is the average over all data. Over an epoch this is the mean. For a single batch it is noisier than in pretraining,
    because it also depends on the number of response tokens. In eval mode the loss is the plain mean.
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
    """The average number of targets in a row."""
    return sum(row.num_targets for row in rows) / len(rows)


def _row(pieces: list[tuple[np.ndarray, bool]], block_size: int) -> Row:
    ids = np.concatenate([ids for ids, _ in pieces])
    learn = np.concatenate([np.full(len(ids), kind) for ids, kind in pieces])
    x, y = ids[:-1], np.where(learn[1:], ids[1:], IGNORE)  # the target at position t is token t + 1
    return Row(x[-block_size:], y[-block_size:])


def _messages(record: Record, path: str | os.PathLike[str]) -> list[Message]:
    """The conversation in a line, in either form."""
    if "messages" not in record.fields:
        names = ("prompt", "user"), ("response", "assistant")
        return [{"role": role, "content": text_field(record, name, path)} for name, role in names]
    where, messages = f"line {record.line} of {path}", record.fields["messages"]
    if not isinstance(messages, list) or not messages:
        raise RecordError(f"{where}: 'messages' must be a list that is not empty, got {messages!r}.")
    checked = [_check_message(message, where) for message in messages]
    if checked[-1]["role"] != "assistant":
        raise RecordError(
            f"{where}: the last message is the {checked[-1]['role']}'s, and must be the assistant's: its answer is what is learnt."
        )
    return checked


def _check_message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
        raise RecordError(f"{where}: a message must have a 'role' and a 'content', both texts, got {message!r}.")
    if message["role"] not in ROLES:
        raise RecordError(f"{where}: a message's role is one of {', '.join(ROLES)}, got {message['role']!r}.")
    return message
