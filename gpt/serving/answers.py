"""From the engine back to the client: pieces of text become an answer."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from data.errors import DataError
from gpt.errors import UserError
from gpt.finetuning.classifier import Classifier, text_row
from gpt.generation.conversation import WhitespaceStripper
from gpt.generation.sampling import DivergedError
from gpt.generation.stream import context_length
from gpt.microscope.reading import look_at_next
from gpt.serving.engine import Generation, QueueFullError, StoppedError
from gpt.serving.protocol import ClassifyRequest, LookRequest, RequestError, event, usage
from gpt.serving.sequence import Piece, Token
from gpt.serving.service import Service
from gpt.serving.tasks import Task, prompt_ids

_T = TypeVar("_T")


class Answer:
    """The texts of one task while they are written. Close it: texts that nobody waits for are given up."""

    def __init__(self, service: Service, task: Task) -> None:
        self.service, self.task = service, task
        self.pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver(index: int) -> Callable[[Piece], None]:
            def to_loop(piece: Piece) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody is there to read
                    loop.call_soon_threadsafe(self.pieces.put_nowait, (index, piece))

            return to_loop

        try:
            self.generations: list[Generation] = service.engine.submit(
                task.prompts, task.settings, task.generators, [deliver(i) for i in range(len(task.prompts))]
            )
        except (QueueFullError, StoppedError) as error:
            raise as_request_error(error) from error

    def close(self) -> None:
        """Give up what is not finished."""
        for generation in self.generations:
            generation.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Each new piece, and which of the texts it belongs to.

        Raises:
            RequestError: if a text cannot go on.
        """
        left, texts = len(self.generations), [""] * len(self.generations)
        strippers = [WhitespaceStripper() for _ in texts] if self.task.strip else None
        while left:
            index, piece = await self.pieces.get()
            if piece.error is not None:
                raise as_request_error(piece.error)
            if strippers:
                piece = replace(piece, text=strippers[index].push(piece.text))
            texts[index] += piece.text
            left -= piece.is_last
            yield index, piece
        if self.service.log is not None:
            for first in range(0, len(texts), self.task.n):
                prompt = self.service.tokenizer.decode(self.task.prompts[first])
                self.service.log(prompt, texts[first : first + self.task.n])

    async def whole(self) -> dict[str, Any]:
        """The answer in one."""
        task, count = self.task, len(self.generations)
        texts, tokens, finish, used = list(task.shown), [list[Token]() for _ in range(count)], [""] * count, [0] * count
        async for index, piece in self:
            texts[index] += piece.text
            tokens[index] += piece.tokens
            finish[index], used[index] = piece.finish or "", piece.used
        choices = []
        for i in range(count):
            logprobs = task.form.logprobs(tokens[i], len(task.shown[i])) if task.logprobs else None
            choices.append(task.form.choice(i, texts[i], finish[i], logprobs, streamed=False))
            if task.token_ids:
                choices[-1] |= {"prompt_token_ids": task.prompts[i].tolist(), "token_ids": [token.id for token in tokens[i]]}
        return task.form.whole(choices, usage(task.read, sum(used)))

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        task, count = self.task, len(self.generations)
        used, begun = [0] * count, [False] * count
        try:
            async for index, piece in self:
                used[index] = piece.used
                if not begun[index]:
                    begun[index] = True
                    yield event(task.form.part([self._first(index)]))
                if piece.text or piece.tokens or piece.is_last:
                    logprobs = task.form.logprobs(piece.tokens, len(task.shown[index])) if task.logprobs and piece.tokens else None
                    choice = task.form.choice(index, piece.text, piece.finish, logprobs, streamed=True)
                    if task.token_ids:
                        choice["token_ids"] = [token.id for token in piece.tokens]
                    yield event(task.form.part([choice]))
            if task.with_usage:
                yield event(task.form.part([], usage(task.read, sum(used))))
        except RequestError as error:
            yield event(error.content())
        yield event("[DONE]")

    def _first(self, index: int) -> dict[str, Any]:
        choice = self.task.form.choice(index, self.task.shown[index], None, None, streamed=True)
        if self.task.form.is_chat:
            choice["delta"] = {"role": "assistant", "content": ""}
        return choice | {"prompt_token_ids": self.task.prompts[index].tolist()} if self.task.token_ids else choice


