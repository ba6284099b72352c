"""Tokens a second of the server, for one client and for several at once

Every client of a round asks for one text over HTTP and reads it while it is written; they begin together. The first token is timed from
the request to the first piece of text. The server is a process of its own, `python -m gpt.serve`. The clients are threads of this process,
and share the cores with it.

--beside NAME=ADDRESS measures another server of OpenAI's protocol as well, which runs already and serves the first of the models. It
takes turns with ours. --beside-clients says how many clients it can stand.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.common import options_of, save, spread, table

PROMPTS = ("The value of", "A module is", "Once upon a time", "In the morning")
LIMIT = 300.0  # seconds that a text may take


@contextlib.contextmanager
def started(checkpoint: str, slots: int) -> Iterator[str]:
    """The address of a server of ours, while it runs.

    Raises:
        RuntimeError: if it does not start.
    """
    command = [sys.executable, "-m", "gpt.serve", checkpoint, "--port", "0", "--slots", str(slots)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    assert process.stdout
    try:
        with process.stdout:
            _, found, rest = process.stdout.readline().partition(" at http://")
            if not found:
                raise RuntimeError(f"python -m gpt.serve {checkpoint} has not started.")
            yield rest.split()[0]
    finally:
        process.terminate()
        process.wait()


def read_text(address: str, model: str, number: int, tokens: int) -> tuple[int, float]:
    """Ask for a text; the number of its pieces, which are tokens, and the seconds until the first.

    Raises:
        RuntimeError: for an answer that is no text.
    """
    body = {"model": model, "prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": tokens, "temperature": 0, "stream": True}
    with contextlib.closing(http.client.HTTPConnection(address, timeout=LIMIT)) as connection:
        began, first, pieces = time.perf_counter(), 0.0, 0
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{address} answers {answer.status}: {answer.read(500)!r}")
        for line in answer:
            if line.startswith(b"data: {") and any(choice["text"] for choice in json.loads(line[6:])["choices"]):
                first, pieces = first or time.perf_counter() - began, pieces + 1
    return pieces, first


def measure(servers: dict[str, str], clients: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of each server, by name, with so many clients. The servers take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in servers}
    waits: dict[str, list[float]] = {name: [] for name in servers}
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(rounds):
            for name, address in servers.items():
                began = time.perf_counter()
                texts = list(pool.map(lambda number, address=address: read_text(address, _model(address), number, tokens), range(clients)))
                speeds[name].append(sum(pieces for pieces, _ in texts) / (time.perf_counter() - began))
                waits[name] += [first for _, first in texts]
    return [
        {"server": name, "clients": clients, "tokens_per_second": spread(speeds[name]), "first_token_seconds": spread(waits[name])}
        for name in servers
    ]


def _model(address: str) -> str:
    """The name of the model that is served there."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=LIMIT)) as connection:
        connection.request("GET", "/v1/models")
        return json.load(connection.getresponse())["data"][0]["id"]


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each model, server and number of clients."""
    return [
        {
            "model": result["model"],
            "server": one["server"],
            "clients": one["clients"],
            "tokens/s": float(one["tokens_per_second"]["median"]),
            "first token, s": float(one["first_token_seconds"]["median"]),
            "the last one's": float(one["first_token_seconds"]["max"]),
        }
        for result in results
        for one in result["servers"]
    ]


def main(argv: list[str]) -> None:
    """``python -m benchmarks serve CHECKPOINT … [--clients N …] [--tokens N] [--rounds N] [--beside NAME=ADDRESS]``"""
    parser = options_of("serve", __doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="what gpt.serve takes")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="at once (default: 1 4 16)")
    parser.add_argument("--tokens", type=int, default=64, help="of a text (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="texts of each client (default: 3)")
    parser.add_argument("--beside", metavar="NAME=HOST:PORT", help="another server, of the first checkpoint")
    parser.add_argument("--beside-clients", type=int, default=sys.maxsize, metavar="N", help="no more than so many at once for it")
    options = parser.parse_args(argv)
    results = []
    for number, checkpoint in enumerate(options.checkpoints):
        with started(checkpoint, max(options.clients)) as address:
            name, _, other = (options.beside or "").partition("=")
            measured = []
            for clients in options.clients:
                beside = {name: other} if name and number == 0 and clients <= options.beside_clients else {}
                servers = {"ours": address, **beside}
                measure(servers, 1, 2, 1)  # what a server does once, at its first request
                measured += measure(servers, clients, options.tokens, options.rounds)
            results.append({"model": _model(address), "tokens": options.tokens, "servers": measured})
    print(table(rows(results)))
    save("serve", results)
