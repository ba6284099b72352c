"""OpenAI's protocol, as far as a GPT of ours can answer it: what a request may say, and the form of an answer and of an error.

A setting that exists there but not here is refused by name, not ignored: an answer that leaves it out would not be what was asked for. Ours
are top_k, min_p and repetition_penalty (as `gpt.generate` has them), truncation (what to do with a prompt that is longer than the context)
and return_token_ids.

Source: OpenAI, "API reference", https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gpt.errors import UserError
from gpt.serving.sequence import Token

MOST_LOGPROBS = 20
MOST_STOPS = 16
MOST_PROMPTS = 64
REFUSED = {  # known, and refused unless they have the value that changes nothing
    "best_of": (None, 1), "suffix": (None,), "logit_bias": (None, {}), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "tools": (None, []), "functions": (None, []), "tool_choice": (None, "none", "auto"), "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]), "audio": (None,), "prediction": (None,), "web_search_options": (None,),
}  # fmt: skip
IGNORED = (
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)  # of no effect on a text


class RequestError(UserError):
    """A request that cannot be answered.

    Attributes:
        status: of HTTP.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the answer.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def content(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return error_content(str(self), self.status, self.param, self.code)


def error_content(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ErrorContent(BaseModel):
    """What is wrong, see `RequestError`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorContent


def _describe_extras(schema: dict[str, Any]) -> None:
    """Say in a request's JSON schema what `_Request.check_extras` does: the further fields that it accepts are there, and no others."""
    neutral = {
        name: {"enum": list(values), "description": "Not supported; these values change nothing."} for name, values in REFUSED.items()
    }
    ignored = {name: {"description": "Accepted, and of no effect."} for name in IGNORED}
    schema["properties"] = {**schema["properties"], **neutral, **ignored}
    schema["additionalProperties"] = False


class _Request(BaseModel):
    """A field of another type is refused, and not converted."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, json_schema_extra=_describe_extras)

    def check_extras(self) -> None:
        """Raise for what is asked for and cannot be done.

        Raises:
            RequestError: naming it.
        """
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED:
                if value not in REFUSED[name]:
                    raise RequestError(f"{name} is not supported here: leave it out.", param=name, code="unsupported_parameter")
            elif name not in IGNORED:
                raise RequestError(f"unknown field {name[:80]!r}: leave it out.", param=name[:80], code="unknown_parameter")


class StreamOptions(_Request):
    """Of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # accepted, and of no effect


class Writing(_Request):
    """What completions and chat have in common."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    return_token_ids: bool | None = None


class CompletionRequest(Writing):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] = ""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None


class TextPart(_Request):
    """A part of a message; only texts can be read."""

    type: Literal["text"]
    text: str


class Message(_Request):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None

    @property
    def text(self) -> str:
        """What it says."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Writing):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None


class ClassifyRequest(_Request):
    """POST /v1/classify."""

    model: str | None = None
    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]


class LookRequest(_Request):
    """POST /v1/look: at the token in ``position`` of a text, which is given as the ids that an answer has returned."""

    model: str | None = None
    token_ids: Annotated[list[int], Field(min_length=2)]  # the first has none before it
    position: Annotated[int, Field(ge=1)]
    top: Annotated[int, Field(ge=1, le=50)] = 10


class Form:
    """The form of the answers to one request."""

    def __init__(self, kind: Literal["completion", "chat"], model: str) -> None:
        self.is_chat = kind == "chat"
        self.model, self.created = model, int(time.time())
        self.id = ("chatcmpl-" if self.is_chat else "cmpl-") + uuid.uuid4().hex

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """An answer in one."""
        return self._head("chat.completion" if self.is_chat else "text_completion") | {"choices": choices, "usage": usage}

    def part(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """A part of a stream."""
        content = self._head("chat.completion.chunk" if self.is_chat else "text_completion") | {"choices": choices}
        return content if usage is None else content | {"usage": usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def choice(self, index: int, text: str, finish: str | None, logprobs: Any, streamed: bool) -> dict[str, Any]:
        """One of the texts, or what is new of it."""
        said: dict[str, Any] = {"text": text}
        if self.is_chat:
            said = {"delta": {"content": text} if text else {}} if streamed else {"message": {"role": "assistant", "content": text}}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}

    def logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any]:
        """Of the tokens: log p, and the likeliest tokens in the place of each."""
        if self.is_chat:
            return {"content": [_entry(token.text, token.logprob, token.top) for token in tokens], "refusal": None}
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{text: _finite(p) for text, p in reversed(token.top)} for token in tokens],
            "text_offset": [offset + token.start for token in tokens],
        }


def _entry(text: str, logprob: float, top: Sequence[tuple[str, float]] | None) -> dict[str, Any]:
    # A token may end inside a character; its text then has a sign for what is missing, and its bytes are not known.
    entry: dict[str, Any] = {"token": text, "logprob": _finite(logprob), "bytes": None if "\ufffd" in text else list(text.encode("utf-8"))}
    return entry if top is None else entry | {"top_logprobs": [_entry(other, p, None) for other, p in top]}


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)  # JSON has no infinity; this is OpenAI's number for it


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """How many tokens were read and written."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def event(content: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n".encode()