def as_request_error(error: BaseException) -> RequestError:
    """What a client is told of an error; never what is inside of one that nobody has foreseen."""
    match error:
        case RequestError():
            return error
        case QueueFullError():
            return RequestError(str(error), 429, code="queue_full", headers={"Retry-After": str(error.retry_after)})
        case StoppedError():
            return RequestError(str(error), 503, code="shutting_down")
        case DivergedError():
            return RequestError("the model's scores are not finite: its training has diverged.", 500, code="diverged")
        case MemoryError():
            return RequestError("there was too little memory for this request.", 503, code="out_of_memory", headers={"Retry-After": "5"})
        case DataError() | UserError():
            return RequestError(str(error))
        case _:
            return RequestError("the server has made a mistake; its log says which.", 500, code="internal_error")


async def ask(future: Callable[[], Future[_T]]) -> _T:
    """What ``engine.call`` returns, without blocking the loop.

    Raises:
        RequestError: in the place of an error of the user's.
    """
    try:
        return await asyncio.wrap_future(future())
    except (UserError, DataError, MemoryError) as error:
        raise as_request_error(error) from error


async def classify(service: Service, request: ClassifyRequest) -> dict[str, Any]:
    """The labels of texts, with their probabilities.

    Raises:
        RequestError: if the model is no classifier, or does not know a character.
    """
    request.check_extras()
    service.require_model(request.model)
    model = service.model
    if not isinstance(model, Classifier):
        raise RequestError(f"{service.name!r} is no classifier: ask /v1/completions.", param="model", code="wrong_model")
    texts = [request.input] if isinstance(request.input, str) else request.input
    block_size = model.config.block_size
    encoded = [prompt_ids(service, text)[1] for text in texts]
    rows = [text_row(ids, block_size) for ids in encoded]
    chances = await ask(lambda: service.engine.call(lambda: model.probabilities(rows)))
    return {
        "object": "list",
        "model": service.name,
        "data": [
            {
                "index": i,
                "label": model.labels[int(row.argmax())],
                "probabilities": {label: float(p) for label, p in zip(model.labels, row, strict=True)},
                "truncated": len(encoded[i]) > block_size,
            }
            for i, row in enumerate(chances)
        ],
        "usage": usage(sum(min(len(ids), block_size) for ids in encoded), 0),
    }


async def look(service: Service, request: LookRequest) -> dict[str, Any]:
    """How surprised the model was by one token of a text, what else it could have said, and where each head looked.

    Raises:
        RequestError: for a place that is not in the text, or ids that there are not.
    """
    request.check_extras()
    service.require_model(request.model)
    service.require_writer()
    tokenizer, block_size = service.tokenizer, service.model.config.block_size
    _, ids = prompt_ids(service, request.token_ids)
    place = request.position
    if place >= len(ids):
        raise RequestError(f"position goes from 1, the first token with one before it, to {len(ids) - 1}, got {place}.", param="position")
    before = ids[place - context_length(place, block_size, service.limits.context_keep or block_size) : place]
    view = await ask(lambda: service.engine.call(lambda: look_at_next(service.model, before, tokenizer.vocab_size)))
    order = np.argsort(-view.log_p, kind="stable")[: request.top]
    chosen = float(view.log_p[ids[place]])
    return {
        "object": "look",
        "model": service.name,
        "token": tokenizer.decode([int(ids[place])]),
        "surprise": min(-chosen, 9999.0),
        "probability": math.exp(chosen),
        "rank": int((view.log_p > chosen).sum()) + 1,
        "alternatives": [{"token": tokenizer.decode([int(i)]), "id": int(i), "probability": math.exp(view.log_p[i])} for i in order],
        "before": [tokenizer.decode([int(id)]) for id in before],
        "attention": np.round(view.attention, 4).tolist(),
        "guesses": [{"token": tokenizer.decode([id]), "probability": p} for id, p in view.guesses],
    }


def listed(services: Sequence[Service]) -> dict[str, Any]:
    """/v1/models."""
    return {"object": "list", "data": [describe(service) for service in services]}


def describe(service: Service) -> dict[str, Any]:
    """One of the models; what OpenAI's form has no name for stands under names of ours."""
    config = service.model.config
    content: dict[str, Any] = {"id": service.name, "object": "model", "created": 0, "owned_by": "tensorlite"}
    content |= {"kind": service.kind, "context_length": config.block_size, "max_tokens": service.limits.max_tokens}
    if isinstance(service.model, Classifier):
        content["labels"] = list(service.model.labels)
    return content
