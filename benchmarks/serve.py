"""Tokens a second of the server, for one client and for several at once

Every client of a round asks for one text over HTTP and reads it while it is written; they begin together. The first token is timed from
the request to the first piece of text. The server is a process of its own, `python -m gpt.serve`. The clients are threads of this process,
and share the cores with it.

Two other servers can take turns with that of the first model. --int8 starts one of ours with the model in 8 bits. --beside NAME=ADDRESS
measures one of OpenAI's protocol that runs already; --beside-clients says how many clients it can stand, and --beside-pid names its
process, for its memory.

The memory of a server is its resident set: before the first request, and the largest since it was started, which includes the time when it
loaded the model. It is read from Linux's /proc; elsewhere it is not measured.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import median_and_range, options_of, save, spread, table

PROMPTS = ("The value of", "A module is", "Once upon a time", "In the morning")
LIMIT = 300.0  # seconds that a text may take


class Server(NamedTuple):
    """Where it listens, and its process if that is known."""

    address: str
    pid: int | None = None

    def memory_mb(self, name: str) -> float | None:
        """VmRSS, its memory now, or VmHWM, the largest so far; None where that cannot be read."""
        status = Path(f"/proc/{self.pid}/status")
        if self.pid is None or not status.exists():
            return None
        found = re.search(rf"^{name}:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
        return int(found[1]) / 1024 if found else None


@contextlib.contextmanager
def started(checkpoint: str, slots: int, *options: str) -> Iterator[Server]:
    """A server of ours, while it runs.

    Raises:
        RuntimeError: if it does not start.
    """
    command = [sys.executable, "-m", "gpt.serve", checkpoint, "--port", "0", "--slots", str(slots), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8")
    assert process.stdout
    try:
        with process.stdout:
            _, found, rest = process.stdout.readline().partition(" at http://")
            if not found:
                raise RuntimeError(f"python {' '.join(command[1:])} has not started.")
            yield Server(rest.split()[0], process.pid)
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


def measure(servers: dict[str, Server], clients: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of each server, by name, with so many clients. The servers take turns."""
    speeds: dict[str, list[float]] = {name: [] for name in servers}
    waits: dict[str, list[float]] = {name: [] for name in servers}
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(rounds):
            for name, (address, _) in servers.items():
                began = time.perf_counter()
                texts = list(pool.map(lambda number, address=address: read_text(address, _model(address), number, tokens), range(clients)))
                speeds[name].append(sum(pieces for pieces, _ in texts) / (time.perf_counter() - began))
                waits[name] += [first for _, first in texts]
    return [
        {
            "server": name,
            "clients": clients,
            "tokens_per_second": spread(speeds[name]),
            "first_token_seconds": spread(waits[name]),
            "peak_memory_mb": server.memory_mb("VmHWM"),
        }
        for name, server in servers.items()
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
            "tokens/s": median_and_range(one["tokens_per_second"]),
            "first token, s": float(one["first_token_seconds"]["median"]),
            "the last one's": float(one["first_token_seconds"]["max"]),
            "memory idle, MB": _megabytes(one["idle_memory_mb"]),
            "peak, MB": _megabytes(one["peak_memory_mb"]),
        }
        for result in results
        for one in result["servers"]
    ]


def _megabytes(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}"


def main(argv: list[str]) -> None:
    """``python -m benchmarks serve CHECKPOINT … [--int8] [--clients N …] [--tokens N] [--rounds N] [--beside NAME=ADDRESS]``"""
    parser = options_of("serve", __doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="what gpt.serve takes")
    parser.add_argument("--int8", action="store_true", help="also the first checkpoint with --int8")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="at once (default: 1 4 16)")
    parser.add_argument("--tokens", type=int, default=64, help="of a text (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="texts of each client (default: 3)")
    parser.add_argument("--beside", metavar="NAME=HOST:PORT", help="another server, of the first checkpoint")
    parser.add_argument("--beside-clients", type=int, default=sys.maxsize, metavar="N", help="no more than so many at once for it")
    parser.add_argument("--beside-pid", type=int, metavar="PID", help="its process")
    options = parser.parse_args(argv)
    results = []
    for number, checkpoint in enumerate(options.checkpoints):
        with contextlib.ExitStack() as stack:
            servers = {"ours": stack.enter_context(started(checkpoint, max(options.clients)))}
            if options.int8 and number == 0:
                servers["ours --int8"] = stack.enter_context(started(checkpoint, max(options.clients), "--int8"))
            beside, _, other = (options.beside or "").partition("=")
            if beside and number == 0:
                servers[beside] = Server(other, options.beside_pid)
            idle = {name: server.memory_mb("VmRSS") for name, server in servers.items()}
            measured = []
            for clients in options.clients:
                asked = {name: server for name, server in servers.items() if name != beside or clients <= options.beside_clients}
                measure(asked, 1, 2, 1)  # what a server does once, at its first request
                measured += measure(asked, clients, options.tokens, options.rounds)
            measured = [one | {"idle_memory_mb": idle[one["server"]]} for one in measured]
            results.append({"model": _model(servers["ours"].address), "tokens": options.tokens, "servers": measured})
    print(table(rows(results)))
    save("serve", results)
