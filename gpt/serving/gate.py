"""What every request passes before it reaches a route: is it for this host, has it the key, is its body small enough and there in time?

A page of another site can make a browser send requests to 127.0.0.1. It cannot read the answers, since no header allows it to (CORS); it
cannot ask the model either, since a body must be marked as JSON, which browsers send to another site only with its permission; and the
name in the Host header must be this machine's, so a foreign name that has been pointed at it does not help.

Each request is logged as one line: method, route, status, milliseconds. There is no text of anybody in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from gpt.serving.metrics import Metrics
from gpt.serving.protocol import error_content

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOG = logging.getLogger("gpt.serve")
OPEN = ("/", "/health")  # need no key: the page has to be there before a key can be typed into it
DISCARDED = 128 << 20  # bytes of a body that is too long, before the connection is closed
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Rules:
    """What the gate asks for.

    Attributes:
        key: that a client has to send, as a bearer token; None for no key.
        hosts: the names in a Host header that are this server's; empty for any.
        body: the largest, in bytes.
        body_seconds: in which all of it must be here.
    """

    key: str | None = None
    hosts: tuple[str, ...] = LOCAL_NAMES
    body: int = 1 << 20
    body_seconds: float = 30.0


class _Body:
    """``receive`` of ASGI, which remembers whether the body has ``ended``."""

    def __init__(self, receive: Receive) -> None:
        self.receive, self.ended = receive, False

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self.receive()
        self.ended = not message.get("more_body")
        return message


class Gate:
    """An application of ASGI around another."""

    def __init__(self, app: App, rules: Rules, metrics: Metrics, routes: frozenset[str]) -> None:
        self.app, self.rules, self.metrics, self.routes = app, rules, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # if the client has gone before there is another; nginx's number for it
        route = scope["path"] if scope["path"] in self.routes else "other"

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.metrics.answered(route, status)
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self._answer(scope, _Body(receive), noting)
        finally:
            LOG.info("%s %s %d %.0f ms", scope["method"][:10], route, status, 1000 * (time.monotonic() - began))

    async def _answer(self, scope: Scope, receive: _Body, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if refusal := self._refuse(scope, headers):
            await self._send_error(receive, send, *refusal)
            return
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.rules.body_seconds):
                body = await self._read(receive)
        except TimeoutError:
            await self._send_error(receive, send, 408, f"the body was not here within {self.rules.body_seconds:g} seconds.")
            return
        if body is None:
            await self._send_error(receive, send, 413, f"a body may have {self.rules.body:,} bytes.")
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> MutableMapping[str, Any]:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    def _refuse(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Status and message, if the headers alone say that there is nothing to do."""
        rules = self.rules
        if rules.hosts and _without_port(headers.get(b"host", b"").decode("latin-1")) not in rules.hosts:
            return 421, f"this server is {' or '.join(rules.hosts)}, and answers to no other name; --host opens it to others."
        if rules.key is not None and scope["path"] not in OPEN:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), rules.key.encode("utf-8")):
                return 401, "this server needs its API key, as the header Authorization: Bearer KEY."
        if scope["method"] == "POST" and headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            return 415, "a body is JSON here: send the header Content-Type: application/json."
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > rules.body:
            return 413, f"a body may have {rules.body:,} bytes."
        return None

    async def _read(self, receive: _Body) -> bytes | None:
        """The body; None if it is too long."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > self.rules.body:
                return None
            if receive.ended:
                return bytes(body)

    async def _send_error(self, receive: _Body, send: Send, status: int, message: str) -> None:
        """Send an error, and read what is still to come of the request: a client that is still sending would not see the answer."""
        body = json.dumps(error_content(message, status)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        left = DISCARDED
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.rules.body_seconds if status != 408 else 0):
                while left > 0 and not receive.ended:
                    left -= len((await receive()).get("body", b""))
        await send({"type": "http.response.body", "body": b""})


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
