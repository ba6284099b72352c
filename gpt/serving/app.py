"""The routes, as an application of FastAPI."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from gpt.serving import answers, tasks
from gpt.serving.answers import Answer, as_request_error
from gpt.serving.gate import App, Gate, Rules
from gpt.serving.protocol import ChatRequest, ClassifyRequest, CompletionRequest, ErrorAnswer, LookRequest, RequestError
from gpt.serving.service import Service
from gpt.serving.tasks import Task

PAGE = Path(__file__).with_name("page.html")
AS_EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}  # what a stream has besides JSON


def make_app(service: Service, rules: Rules) -> App:
    """The server's application; its engine starts and stops with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await run_in_threadpool(service.engine.stop)

    app = FastAPI(
        title=f"tensorlite: {service.name}",
        docs_url=None,  # their pages load scripts from a CDN
        redoc_url=None,
        lifespan=lifespan,
        responses={"default": {"model": ErrorAnswer, "description": "An error, in OpenAI's form."}},
    )
    _add_error_handlers(app)
    page = PAGE.read_text(encoding="utf-8")
    policy = _content_security_policy(page)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> Response:
        return HTMLResponse(
            page, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
        )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": service.name, "running": service.engine.running, "waiting": service.engine.waiting}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        text = service.engine.metrics.text(service.engine.running, service.engine.waiting)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return answers.listed([service])

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        service.require_model(name)
        return answers.describe(service)

    @app.post("/v1/completions", responses=AS_EVENTS)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _write(service, request, await run_in_threadpool(tasks.completion_task, service, body))

    @app.post("/v1/chat/completions", responses=AS_EVENTS)
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _write(service, request, await run_in_threadpool(tasks.chat_task, service, body))

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest) -> dict[str, Any]:
        return await answers.classify(service, body)

    @app.post("/v1/look")
    async def look(body: LookRequest) -> dict[str, Any]:
        return await answers.look(service, body)

    names = (
        "/",
        "/health",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/classify",
        "/v1/look",
    )
    return Gate(app, rules, service.engine.metrics, frozenset(names))


async def _write(service: Service, request: Request, task: Task) -> Response:
    """Write the texts of a task for a client; if it goes away, they are given up."""
    answer = Answer(service, task)
    if task.stream:
        return StreamingResponse(_closing(answer), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    try:
        whole, gone = asyncio.create_task(answer.whole()), asyncio.create_task(_disconnected(request))
        await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not whole.done():
            whole.cancel()
            return Response(status_code=499)  # nobody reads it
        return JSONResponse(whole.result())
    finally:
        answer.close()


async def _closing(answer: Answer) -> AsyncIterator[bytes]:
    try:
        async for part in answer.events():
            yield part
    finally:
        answer.close()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_error_handlers(app: FastAPI) -> None:
    """Every error has OpenAI's form, and no traceback."""

    def handler(kind: type[Exception]) -> Callable[[Callable[[Any], RequestError]], None]:
        def add(convert: Callable[[Any], RequestError]) -> None:
            async def handle(_: Request, error: Exception) -> Response:
                told = convert(error)
                # In ASCII: what a client has sent may come back in it, and need not be text.
                return Response(json.dumps(told.content()), told.status, told.headers, "application/json")

            handled: Callable[[Request, Any], Awaitable[Response]] = handle
            app.add_exception_handler(kind, handled)

        return add

    handler(RequestError)(as_request_error)
    handler(Exception)(as_request_error)

    @handler(HTTPException)
    def _(error: HTTPException) -> RequestError:
        return RequestError(str(error.detail), error.status_code, headers=dict(error.headers or {}))

    @handler(RequestValidationError)
    def _(error: RequestValidationError) -> RequestError:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
        if first["type"] == "json_invalid":
            return RequestError("the body is no JSON.", code="invalid_json")
        return RequestError(f"{place or 'the body'}: {first['msg']}.", param=place or None)


def _content_security_policy(page: str) -> str:
    """The page may run its own script and ask this server, and nothing else."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
