"""From a request to the engine and back: prompts become ids, pieces of text become an answer."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from data.errors import DataError
from data.tokenizer import Tokenizer
from gpt.errors import UserError
from gpt.finetuning.classifier import Classifier, text_row
from gpt.generation.chat_template import ChatTemplate
from gpt.generation.conversation import WhitespaceStripper
from gpt.generation.sampling import DivergedError, Sampling
from gpt.generation.stream import context_length, start_ids
from gpt.microscope.reading import look_at_next
from gpt.model import LanguageModel
from gpt.serving.engine import Engine, Generation, QueueFullError, StoppedError
from gpt.serving.protocol import ChatRequest, ClassifyRequest, CompletionRequest, Form, LookRequest, RequestError, Writing, event, usage
from gpt.serving.sequence import Piece, Settings, Token
from tensorlite import random

_T = TypeVar("_T")
CHAT_TOKENS, COMPLETION_TOKENS = 200, 16  # when a request does not say how many; the second is OpenAI's


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_tokens: of a text.
        choices: texts in an answer, over all prompts.
        context_keep: see `gpt.generation.stream.context_length`.
    """

    max_tokens: int = 1024
    choices: int = 16
    context_keep: int | None = None


@dataclass
class Service:
    """A model, and what is needed to ask it.

    Attributes:
        template: of a model that answers; None for one that continues a text.
        log: called with a prompt and its texts, if texts are to be logged.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    engine: Engine
    template: ChatTemplate | None = None
    limits: Limits = field(default_factory=Limits)
    log: Callable[[str, list[str]], None] | None = None

    @property
    def kind(self) -> str:
        """What the model does: "classify", "chat" or "continue"."""
        if isinstance(self.model, Classifier):
            return "classify"
        return "chat" if self.template else "continue"

    def require_model(self, name: str | None) -> None:
        """Raise for another model's name.

        Raises:
            RequestError: with 404.
        """
        if name is not None and name != self.name:
            raise RequestError(f"there is no model {name[:80]!r} here, only {self.name!r}.", 404, "model", "model_not_found")

    def require_writer(self) -> None:
        """Raise if the model writes no text.

        Raises:
            RequestError: saying what it does instead.
        """
        if self.kind == "classify":
            raise RequestError(f"{self.name!r} classifies texts and writes none: ask /v1/classify.", param="model", code="wrong_model")


@dataclass(frozen=True)
class Task:
    """A request that has been read: texts to write, and the form of the answer."""

    form: Form
    shown: list[str]  # before each text, for echo
    prompts: list[np.ndarray]
    settings: Settings
    generators: list[np.random.Generator]
    logprobs: bool
    token_ids: bool
    stream: bool
    with_usage: bool
    n: int
    strip: bool  # white space around a message belongs to the template, not to the message

    @property
    def read(self) -> int:
        """How many tokens were read: a prompt counts once, however many texts follow it."""
        return sum(len(ids) for ids in self.prompts[:: self.n])


def completion_task(service: Service, request: CompletionRequest) -> Task:
    """Read a request for a text.

    Raises:
        RequestError: for one that cannot be answered.
    """
    request.check_extras()
    service.require_model(request.model)
    service.require_writer()
    given = _split_prompts(request.prompt)
    _require_choices(service, len(given) * (request.n or 1))
    prompts = [_prompt_ids(service, prompt) for prompt in given]
    for _, ids in prompts:
        _require_room(service, ids, request, "prompt")
    if request.echo and request.logprobs is not None:
        raise RequestError("echo with logprobs is not supported here: leave one of them out.", param="echo", code="unsupported_parameter")
    settings = _settings(service, request, request.max_tokens or min(COMPLETION_TOKENS, service.limits.max_tokens), request.logprobs, ())
    return _task(service, request, "completion", prompts, settings, bool(request.echo))


def chat_task(service: Service, request: ChatRequest) -> Task:
    """Read a request for the next message of a conversation.

    A model without a template continues the text of the messages, as `gpt.chat` does.

    Raises:
        RequestError: for one that cannot be answered.
    """
    request.check_extras()
    service.require_model(request.model)
    service.require_writer()
    for message in request.messages:
        message.check_extras()
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise RequestError("give max_completion_tokens or max_tokens, not both.", param="max_tokens")
    _require_choices(service, request.n or 1)
    messages = [{"role": "system" if one.role == "developer" else one.role, "content": one.text} for one in request.messages]
    asked = request.max_completion_tokens or request.max_tokens or min(CHAT_TOKENS, service.limits.max_tokens)
    top = (request.top_logprobs or 0) if request.logprobs else None
    settings = _settings(service, request, asked, top, service.template.stop if service.template else ())
    prompt = _conversation(service, messages, settings.max_tokens, request.truncation == "auto")
    _require_room(service, prompt[1], request, "messages")
    return _task(service, request, "chat", [prompt], settings, False)


def _conversation(service: Service, messages: list[dict[str, str]], max_tokens: int, may_shorten: bool) -> tuple[str, np.ndarray]:
    """The conversation as a prompt; without its oldest turns, if they leave no room for an answer and that is wanted."""
    block_size = service.model.config.block_size
    room = block_size - min(max_tokens, block_size // 2)
    head = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(head) :]
    while True:
        spoken = [*head, *turns]
        if service.template:
            text = service.template.prompt([{**message, "content": message["content"].strip()} for message in spoken])
        else:
            text = "\n".join(message["content"] for message in spoken if message["content"])
        prompt = _prompt_ids(service, text)
        if not may_shorten or len(turns) <= 1 or len(prompt[1]) <= room:
            return prompt
        turns = turns[2:] or turns[-1:]


def _split_prompts(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One prompt, or several, each as a text or as ids."""
    if isinstance(prompt, str) or (prompt and all(isinstance(one, int) for one in prompt)):
        return [prompt]  # type: ignore[list-item]
    if not prompt or [] in prompt:
        raise RequestError("a list of prompts, and each list of ids in it, needs at least one entry.", param="prompt")
    return prompt  # type: ignore[return-value]


