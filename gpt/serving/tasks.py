"""What a request asks for: its prompts become ids, its settings are checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from gpt.generation.sampling import Sampling
from gpt.generation.stream import start_ids
from gpt.serving.protocol import ChatRequest, CompletionRequest, Form, RequestError, Writing
from gpt.serving.sequence import Settings
from gpt.serving.service import Service
from tensorlite import random

CHAT_TOKENS, COMPLETION_TOKENS = 200, 16  # when a request does not say how many; the second is OpenAI's


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
    prompts = [prompt_ids(service, prompt) for prompt in given]
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
        for part in (message, *(message.content if isinstance(message.content, list) else ())):
            part.check_extras()
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
        prompt = prompt_ids(service, text)
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


def prompt_ids(service: Service, prompt: str | list[int]) -> tuple[str, np.ndarray]:
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