def _prompt_ids(service: Service, prompt: str | list[int]) -> tuple[str, np.ndarray]:
    """A prompt's text and its ids; at least one, see `gpt.generation.stream.start_ids`."""
    tokenizer = service.tokenizer
    try:
        if isinstance(prompt, str):
            _require_whole_characters(prompt)
            ids = np.asarray(tokenizer.encode(prompt), np.int64)
            return prompt, ids if len(ids) else np.asarray(start_ids(tokenizer), np.int64)
        outside = [id for id in prompt if not 0 <= id < tokenizer.vocab_size]
        if outside:
            raise RequestError(f"ids go from 0 to {tokenizer.vocab_size - 1}, got {outside[0]}.", param="prompt")
        return tokenizer.decode(prompt), np.array(prompt, np.int64)
    except DataError as error:
        raise RequestError(str(error), param="prompt", code="unknown_characters") from error


def _require_whole_characters(text: str) -> None:
    """JSON can write half a surrogate pair, which is no character and cannot be encoded."""
    if half := re.search("[\ud800-\udfff]", text):
        raise RequestError(f"the text has half a surrogate pair, U+{ord(half[0]):04X}, at position {half.start():,}.", param="prompt")


def _require_room(service: Service, ids: np.ndarray, request: Writing, param: str) -> None:
    block_size = service.model.config.block_size
    if len(ids) > block_size and request.truncation != "auto":
        raise RequestError(
            f"the prompt has {len(ids):,} tokens, and this model's context holds {block_size:,}: shorten it, "
            'or send "truncation": "auto" to let the model read its end.',
            param=param,
            code="context_length_exceeded",
        )


def _require_choices(service: Service, count: int) -> None:
    most = service.limits.choices
    if count > most:
        raise RequestError(f"{count:,} texts were asked for; a request may have {most:,}, over all prompts.", param="n")


def _settings(service: Service, request: Writing, max_tokens: int, top: int | None, stop: tuple[str, ...]) -> Settings:
    limits = service.limits
    if max_tokens > limits.max_tokens:
        raise RequestError(f"max_tokens goes up to {limits.max_tokens:,} here, got {max_tokens:,}.", param="max_tokens")
    own = [request.stop] if isinstance(request.stop, str) else request.stop or []
    try:
        sampling = Sampling(
            1.0 if request.temperature is None else request.temperature,
            request.top_k,
            request.top_p,
            request.min_p,
            1.0 if request.repetition_penalty is None else request.repetition_penalty,
        )
    except ValueError as error:
        raise RequestError(str(error)) from error
    return Settings(max_tokens, sampling, (*own, *stop), limits.context_keep, top)


def _task(service: Service, request: Writing, kind: Any, prompts: list[tuple[str, np.ndarray]], settings: Settings, echo: bool) -> Task:
    n = request.n or 1
    if request.stream_options is not None:
        request.stream_options.check_extras()
        if not request.stream:
            raise RequestError("stream_options needs stream: true.", param="stream_options")
    return Task(
        form=Form(kind, service.name),
        shown=[text if echo else "" for text, _ in prompts for _ in range(n)],
        prompts=[ids for _, ids in prompts for _ in range(n)],
        settings=settings,
        # As in gpt.generate: each text has its own stream of random numbers, so the third is the same with or without the first two.
        generators=[
            random.make_generator(request.seed, i) if request.seed is not None else np.random.default_rng()
            for _ in prompts
            for i in range(n)
        ],
        logprobs=settings.top_logprobs is not None,
        token_ids=bool(request.return_token_ids),
        stream=bool(request.stream),
        with_usage=request.stream_options is not None and request.stream_options.include_usage,
        n=n,
        strip=kind == "chat" and service.template is not None,
    )


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
    encoded = [_prompt_ids(service, text)[1] for text in texts]
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
    _, ids = _prompt_ids(service, request.token_ids)
    place = request.position
    if not 1 <= place < len(ids):
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
